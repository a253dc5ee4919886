"""Images from words: `generate` for every caller, and the command `ldm sample`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from evaluation.start_picture import StartPicture
    from models.latent_diffusion import FirstStage, LatentDiffusion
    from models.prediction import Prediction
    from models.samplers import Progress, Sampler
    from models.schedule import NoiseSchedule


def generate(
    model: LatentDiffusion,
    first_stage: FirstStage,
    schedule: NoiseSchedule,
    prediction: Prediction,
    sampler: Sampler,
    tokens: Tensor,
    unconditional_tokens: Tensor,
    seeds: list[int],
    latent_shape: tuple[int, int, int],
    steps: int,
    guidance_scale: float,
    batch_size: int,
    progress: Progress | None = None,
    start_picture: StartPicture | None = None,
) -> Tensor:
    """Samples one image for each row of tokens with classifier-free guidance.

    All noise of image i is drawn for seeds[i] alone, so it is the same in any batch, to rounding.

    Args:
        model: denoiser and conditioner; its weights' device is where sampling runs.
        first_stage: latents to images, on the same device.
        schedule, prediction: the noise schedule, and the meaning of the output, that the model was trained with.
        sampler: one of models.samplers.
        tokens: int64 [N, L].
        unconditional_tokens: tokens of the empty caption, int64 [1, L].
        seeds: N numbers, 0 <= seed < 2^63.
        latent_shape: (C, H / f, W / f).
        steps: of the sampler.
        guidance_scale: 1 is without guidance.
        batch_size: images at a time.
        progress: wraps the sampler's steps of each batch; None: nothing is shown.
        start_picture: what every image begins from; None: from noise alone.

    Returns uint8 [N, 3, H, W] on the CPU. Raises ValueError when tokens and seeds differ in number, when
    there are none, when batch_size < 1, and when the model has no conditioner.
    Source: LDM Sec. 3.3; guidance: Ho and Salimans, "Classifier-Free Diffusion Guidance", Eq. 6.
    """
    import torch

    from evaluation.pictures import to_uint8
    from models.guidance import classifier_free
    from models.prediction import as_denoiser
    from models.samplers import unchanged

    if len(tokens) != len(seeds) or not seeds:
        raise ValueError(f"{len(tokens)} rows of tokens and {len(seeds)} seeds; give one seed for each, at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    images = []
    try:
        with torch.no_grad():
            unconditional = model.condition(unconditional_tokens.to(device))  # [1, L, D]
            known = None if start_picture is None else start_picture.encode(first_stage, steps)
            for first in range(0, len(seeds), batch_size):
                rows = slice(first, first + batch_size)
                noise = _Noise(seeds[rows], latent_shape, device)
                context = model.condition(tokens[rows].to(device))  # [B, L, D]
                if context is None or unconditional is None:
                    raise ValueError("the model has no conditioner; generate samples from captions")
                network = classifier_free(model.unet, context, unconditional, guidance_scale)
                denoiser = as_denoiser(network, prediction, schedule)
                z_T, start = noise.draw(), None  # [B, C, h, w]
                if known is not None:
                    denoiser, start = known.inpainted(denoiser, z_T, schedule), known.start(z_T)
                z_0 = sampler(denoiser, z_T, schedule, steps, noise, progress or unchanged, start)  # [B, C, h, w]
                if known is not None:
                    z_0 = known.pasted(z_0)
                images.append(to_uint8(first_stage.decode(z_0)).cpu())  # [B, 3, H, W]
    finally:
        model.train(was_training)
    return torch.cat(images)


class _Noise:
    """Standard normal float32 for each seed, draw after draw; on the CPU, so that every device has the same."""

    def __init__(self, seeds: list[int], shape: tuple[int, int, int], device: torch.device) -> None:
        import torch

        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def draw(self) -> Tensor:
        """The next [B, C, h, w]."""
        import torch

        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators]).to(self._device)

    def __call__(self, step: int) -> Tensor:
        """As a sampler asks for it."""
        return self.draw()


def main() -> None:
    """Entry point of `ldm sample` and `python -m evaluation.sample`."""
    from training import compose

    compose.command("sample", run, (EvaluationError,))


def run(config: DictConfig) -> None:
    """Draws config.images pictures for each prompt and writes them below config.output, with a grid."""
    import torch
    from hydra.utils import instantiate
    from tqdm import tqdm

    from evaluation.pictures import grid, write_png
    from evaluation.run import load_run
    from evaluation.start_picture import read_start_picture

    prompts = OmegaConf.to_container(config.prompts) if OmegaConf.is_list(config.prompts) else [config.prompts]
    assert isinstance(prompts, list)
    prompts = [str(prompt) for prompt in prompts]
    if not prompts or config.images < 1:
        raise EvaluationError(f"prompts={prompts}, images={config.images}: give at least one prompt and one image")
    weights = "ema" if config.ema else "raw"
    loaded = load_run(Path(config.run), "cuda" if torch.cuda.is_available() else "cpu", weights)
    sampler: Sampler = instantiate(config.sampler)
    size = loaded.image_size if config.image_size is None else config.image_size
    start_picture = None
    if config.image is not None:
        mask = None if config.mask is None else Path(config.mask)
        start_picture = read_start_picture(Path(config.image), mask, config.strength, size)
    elif config.mask is not None:
        raise EvaluationError(f"mask={config.mask}: name the picture that it belongs to with image=PATH")
    rows = [(prompt, config.seed + i) for prompt in prompts for i in range(config.images)]

    def progress(steps: Iterable[int]) -> Iterable[int]:
        return tqdm(steps, desc="drawing", unit="step", file=sys.stderr, disable=None)

    try:
        images = generate(
            loaded.model,
            loaded.first_stage,
            loaded.schedule,
            loaded.prediction,
            sampler,
            loaded.tokenizer([prompt for prompt, _ in rows]),
            loaded.tokenizer([""]),
            [seed for _, seed in rows],
            loaded.first_stage.latent_shape(size, size),
            config.steps,
            config.guidance_scale,
            config.batch_size,
            progress,
            start_picture,
        )
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    output = Path(config.output)
    for (prompt, seed), image in zip(rows, images, strict=True):
        settings = {"prompt": prompt, "seed": seed, "steps": config.steps, "guidance_scale": config.guidance_scale}
        settings |= {"sampler": config.sampler._target_.rpartition(".")[2]}
        if config.image is not None:
            settings |= {"image": config.image, "mask": config.mask, "strength": config.strength}
        settings |= {"run": str(config.run), "training_step": loaded.step, "weights": weights}
        path = output / f"{_file_name(prompt)}-seed{seed}.png"
        write_png(path, image, {"Description": prompt, "Parameters": json.dumps(settings, ensure_ascii=False)})
        print(path)
    write_png(output / "grid.png", grid(images, columns=config.images if config.images > 1 else None))
    print(output / "grid.png")


def _file_name(prompt: str) -> str:
    """The prompt's words, as far as they make a short file name on any system."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt"


if __name__ == "__main__":
    main()
