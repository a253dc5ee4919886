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
    from data.tokenizer import BertTokenizer
    from evaluation.diffusers_folder import PipelineParts, write_pipeline

    if not isinstance(loaded.tokenizer, BertTokenizer):
        raise ValueError(f"tokenizer is {type(loaded.tokenizer).__name__}: only a BertTokenizer can be exported")
    parts = PipelineParts(loaded.model, loaded.first_stage, loaded.schedule, loaded.tokenizer)
    write_pipeline(folder, parts, loaded.image_size)


def _safetensors(folder: Path, loaded: LoadedRun) -> None:
    from models.conditioners.text_transformer import TextTransformer
    from models.interop import compvis

    conditioner = loaded.model.conditioner
    if conditioner is not None and not isinstance(conditioner, TextTransformer):
        raise ValueError(f"model.conditioner is {type(conditioner).__name__}: only a TextTransformer can be exported")
    text = {} if conditioner is None else compvis.state_dict(conditioner)
    checkpoint = compvis.Checkpoint(
        unet=compvis.state_dict(loaded.model.unet),
        first_stage=compvis.state_dict(loaded.first_stage.autoencoder),
        conditioner={f"transformer.{name}": weights for name, weights in text.items()},
        schedule={"betas": loaded.schedule.betas.float(), "alphas_cumprod": loaded.schedule.alpha_bar.float()},
        scale_factor=loaded.first_stage.scale,
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
