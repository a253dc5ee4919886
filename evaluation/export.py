"""A model for other people's code: the command `ldm export`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from evaluation.errors import EvaluationError
from evaluation.remote_run import folder_beside

if TYPE_CHECKING:
    from evaluation.run import LoadedModel


def main() -> None:
    """Entry point of `ldm export` and `python -m evaluation.export`."""
    from training import compose

    compose.command("export", run, (EvaluationError,))


def run(config: DictConfig) -> None:
    """Writes a model into config.output, in config.format."""
    if config.format not in (*FORMATS, WEIGHTS):
        raise EvaluationError(f"format={config.format}: choose one of {', '.join((*FORMATS, WEIGHTS))}")
    if config.format == WEIGHTS and config.run is None:
        raise EvaluationError(f"format={WEIGHTS}: it is for runs; give run=FOLDER")
    output = folder_beside(config.run) / "export" / config.format if config.output is None else Path(config.output)
    if output.exists():
        raise EvaluationError(f"output={output}: it exists; remove it, or give another folder")
    from evaluation.source import load_source, source_of
    from evaluation.weights_file import write_run_weights

    loaded = None if config.format == WEIGHTS else load_source(config, "cpu")
    try:
        with _appearing_whole(output) as folder:
            if loaded is None:
                write_run_weights(config.run, config.model_weights, folder / "weights.safetensors")
            else:
                FORMATS[config.format](folder, loaded)
    except (ValueError, OSError) as error:
        raise EvaluationError(f"{source_of(config)}, output={output}: {error}") from error
    print(output)


def _diffusers(folder: Path, loaded: LoadedModel) -> None:
    from evaluation.diffusers_folder import PipelineParts, write_pipeline
    from models.prediction import PREDICTIONS

    image_model = loaded.image_model
    if image_model.prediction is not PREDICTIONS["epsilon"]:
        [name] = [name for name, prediction in PREDICTIONS.items() if prediction is image_model.prediction]
        raise ValueError(f"task.prediction={name}: only epsilon can be exported")
    write_pipeline(
        folder,
        PipelineParts(
            image_model.model,
            image_model.frozen,
            image_model.first_stage,
            image_model.schedule,
            loaded.inputs,
            loaded.image_size,
        ),
    )


def _safetensors(folder: Path, loaded: LoadedModel) -> None:
    from models.autoencoder import IdentityAutoencoder
    from models.interop import compvis

    image_model = loaded.image_model
    model, schedule, autoencoder = image_model.model, image_model.schedule, image_model.first_stage.autoencoder
    conditioners = model.conditioners.by_input() | image_model.frozen.by_input()
    if len(conditioners) > 1:
        raise ValueError(f"the model has the conditioners {sorted(conditioners)}: published files have a place for one")
    checkpoint = compvis.Checkpoint(
        unet=compvis.state_dict(model.unet),
        first_stage={} if isinstance(autoencoder, IdentityAutoencoder) else compvis.state_dict(autoencoder),
        conditioner={k: v for c in conditioners.values() for k, v in compvis.conditioner_state_dict(c).items()},
        schedule={"betas": schedule.betas.float(), "alphas_cumprod": schedule.alpha_bar.float()},
        scale_factor=image_model.first_stage.scale,
    )
    compvis.save(checkpoint, folder / "model.safetensors")


FORMATS: dict[str, Callable[[Path, LoadedModel], None]] = {"diffusers": _diffusers, "safetensors": _safetensors}
"""Of models that draw."""
WEIGHTS = "weights"
"""Of any run, without building its model."""


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
