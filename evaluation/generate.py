"""Images from what a model is conditioned on: the one way in which commands, monitors and protocols draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.pictures import to_uint8
from evaluation.start_picture import StartPicture
from models.conditioners import Condition, Conditioners
from models.guidance import classifier_free
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.prediction import Denoiser, Estimate, Prediction, as_denoiser
from models.samplers import Progress, Sampler, unchanged
from models.schedule import NoiseSchedule

Guide = Callable[[Denoiser, slice], Denoiser]
"""(the denoiser of some of the images, which of them) -> the denoiser that is led."""


@dataclass(frozen=True)
class ImageModel:
    """All that turns noise into images, on one device.

    model: denoiser and the conditioners trained with it. frozen: the other conditioners. first_stage: latents to
    images. schedule, prediction: the noise, and the meaning of the denoiser's output, that it was trained with.
    nothing: by name, the input that says nothing [...], from which guidance leads away.
    """

    model: LatentDiffusion
    frozen: Conditioners
    first_stage: FirstStage
    schedule: NoiseSchedule
    prediction: Prediction
    nothing: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def condition(self, inputs: Mapping[str, Tensor]) -> Condition:
        """What all conditioners make of inputs, each [B, ...]."""
        inputs = {name: values.to(self.device) for name, values in inputs.items()}
        return self.model.condition(inputs, self.frozen(inputs))

    def unconditional(self, negative: Mapping[str, Tensor] | None = None) -> Condition:
        """The condition of one sample of which nothing is said, but what `negative` says by name, each [...]."""
        return self.condition({name: values[None] for name, values in {**self.nothing, **(negative or {})}.items()})


@torch.no_grad()
def generate(
    image_model: ImageModel,
    sampler: Sampler,
    inputs: Mapping[str, Tensor],
    seeds: list[int],
    latent_shape: tuple[int, int, int],
    steps: int,
    guidance_scale: float,
    batch_size: int,
    progress: Progress = unchanged,
    start_picture: StartPicture | None = None,
    tile: int | None = None,
    guide: Guide | None = None,
    negative: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Draws one image for each row of inputs with classifier-free guidance.

    All noise of image i is drawn for seeds[i] alone, so it is the same in any batch, to rounding.

    With tiles its memory, beyond the models' and the result's, is at most that of the denoiser's pass over a batch, or
    that of decoding one tile and two float32 images for each of a batch, whichever is more. It grows with the number of
    pixels: attention never holds a matrix of weights.

    Args:
        image_model: put into evaluation mode meanwhile.
        sampler: one of models.samplers.
        inputs: what the conditioners read, each [N, ...], by name; {} for an unconditional model.
        seeds: N numbers, 0 <= seed < 2^63.
        latent_shape: (C, H / f, W / f).
        steps: of the sampler.
        guidance_scale: 1 is without guidance.
        batch_size: images at a time.
        progress: wraps the sampler's steps of each batch.
        start_picture: what every image begins from; None: from noise alone.
        tile: side of the tiles that latents are decoded in, in latent pixels, which bounds memory; None: whole.
        guide: what leads the denoiser beside the inputs; one of evaluation.guides.
        negative: by name, inputs [...] from which guidance leads away instead of from what says nothing.

    Returns uint8 [N, 3, H, W] on the CPU. Raises ValueError when inputs and seeds differ in number, when
    there are none, and when batch_size < 1; EvaluationError, naming sampler, step and seeds, when numbers become
    infinite or NaN on the way.
    Source: LDM Sec. 3.3; guidance: Ho and Salimans, "Classifier-Free Diffusion Guidance", Eq. 6.
    """
    rows_of = {name: len(values) for name, values in inputs.items()}
    if not seeds or any(count != len(seeds) for count in rows_of.values()):
        raise ValueError(f"rows of inputs: {rows_of}, and {len(seeds)} seeds; give one seed for each, at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    model, first_stage, schedule = image_model.model, image_model.first_stage, image_model.schedule
    was_training = model.training
    model.eval()
    images = []
    try:
        unconditional = image_model.unconditional(negative)
        known = None if start_picture is None else start_picture.encode(first_stage, steps)
        for first in range(0, len(seeds), batch_size):
            rows = slice(first, first + batch_size)
            conditional = image_model.condition({name: values[rows] for name, values in inputs.items()})
            network = classifier_free(model.remembering(), conditional, unconditional, guidance_scale)
            denoiser = as_denoiser(network, image_model.prediction, schedule)
            if guide is not None:
                denoiser = guide(denoiser, rows)
            noise = _Noise(seeds[rows], latent_shape, image_model.device)
            z_T, start = noise.draw(), None  # [B, C, h, w]
            if known is not None:
                denoiser, start = known.inpainted(denoiser, z_T, schedule), known.start(z_T)
            watched = _Watched(denoiser)
            z_0 = sampler(watched, z_T, schedule, steps, noise, progress, start)  # [B, C, h, w]
            watched.check(z_0, sampler, seeds[rows])
            if known is not None:
                z_0 = known.pasted(z_0)
            images.append(to_uint8(first_stage.decode(z_0, tile)).cpu())  # [B, 3, H, W]
    finally:
        model.train(was_training)
    return torch.cat(images)


class _Noise:
    """Standard normal float32 for each seed, draw after draw; on the CPU, so that every device has the same."""

    def __init__(self, seeds: list[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def draw(self) -> Tensor:
        """The next [B, C, h, w]."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators]).to(self._device)

    def __call__(self, step: int) -> Tensor:
        """As a sampler asks for it."""
        return self.draw()


class _Watched:
    """A denoiser that notes where its estimates stop being finite, and makes no step wait for the device to tell."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._finite: list[Tensor] = []  # for each call bool [B]
        self._times: list[Tensor] = []  # for each call int64 [B]

    def __call__(self, z_t: Tensor, t: Tensor) -> Estimate:
        estimate = self._denoiser(z_t, t)
        self._finite.append((estimate.z_0 + estimate.eps).isfinite().flatten(1).all(1))
        self._times.append(t)
        return estimate

    def check(self, z_0: Tensor, sampler: Sampler, seeds: list[int]) -> None:
        """Raises EvaluationError where any estimate, or the z_0 [B, C, h, w] that came of them, isn't finite."""
        finite = torch.stack([*self._finite, z_0.isfinite().flatten(1).all(1)]).cpu()  # [calls + 1, B]
        if finite.all():
            return
        call = int((~finite).any(1).nonzero()[0])
        where = f"after its {call} evaluations"
        if call < len(self._times):
            where = f"in evaluation {call + 1} of {len(self._times)}, at timestep {int(self._times[call][0])}"
        name = getattr(sampler, "func", sampler).__name__  # type: ignore[union-attr]
        bad = [seed for seed, good in zip(seeds, finite[call].tolist(), strict=True) if not good]
        raise EvaluationError(
            f"sampler {name}: infinite numbers, or none at all (NaN), {where}, for seeds {bad}; check the run's "
            "weights, and take smaller guidance scales"
        )
