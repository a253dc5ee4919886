"""Images from words: `generate` for every caller, and the command `ldm sample`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from data.inputs import Input
    from models.conditioners import Condition, Conditioners
    from models.latent_diffusion import FirstStage, LatentDiffusion
    from models.samplers import Progress, Sampler
    from models.schedule import NoiseSchedule


def generate(
    model: LatentDiffusion,
    first_stage: FirstStage,
    schedule: NoiseSchedule,
    sampler: Sampler,
    frozen: Conditioners,
    inputs: Mapping[str, Tensor],
    nothing: Mapping[str, Tensor],
    seeds: list[int],
    latent_shape: tuple[int, int, int],
    steps: int,
    guidance_scale: float,
    batch_size: int,
    progress: Progress | None = None,
) -> Tensor:
    """Samples one image for each row of inputs with classifier-free guidance.

    All noise of image i is drawn for seeds[i] alone, so it is the same in any batch, to rounding.

    Args:
        model: denoiser and conditioner; its weights' device is where sampling runs.
        first_stage: latents to images, on the same device.
        schedule: the noise schedule that the model was trained with.
        sampler: one of models.samplers.
        frozen: the conditioners that were not trained along with the model, on the same device.
        inputs: what all conditioners read, each [N, ...], by name.
        nothing: the inputs that say nothing, each [...].
        seeds: N numbers, 0 <= seed < 2^63.
        latent_shape: (C, H / f, W / f).
        steps: of the sampler.
        guidance_scale: 1 is without guidance.
        batch_size: images at a time.
        progress: wraps the sampler's steps of each batch; None: nothing is shown.

    Returns uint8 [N, 3, H, W] on the CPU. Raises ValueError when inputs and seeds differ in number, when
    there are none, and when batch_size < 1.
    Source: LDM Sec. 3.3; guidance: Ho and Salimans, "Classifier-Free Diffusion Guidance", Eq. 6.
    """
    import torch

    from evaluation.pictures import to_uint8
    from models.guidance import classifier_free
    from models.samplers import unchanged

    rows_of = {name: len(values) for name, values in inputs.items()}
    if not seeds or any(count != len(seeds) for count in rows_of.values()):
        raise ValueError(f"rows of inputs: {rows_of}, and {len(seeds)} seeds; give one seed for each, at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    images = []
    try:
        with torch.no_grad():

            def condition(read: Mapping[str, Tensor]) -> Condition:
                read = {name: values.to(device) for name, values in read.items()}
                return model.condition(read, frozen(read))

            unconditional = condition({name: value[None] for name, value in nothing.items()})  # of one sample
            for start in range(0, len(seeds), batch_size):
                rows = slice(start, start + batch_size)
                noise = _Noise(seeds[rows], latent_shape, device)
                conditional = condition({name: values[rows] for name, values in inputs.items()})  # of B samples
                denoiser = classifier_free(model.denoise, conditional, unconditional, guidance_scale)
                z_0 = sampler(denoiser, noise.draw(), schedule, steps, noise, progress or unchanged)  # [B, C, h, w]
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

    from data.errors import DataError
    from evaluation.pictures import grid, write_png
    from evaluation.run import load_run

    if config.images < 1:
        raise EvaluationError(f"images={config.images}: give at least one")
    weights = "ema" if config.ema else "raw"
    loaded = load_run(Path(config.run), "cuda" if torch.cuda.is_available() else "cpu", weights)
    sampler: Sampler = instantiate(config.sampler)
    size = loaded.image_size if config.image_size is None else config.image_size
    described = descriptions(config, loaded.inputs)
    rows = [(description, config.seed + i) for description in described for i in range(config.images)]

    def progress(steps: Iterable[int]) -> Iterable[int]:
        return tqdm(steps, desc="drawing", unit="step", file=sys.stderr, disable=None)

    try:
        images = generate(
            loaded.model,
            loaded.first_stage,
            loaded.schedule,
            sampler,
            loaded.frozen,
            {name: torch.stack([kind.parse(row[name]) for row, _ in rows]) for name, kind in loaded.inputs.items()},
            {name: kind.nothing() for name, kind in loaded.inputs.items()},
            [seed for _, seed in rows],
            loaded.first_stage.latent_shape(size, size),
            config.steps,
            config.guidance_scale,
            config.batch_size,
            progress,
        )
    except (ValueError, DataError) as error:
        raise EvaluationError(str(error)) from error
    output = Path(config.output)
    for (description, seed), image in zip(rows, images, strict=True):
        settings = {**description, "seed": seed, "steps": config.steps, "guidance_scale": config.guidance_scale}
        settings |= {"sampler": config.sampler._target_.rpartition(".")[2]}
        settings |= {"run": str(config.run), "training_step": loaded.step, "weights": weights}
        words = " ".join(str(value) for value in description.values())
        path = output / f"{_file_name(words)}-seed{seed}.png"
        write_png(path, image, {"Description": words, "Parameters": json.dumps(settings, ensure_ascii=False)})
        print(path)
    write_png(output / "grid.png", grid(images, columns=config.images if config.images > 1 else None))
    print(output / "grid.png")


def descriptions(config: DictConfig, inputs: Mapping[str, Input]) -> list[dict[str, Any]]:
    """What is to be drawn: for each picture, or set of `images` pictures, a value of every input.

    prompts=[...] is short for inputs.caption=[...]. Raises EvaluationError when the run has other inputs, or when
    they are not equally many.
    """
    given: dict[str, Any] = OmegaConf.to_container(config.inputs)  # type: ignore[assignment]
    if config.prompts is not None:
        prompts = OmegaConf.to_container(config.prompts) if OmegaConf.is_list(config.prompts) else config.prompts
        given["caption"] = prompts
    if given.keys() != inputs.keys():
        raise EvaluationError(
            f"inputs={sorted(given)}: the run's model is conditioned on {sorted(inputs) or 'nothing'}; give a list for "
            "each, as prompts=[...] or inputs.NAME=[...]"
        )
    lists = {name: values if isinstance(values, list) else [values] for name, values in given.items()}
    counts = {name: len(values) for name, values in lists.items()}
    if 0 in counts.values() or len(set(counts.values())) > 1:
        raise EvaluationError(f"values of inputs: {counts}; give equally many for each, at least one")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)] if lists else [{}]


def _file_name(words: str) -> str:
    """Words as far as they make a short file name on any system."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:60] or "picture"


if __name__ == "__main__":
    main()
