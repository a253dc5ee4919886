"""A run's model for other people's code: the command `ldm export`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from evaluation.run import LoadedRun


def main() -> None:
    """Entry point of `ldm export` and `python -m evaluation.export`."""
    from training import compose

    compose.command("export", run, (EvaluationError,))


def run(config: DictConfig) -> None:
    """Writes the newest complete checkpoint of a run into config.output, in config.format."""
    if config.format not in FORMATS:
        raise EvaluationError(f"format={config.format}: choose one of {', '.join(FORMATS)}")
    output = Path(config.output)
    if output.exists():
        raise EvaluationError(f"output={output}: it exists; remove it, or give another folder")
    from evaluation.run import load_run

    loaded = load_run(Path(config.run), "cpu", "ema" if config.ema else "raw")
    try:
        with _appearing_whole(output) as folder:
            FORMATS[config.format](folder, loaded)
    except (ValueError, OSError) as error:
        raise EvaluationError(f"run={config.run}, output={output}: {error}") from error
    print(output)


def _diffusers(folder: Path, loaded: LoadedRun) -> None:
    from data.inputs.caption import Caption
    from data.tokenizer import BertTokenizer
    from evaluation.diffusers_folder import CAPTION, PipelineParts, write_pipeline
    from models.prediction import PREDICTIONS

    image_model, caption = loaded.image_model, loaded.inputs.get(CAPTION)
    if image_model.prediction is not PREDICTIONS["epsilon"]:
        raise ValueError(f"task.prediction={loaded.config.task.prediction}: only epsilon can be exported")
    if not isinstance(caption, Caption) or not isinstance(caption.tokenizer, BertTokenizer):
        raise ValueError(f"inputs are {sorted(loaded.inputs)}: only captions through a BertTokenizer can be exported")
    parts = PipelineParts(image_model.model, image_model.first_stage, image_model.schedule, caption.tokenizer)
    write_pipeline(folder, parts, loaded.image_size)


def _safetensors(folder: Path, loaded: LoadedRun) -> None:
    from evaluation.diffusers_folder import caption_transformer, trained_autoencoder
    from models.interop import compvis

    image_model, schedule = loaded.image_model, loaded.image_model.schedule
    conditioner = caption_transformer(image_model.model)
    text = {} if conditioner is None else compvis.state_dict(conditioner)
    checkpoint = compvis.Checkpoint(
        unet=compvis.state_dict(image_model.model.unet),
        first_stage=compvis.state_dict(trained_autoencoder(image_model.first_stage)),
        conditioner={f"transformer.{name}": weights for name, weights in text.items()},
        schedule={"betas": schedule.betas.float(), "alphas_cumprod": schedule.alpha_bar.float()},
        scale_factor=image_model.first_stage.scale,
    )
    compvis.save(checkpoint, folder / "model.safetensors")


FORMATS: dict[str, Callable[[Path, LoadedRun], None]] = {"diffusers": _diffusers, "safetensors": _safetensors}


@contextmanager
def _appearing_whole(output: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `output` when all is written; after an error nothing is left of it."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    main()
