"""What exactly is measured: two numbers can be compared when their protocols have the same hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PRECISIONS = ("float32", "bfloat16")
SPACINGS = ("leading", "trailing")


@dataclass(frozen=True)
class Protocol:
    """An evaluation of text-to-image sampling.

    Args:
        name: short name, part of file names.
        data: the captions and images that are meant, in words.
        features: feature network, see evaluation.features.load_features.
        captions: number of captions, one image generated for each.
        seed: picks the captions; seed of image n is seed * 2^32 + n.
        image_size: height and width of generated and real images in pixels.
        sampler_steps: DDIM steps, eta 0.
        spacing: of DDIM's timesteps: leading, as published, or trailing (Lin et al. 2024), which begins at the last.
        guidance_scale: classifier-free guidance; 1 is without.
        precision: arithmetic of denoiser and decoder, float32 or bfloat16 (autocast).
        splits: parts of the Inception score.
        paper: published numbers of this protocol, each {"name", "frechet", "score"}; not part of the hash.

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
    spacing: Literal["leading", "trailing"] = "leading"
    paper: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 1 <= self.sampler_steps <= 1000:
            raise ValueError(f"sampler_steps is {self.sampler_steps}; it must be 1 to 1000")
        if self.captions < max(2, self.splits):
            raise ValueError(f"captions is {self.captions}; it must be at least {max(2, self.splits)}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; it must be 0 to 2^31 - 1")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if self.spacing not in SPACINGS:
            raise ValueError(f"spacing is {self.spacing!r}; choose one of {', '.join(SPACINGS)}")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more")

    def image_seed(self, number: int) -> int:
        """Seed of generated image `number`, the same for any number of ranks and any batch size."""
        return (self.seed << 32) + number

    def card(self) -> dict[str, Any]:
        """Every setting that a number depends on, as plain values.

        One that came later is in it only where it differs from what was always done: old hashes stay true.
        """
        always = {"spacing": "leading"}
        return {k: v for k, v in asdict(self).items() if k != "paper" and not (k in always and v == always[k])}

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the card."""
        return hashlib.sha256(json.dumps(self.card(), sort_keys=True).encode()).hexdigest()[:16]
