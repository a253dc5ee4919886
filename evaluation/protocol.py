"""What exactly is measured: two numbers can be compared when their protocols have the same hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from models.samplers import Sampler

Spacing = Literal["leading", "trailing"]
SamplerName = Literal["ddim", "ddpm", "plms", "dpm_solver"]
Draws = Literal["samples", "reconstructions"]
ReferenceKind = Literal["originals", "file"]
PictureFile = Literal["png", "jpeg95"]
CHOICES = {
    "precision": ("float32", "bfloat16"),
    "spacing": get_args(Spacing),
    "sampler": get_args(SamplerName),
    "draws": get_args(Draws),
    "reference": get_args(ReferenceKind),
    "picture_file": get_args(PictureFile),
}
# Settings that came after the first protocols, with what was done before there was a choice.
CAME_LATER: dict[str, Any] = {
    "spacing": "leading",
    "sampler": "ddim",
    "eta": 0.0,
    "draws": "samples",
    "reference": "originals",
    "picture_file": "png",
    "weights": "ema",
    "data_sha256": None,
    "features_sha256": None,
    "metrics": {},
}


@dataclass(frozen=True)
class Protocol:
    """An evaluation of images that a model draws, or that its first stage restores.

    Args:
        name: short name, part of file names.
        data: the captions and images that are meant, in words.
        features: feature network, see evaluation.features.load_features.
        captions: number of captions, or of whatever else is drawn from; one image is generated for each.
        seed: picks the samples and their captions; seed of image n is seed * 2^32 + n.
        image_size: height and width of generated and real images in pixels; real ones have their shorter side scaled
            to it (Lanczos), and are cut to their middle.
        sampler_steps: of the sampler.
        guidance_scale: classifier-free guidance; 1 is without.
        precision: arithmetic of denoiser and decoder, float32 or bfloat16 (autocast).
        splits: parts of the Inception score.
        spacing: of DDIM's timesteps: leading, as published, or trailing (Lin et al. 2024), which begins at the last.
        sampler: one of models.samplers.
        eta: of DDIM; 0 is deterministic.
        draws: samples of the diffusion model, or reconstructions by the first stage.
        reference: what the images are compared with: their own originals, or a file of what was kept of others.
        picture_file: the file that generated images pass through: png, which changes nothing, or jpeg95.
        weights: the moving average, ema, those of the last step, raw, or another average that the run kept.
        data_sha256: of what the samples' shards must hold, see evaluation.content; None: any, which the result tells.
        features_sha256: sha256 of the feature network's weights; None: those that its measures are named after.
        metrics: further ones, by name, each with the settings of its file in conf/metric.
        paper: published numbers of this protocol, each {"name", "frechet", "score"} and, for further metrics, "others",
            {name: number}; not part of the hash.

    Raises ValueError on values out of range.
    """

    name: str
    data: str
    features: str
    captions: int
    seed: int
    image_size: int
    sampler_steps: int
    guidance_scale: float
    precision: str = "float32"
    splits: int = 10
    spacing: Spacing = "leading"
    sampler: SamplerName = "ddim"
    eta: float = 0.0
    draws: Draws = "samples"
    reference: ReferenceKind = "originals"
    picture_file: PictureFile = "png"
    weights: str = "ema"
    data_sha256: str | None = None
    features_sha256: str | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    paper: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 1 <= self.sampler_steps <= 1000:
            raise ValueError(f"sampler_steps is {self.sampler_steps}; it must be 1 to 1000")
        if self.captions < 2 * max(1, self.splits):
            raise ValueError(
                f"captions is {self.captions}; it must be at least {2 * max(1, self.splits)}, two for each of the "
                f"{self.splits} splits: the score of one image alone is always 1"
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; it must be 0 to 2^31 - 1")
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{key} is {getattr(self, key)!r}; choose one of {', '.join(choices)}")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more")
        if self.eta < 0:
            raise ValueError(f"eta is {self.eta}; it must be 0 or more")
        for name, settings in self.metrics.items():
            if not isinstance(settings, Mapping) or "_target_" not in settings:
                raise ValueError(f"metrics.{name} is {settings!r}; give the settings of a file in conf/metric")
        if self.sampler != "ddim" and (self.eta != 0 or self.spacing != "leading"):
            raise ValueError(f"sampler is {self.sampler!r}; eta and spacing are settings of ddim, leave them out")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Protocol:
        """The protocol of a file in conf/protocol; its metrics stay settings, which its card tells.

        config: composed; as it stands in the file, it has no metrics. Raises ValueError on values out of range.
        """
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        try:
            given = {key: value for key, value in config.items() if key != "defaults"}
            protocol: Protocol = instantiate(given, _convert_="all", _recursive_=False)
        except InstantiationException as error:
            raise ValueError(str(error.__cause__ or error)) from error
        return protocol

    def image_seed(self, number: int) -> int:
        """Seed of generated image `number`, the same for any number of ranks and any batch size."""
        return (self.seed << 32) + number

    def build_sampler(self) -> Sampler:
        """The sampler with its settings."""
        from models.samplers.ddim import ddim
        from models.samplers.ddpm import ddpm
        from models.samplers.dpm_solver import dpm_solver
        from models.samplers.plms import plms

        if self.sampler == "ddim":
            return partial(ddim, eta=self.eta, spacing=self.spacing)
        return {"ddpm": ddpm, "plms": plms, "dpm_solver": dpm_solver}[self.sampler]

    def card(self) -> dict[str, Any]:
        """Every setting that a number depends on, as plain values.

        One that came later is in it only where it differs from what was always done: old hashes stay true.
        """
        card = asdict(self)
        del card["paper"]
        return {key: value for key, value in card.items() if key not in CAME_LATER or value != CAME_LATER[key]}

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the card."""
        return hashlib.sha256(json.dumps(self.card(), sort_keys=True).encode()).hexdigest()[:16]
