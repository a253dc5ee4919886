"""Pictures in the run folder: samples while training goes on, and the last look at a model.

Layout, below the run folder:
    samples/step-00000000.png          one row (or more) of pictures; its captions are in the file's text
    samples/final.json                 {"step", "sampler_steps", "guidance_scales": [...], "rows": [{"caption",
                                        "real": path, "generated": {"<scale>": path}}],
                                        "prompts": {"<prompt>": path}, "prompts_scale"}, paths below samples/
    samples/final/000-real.png         the image that the caption was written for
    samples/final/000-guidance-1.5.png the model's, one for each guidance scale
    samples/final/prompt-000.png       the model's of a prompt, for which there is no real image
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

CAPTIONS_TEXT = "Captions"


@dataclass(frozen=True)
class StepSamples:
    """A picture of samples at one training step; captions of its columns, where they are known."""

    step: int
    path: Path
    captions: list[str]
    width: int
    height: int


def write_step_samples(run_folder: Path, step: int, images: Tensor, captions: Sequence[str]) -> Path:
    """Writes samples/step-<step>.png and returns its path.

    Args:
        run_folder: the run.
        step: training step of the weights.
        images: uint8 [rows * N, 3, H, W], row by row.
        captions: N captions, one for each column.

    Raises ValueError when the images do not fill whole rows.
    """
    from evaluation.pictures import grid, write_png

    if not captions or len(images) % len(captions):
        raise ValueError(f"{len(images)} images do not fill rows of {len(captions)} captions")
    path = step_samples_path(run_folder, step)
    write_png(path, grid(images, columns=len(captions)), {CAPTIONS_TEXT: json.dumps(list(captions))})
    return path


def step_samples_path(run_folder: Path, step: int) -> Path:
    """Where the pictures of a step are, if there are any."""
    return run_folder / "samples" / f"step-{step:08d}.png"


def captions_of(path: Path) -> list[str]:
    """The captions of a step's pictures, one for each column."""
    with Image.open(path) as image:
        return _captions(image)


def _captions(image: Image.Image) -> list[str]:
    found: list[str] = json.loads(getattr(image, "text", {}).get(CAPTIONS_TEXT, "[]"))
    return found


def read_step_samples(run_folder: Path) -> list[StepSamples]:
    """The pictures of samples in the run folder, in order of steps."""
    found = []
    for path in (run_folder / "samples").glob("step-*.png"):
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            with Image.open(path) as image:
                found.append(StepSamples(int(number), path, _captions(image), image.width, image.height))
    return sorted(found, key=lambda samples: samples.step)


@dataclass(frozen=True)
class Row:
    """One caption with its real picture and a generated picture for each guidance scale."""

    caption: str
    real: Path
    generated: dict[float, Path]


@dataclass(frozen=True)
class Gallery:
    """What `write_final_samples` wrote. prompts: the pictures of prompts, all at the guidance scale prompts_scale."""

    step: int
    sampler_steps: int
    guidance_scales: list[float]
    rows: list[Row]
    prompts: dict[str, Path]
    prompts_scale: float


def write_final_samples(
    run_folder: Path,
    captions: Sequence[str],
    real: Tensor,
    generated: Mapping[float, Tensor],
    step: int,
    sampler_steps: int,
    prompts: Mapping[str, Tensor],
    prompts_scale: float,
) -> Path:
    """Writes the pictures and then `samples/final.json`, whose path it returns.

    Args:
        run_folder: the run.
        captions: N held-out captions.
        real: their images, uint8 [N, 3, H, W].
        generated: guidance scale -> images made from the captions, uint8 [N, 3, H, W].
        step: training step of the weights.
        sampler_steps: steps of the sampler.
        prompts: prompt -> the image made from it, uint8 [3, H, W]; empty for none.
        prompts_scale: guidance scale that those were made at.

    Raises ValueError when the numbers of captions and images differ.
    """
    from evaluation.pictures import write_png

    for what, images in (("real", real), *((f"guidance {s:g}", x) for s, x in generated.items())):
        if len(images) != len(captions):
            raise ValueError(f"{len(captions)} captions but {len(images)} images ({what}); give one for each caption")
    samples = run_folder / "samples"
    rows = []
    for i, caption in enumerate(captions):
        paths = {"real": f"final/{i:03d}-real.png"}
        write_png(samples / paths["real"], real[i], {"Description": caption})
        for scale, images in generated.items():
            paths[f"{scale:g}"] = f"final/{i:03d}-guidance-{scale:g}.png"
            write_png(samples / paths[f"{scale:g}"], images[i], {"Description": caption})
        rows.append({"caption": caption, "real": paths.pop("real"), "generated": paths})
    prompted = {prompt: f"final/prompt-{i:03d}.png" for i, prompt in enumerate(prompts)}
    for prompt, path in prompted.items():
        write_png(samples / path, prompts[prompt], {"Description": prompt})
    listing = samples / "final.json"
    part = listing.with_name(listing.name + ".part")
    content = {
        "step": step,
        "sampler_steps": sampler_steps,
        "guidance_scales": [float(scale) for scale in generated],
        "rows": rows,
        "prompts": prompted,
        "prompts_scale": prompts_scale,
    }
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    part.replace(listing)
    return listing


def read_final_samples(run_folder: Path) -> Gallery | None:
    """What lies in the run folder, or None when nothing was written."""
    samples = run_folder / "samples"
    listing = samples / "final.json"
    if not listing.exists():
        return None
    content = json.loads(listing.read_text())
    rows = [
        Row(
            row["caption"],
            samples / row["real"],
            {float(scale): samples / path for scale, path in row["generated"].items()},
        )
        for row in content["rows"]
    ]
    # A run of before there were prompts has none.
    prompts = {prompt: samples / path for prompt, path in content.get("prompts", {}).items()}
    scale = content.get("prompts_scale", 1.0)
    return Gallery(content["step"], content["sampler_steps"], content["guidance_scales"], rows, prompts, scale)
