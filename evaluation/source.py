"""Where a model that draws or is exported comes from: a run, a folder of diffusers, or a published file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from data.errors import DataError
from evaluation.diffusers_folder import read_pipeline
from evaluation.errors import EvaluationError
from evaluation.generate import ImageModel
from evaluation.published import read_published
from evaluation.remote_run import is_url, run_here
from evaluation.run import LoadedModel, load_run
from models.prediction import PREDICTIONS


def load_source(config: DictConfig, device: torch.device | str) -> LoadedModel:
    """The model that config.run, or config["from"] with config.like, names, in evaluation mode.

    config.model_weights: which of them, as of `load_run`; a folder of diffusers has one. Raises EvaluationError when
    both or neither are given, and when what is there can't be read.
    """
    run, given = config.run, config["from"]
    if (run is None) == (given is None):
        raise EvaluationError(
            f"run={run}, from={given}: give one: run=FOLDER, from=FOLDER of diffusers, or from=FILE like=EXPERIMENT"
        )
    if run is not None:
        with run_here(run) as folder:
            loaded = load_run(folder, device, config.model_weights)
        return replace(loaded, origin=loaded.origin | {"run": run}) if is_url(run) else loaded
    path = Path(given)
    if not path.exists():
        raise EvaluationError(f"from={given}: there is no such folder or file")
    try:
        if path.is_dir():
            return _from_diffusers(path, device)
        if config.like is None:
            raise EvaluationError(f"from={given}: name the experiment whose model the file holds with like=EXPERIMENT")
        return read_published(path, config.like, config.model_weights, device)
    except (ValueError, DataError) as error:
        raise EvaluationError(f"{source_of(config)}: {error}") from error


def source_of(config: DictConfig) -> str:
    """The settings that name the source, for messages."""
    if config.run is not None:
        return f"run={config.run}"
    return f"from={config['from']}" + ("" if config.like is None else f", like={config.like}")


def _from_diffusers(folder: Path, device: torch.device | str) -> LoadedModel:
    parts = read_pipeline(folder)
    image_model = ImageModel(
        parts.model.to(device).eval().requires_grad_(False),
        parts.frozen.to(device),
        parts.first_stage.to(device),
        parts.schedule,
        PREDICTIONS["epsilon"],
        {name: given.nothing() for name, given in parts.inputs.items()},
    )
    return LoadedModel(image_model, dict(parts.inputs), parts.image_size, {"from": str(folder)})
