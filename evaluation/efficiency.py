"""The command `ldm efficiency`: what models cost in training and sampling, beside how good they are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from torch import nn

    from evaluation.run import LoadedRun
    from models.samplers import Sampler
    from training.starts import Start

DAY = 86400.0


def main() -> None:
    """Entry point of `ldm efficiency` and `python -m evaluation.efficiency`."""
    from training import compose

    compose.command("efficiency", run, (EvaluationError,))


def run(config: DictConfig) -> None:
    """Prints the table of all runs, and writes it where it is asked for."""
    import torch
    from hydra.utils import instantiate

    from evaluation.results import write_text
    from evaluation.table import table

    settings = _checked(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [(name, efficiency(Path(name), instantiate(config.sampler), settings, device)) for name in settings.runs]
    where = device_name(device)
    print(table([(Path(name).name, row) for name, row in rows]))
    print(
        f"\nsampling: {settings.images} images on one {where}, {settings.batch_size} at a time, guidance "
        f"{settings.guidance_scale:g}, decoding included. A rank is a GPU, where a run had any."
    )
    if config.output is None:
        return
    output = Path(config.output)
    about = {"device": where, **vars(settings)}
    found = [{"run": name, **row} for name, row in rows]
    write_text(output / "efficiency.json", json.dumps({**about, "rows": found}, indent=1, ensure_ascii=False) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in found for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_text(output / "efficiency.csv", text.getvalue())
    print(output / "efficiency.csv")


@dataclass(frozen=True)
class Settings:
    """How sampling is timed. sampler_steps: each of them."""

    runs: list[str]
    model_weights: str
    sampler_steps: list[int]
    guidance_scale: float
    images: int
    batch_size: int


def efficiency(folder: Path, sampler: Sampler, settings: Settings, device: Any) -> dict[str, float | None]:
    """A run's row, by the names of its columns; None for what its folder doesn't tell.

    Raises EvaluationError where there is no run, or none that can draw.
    """
    from evaluation.results import read_results
    from evaluation.run import load_run
    from evaluation.table import columns

    loaded = load_run(folder, device, settings.model_weights)
    image_model = loaded.image_model
    row: dict[str, float | None] = {
        "trained parameters (M)": _millions(image_model.model),
        "others (M)": _millions(image_model.first_stage) + _millions(image_model.frozen),
        **training_cost(folder),
    }
    for steps in settings.sampler_steps:
        row[f"sampling, {steps} steps (images/s)"] = sampling_speed(loaded, sampler, steps, settings)
    for result in read_results(folder):  # of several steps the last one's stay
        protocol = result.protocol["name"]
        row |= {f"{name}, {protocol}": value for name, value in columns(result.measured).items()}
    return row


def training_cost(folder: Path) -> dict[str, float | None]:
    """What a run's training took, by what it logged: images seen, images/s of the median step, and GPU-days; a rank is
    a GPU, or a process on CPUs."""
    import numpy as np

    from evaluation.run_metrics import METRICS, read_metrics
    from training.starts import read_starts

    _, metrics = read_metrics(folder / METRICS)
    seen, speed = metrics.get("images_seen"), metrics.get("speed/images_per_second")
    return {
        "images seen (M)": None if seen is None else float(seen.values.max()) / 1e6,
        "training (images/s)": None if speed is None else float(np.median(speed.values)),
        "training (GPU-days)": rank_days(read_starts(folder), metrics),
    }


def rank_days(starts: Sequence[Start], metrics: Mapping[str, Any]) -> float | None:
    """Days that ranks spent in steps: those that the run stands on, without start-ups, waits for it and lost steps.

    metrics: series by name, with the `time` of each step. None where the run doesn't say how many ranks there were.
    """
    import numpy as np

    seconds, times = metrics.get("speed/step_seconds"), metrics.get("time")
    if not starts or seconds is None or times is None:
        return None
    _, of_seconds, of_times = np.intersect1d(seconds.steps, times.steps, return_indices=True)
    begun = np.array([start.time for start in starts])
    ranks = np.array([start.ranks for start in starts])
    start = np.searchsorted(begun, times.values[of_times], side="right") - 1
    return float((seconds.values[of_seconds] * ranks[start.clip(min=0)]).sum() / DAY)


def sampling_speed(loaded: LoadedRun, sampler: Sampler, steps: int, settings: Settings) -> float:
    """Images a second that are drawn and decoded, after a first batch that isn't counted.

    They are drawn of inputs that say nothing; to the model these are as much work as any others.
    """
    import time

    import torch

    from evaluation.generate import generate

    shape = loaded.image_model.first_stage.latent_shape(loaded.image_size, loaded.image_size)

    def draw(count: int) -> None:
        inputs = {name: torch.stack([kind.nothing()] * count) for name, kind in loaded.inputs.items()}
        scale, size = settings.guidance_scale, settings.batch_size
        generate(loaded.image_model, sampler, inputs, list(range(count)), shape, steps, scale, size)  # ends on the host

    draw(settings.batch_size)
    started = time.perf_counter()
    draw(settings.images)
    return settings.images / (time.perf_counter() - started)


def _millions(module: nn.Module) -> float:
    """Of parameters."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def device_name(device: Any) -> str:
    """For people."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _checked(config: DictConfig) -> Settings:
    """The settings. Raises EvaluationError for values that can't be."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise EvaluationError(f"{missing[0]}=???: it has no value; give it on the command line")
    given: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    for name in ("runs", "sampler_steps"):
        given[name] = given[name] if isinstance(given[name], list) else [given[name]]
        if not given[name] or len(set(given[name])) < len(given[name]):
            raise EvaluationError(f"{name}={given[name]}: give at least one, and each once")
    for name in ("sampler_steps", "images", "batch_size"):
        values = given[name] if isinstance(given[name], list) else [given[name]]
        if any(type(value) is not int or value < 1 for value in values):
            raise EvaluationError(f"{name}={given[name]}: give whole numbers of at least 1")
    return Settings(**{name: given[name] for name in Settings.__dataclass_fields__})


if __name__ == "__main__":
    main()
