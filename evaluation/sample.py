"""The command `ldm sample`: pictures from words, or from whatever else a run's model is conditioned on."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError
from evaluation.remote_run import folder_beside

if TYPE_CHECKING:
    from torch import Tensor

    from data.inputs import Input
    from evaluation.generate import Guide
    from evaluation.run import LoadedModel
    from models.samplers import Sampler

CAPTION = "caption"
STANDARD_INPUT = "-"


def main() -> None:
    """Entry point of `ldm sample` and `python -m evaluation.sample`."""
    from training import compose

    compose.command("sample", run, (EvaluationError,), named_freely=("inputs",))


def run(config: DictConfig) -> None:
    """Draws config.images pictures for each prompt and writes them below config.output, with a grid."""
    import torch
    from hydra.utils import instantiate
    from tqdm import tqdm

    from data.errors import DataError
    from evaluation.generate import generate
    from evaluation.guides import Drawing
    from evaluation.source import load_source
    from evaluation.start_picture import read_start_picture

    if missing := sorted(OmegaConf.missing_keys(config)):
        raise EvaluationError(f"{missing[0]}=???: it has no value; give it on the command line")
    if config.images < 1:
        raise EvaluationError(f"images={config.images}: give at least one")
    loaded = load_source(config, "cuda" if torch.cuda.is_available() else "cpu")
    sampler: Sampler = instantiate(config.sampler)
    size = loaded.image_size if config.image_size is None else config.image_size
    described = descriptions(config, loaded.inputs, read_prompts(config))
    negative = negative_inputs(config, loaded.inputs)
    rows = [(description, config.seed + i) for description in described for i in range(config.images)]
    start_picture = None
    if config.image is not None:
        mask = None if config.mask is None else Path(config.mask)
        start_picture = read_start_picture(Path(config.image), mask, config.strength, size)
    elif config.mask is not None:
        raise EvaluationError(f"mask={config.mask}: name the picture that it belongs to with image=PATH")

    def progress(steps: Iterable[int]) -> Iterable[int]:
        return tqdm(steps, desc="drawing", unit="step", file=sys.stderr, disable=None)

    try:
        inputs = {name: torch.stack([kind.parse(row[name]) for row, _ in rows]) for name, kind in loaded.inputs.items()}
        guide: Guide | None = None
        if "guide" in config:
            guide = instantiate(config.guide, _convert_="all")(Drawing(loaded, size, inputs, len(rows)))
        images = generate(
            loaded.image_model,
            sampler,
            inputs,
            [seed for _, seed in rows],
            loaded.image_model.first_stage.latent_shape(size, size),
            config.steps,
            config.guidance_scale,
            config.batch_size,
            progress,
            start_picture,
            config.tile,
            guide,
            negative,
        )
    except (ValueError, DataError) as error:
        raise EvaluationError(str(error)) from error
    _write(config, loaded, rows, images)


def read_prompts(config: DictConfig) -> list[str] | None:
    """The prompts of config.prompts, or the lines of the file config.prompts_file; None where neither is given.

    Raises EvaluationError where both are, and when the file can't be read or has no prompt.
    """
    if config.prompts_file is None:
        if config.prompts is None:
            return None
        return [str(prompt) for prompt in (config.prompts if OmegaConf.is_list(config.prompts) else [config.prompts])]
    if config.prompts is not None:
        raise EvaluationError(f"prompts={config.prompts}, prompts_file={config.prompts_file}: give one of them")
    try:
        standard_input = config.prompts_file == STANDARD_INPUT
        text = sys.stdin.read() if standard_input else Path(config.prompts_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"prompts_file={config.prompts_file}: {error}; give a text file, UTF-8") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise EvaluationError(f"prompts_file={config.prompts_file}: it has no prompt; write one on each line")
    return prompts


def negative_inputs(config: DictConfig, inputs: Mapping[str, Input]) -> dict[str, Tensor] | None:
    """What guidance leads away from, by config.negative_prompt. Raises EvaluationError where that can't matter."""
    if config.negative_prompt is None:
        return None
    if CAPTION not in inputs:
        raise EvaluationError(
            f"negative_prompt={config.negative_prompt}: the model is conditioned on {sorted(inputs) or 'nothing'}, not "
            "on captions; leave it out"
        )
    if config.guidance_scale == 1:
        raise EvaluationError(
            f"negative_prompt={config.negative_prompt}: guidance_scale=1 is without guidance, which alone leads away "
            "from it; set it above 1"
        )
    return {CAPTION: inputs[CAPTION].parse(config.negative_prompt)}


def _write(config: DictConfig, loaded: LoadedModel, rows: list[tuple[dict[str, Any], int]], images: Tensor) -> None:
    """Pictures below config.output, each of which tells how it was drawn, and a grid of them; prints their paths.

    rows: description and seed of each. images: uint8 [N, 3, H, W].
    """
    from evaluation.pictures import grid, write_png

    output = folder_beside(config.run) / "pictures" if config.output is None else Path(config.output)
    common = settings_of(config, images.shape[-1]) | loaded.origin
    names: Counter[str] = Counter()
    for (description, seed), image in zip(rows, images, strict=True):
        words = " ".join(str(value) for value in description.values())
        name = f"{_file_name(words)}-seed{seed}"
        names[name] += 1
        path = output / f"{name if names[name] == 1 else f'{name}-{names[name]}'}.png"
        write_png(path, image, _told(words, {**description, "seed": seed, **common}))
        print(path)
    drawn = [{**description, "seed": seed} for description, seed in rows]
    words = "; ".join(dict.fromkeys(" ".join(str(value) for value in row.values()) for row, _ in rows))
    sheet = grid(images, columns=config.images if config.images > 1 else None)
    write_png(output / "grid.png", sheet, _told(words, {"pictures": drawn, **common}))
    print(output / "grid.png")


def settings_of(config: DictConfig, size: int) -> dict[str, Any]:
    """All that pictures of `size` pixels depend on beside their description, seed and model, as plain values."""
    sampler = {key: value for key, value in config.sampler.items() if key not in ("_target_", "_partial_")}
    settings = {"sampler": config.sampler._target_.rpartition(".")[2], **sampler, "steps": config.steps}
    settings |= {"guidance_scale": config.guidance_scale, "image_size": size}
    if config.negative_prompt is not None:
        settings["negative_prompt"] = config.negative_prompt
    if config.tile is not None:
        settings["tile"] = config.tile
    if config.image is not None:
        settings |= {"image": config.image, "mask": config.mask, "strength": config.strength}
    if "guide" in config:
        settings["guide"] = {key: value for key, value in config.guide.items() if key != "_partial_"}
    return settings


def _told(words: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """The text that a picture carries."""
    return {"Description": words, "Parameters": json.dumps(settings, ensure_ascii=False)}


def descriptions(
    config: DictConfig, inputs: Mapping[str, Input], prompts: list[str] | None = None
) -> list[dict[str, Any]]:
    """What is to be drawn: for each picture, or set of `images` pictures, a value of every input.

    prompts: short for inputs.caption=[...]. Raises EvaluationError when the run has other inputs, or when they are not
    equally many.
    """
    given: dict[str, Any] = OmegaConf.to_container(config.inputs)  # type: ignore[assignment]
    if prompts is not None:
        given[CAPTION] = prompts
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
