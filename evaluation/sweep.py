"""Guidance scales and steps of the sampler, each measured: `ldm evaluate sweep.guidance_scales=[...]`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError
from evaluation.pictures import grid, write_png
from evaluation.protocol import Protocol
from evaluation.results import FOLDER, Result, read_result, write_result_file, write_text
from evaluation.run_measurement import RunMeasurement
from evaluation.scatter import pareto_front
from evaluation.sweep_page import write_page
from evaluation.table import columns, published, table
from evaluation.wandb_results import log_sweep
from training.distributed import Distributed

CLIP_SCORE = "CLIP score"


@dataclass(frozen=True)
class Sweep:
    """Protocols that differ in guidance scale and steps alone. pictures: of each, shown in its grid."""

    protocols: Sequence[Protocol]
    pictures: int

    @staticmethod
    def of(settings: DictConfig, protocol: Protocol) -> Sweep | None:
        """Every guidance scale with every number of steps; what isn't given is the protocol's. None where neither is.

        settings: config.sweep. Raises EvaluationError on values out of range, and where nothing is guided.
        """
        given = OmegaConf.to_container(settings)
        assert isinstance(given, dict)
        if given["guidance_scales"] is None and given["sampler_steps"] is None:
            return None
        if protocol.draws != "samples":
            raise EvaluationError(f"sweep: protocol {protocol.name} measures {protocol.draws}, which nothing guides")
        if given["pictures"] < 1:
            raise EvaluationError(f"sweep.pictures={given['pictures']}: give at least one")
        scales = _numbers_of(given, "guidance_scales", (int, float), protocol.guidance_scale)
        steps = _numbers_of(given, "sampler_steps", (int,), protocol.sampler_steps)
        try:
            made = [
                replace(protocol, guidance_scale=float(scale), sampler_steps=count)
                for count in steps
                for scale in scales
            ]
        except ValueError as error:
            raise EvaluationError(f"sweep: {error}") from error
        return Sweep(made, given["pictures"])


def _numbers_of(given: Mapping[Any, Any], name: str, types: tuple[type, ...], own: float) -> list[Any]:
    """The list under a name; the protocol's own number where there is none."""
    values = [own] if given[name] is None else given[name]
    if not isinstance(values, list) or not values or any(type(value) not in types for value in values):
        kind = "numbers" if float in types else "whole numbers"
        raise EvaluationError(f"sweep.{name}={values}: give a list of {kind}, at least one")
    if len(set(values)) < len(values):
        raise EvaluationError(f"sweep.{name}={values}: give each number once")
    return values


def measure_sweep(
    measurement: RunMeasurement, folder: Path, sweep: Sweep, keep_images: bool, ranks: Distributed
) -> None:
    """Measures by each protocol in turn, those left out whose result is there already; rank 0 writes all that came
    of it below <folder>/evaluation/ and prints it.

    A sweep that was ended goes on with the image that it had come to.
    """
    first = sweep.protocols[0]
    output = folder / FOLDER / f"{first.name}-step{measurement.step:08d}-sweep"
    results = []
    measurement.see_originals(first)
    for protocol in sweep.protocols:
        path = output / f"{point_name(protocol)}.json"
        result = ranks.broadcast_object(_known(measurement, path, protocol) if ranks.is_main else None)
        if result is None:
            result = measurement.result(protocol)
            if ranks.is_main:
                images = measurement.first_images(protocol, sweep.pictures)
                assert images is not None  # they were kept, as they are samples
                write_png(path.with_suffix(".png"), grid(images), {"Description": point_title(protocol)})
                write_result_file(path, result)  # last: it says that the point is done
        if not keep_images:
            measurement.forget(protocol)
        results.append(result)
    if ranks.is_main:
        print(write_sweep(output, sweep.protocols, results))
        grids = [output / f"{point_name(protocol)}.png" for protocol in sweep.protocols]
        log_sweep(folder, sweep.protocols, results, grids, compared_with(results))


def point_name(protocol: Protocol) -> str:
    """Of a point's files."""
    return f"guidance-{protocol.guidance_scale:g}-steps-{protocol.sampler_steps}"


def point_title(protocol: Protocol) -> str:
    """For people."""
    return f"guidance {protocol.guidance_scale:g}, {protocol.sampler_steps} steps"


def compared_with(results: Sequence[Result]) -> list[str]:
    """Names of the measures that a Fréchet distance is drawn against: the CLIP score where it was measured, and the
    (Inception) score."""
    measured = results[0].measured
    return [name for name in (CLIP_SCORE, measured["score_name"]) if name in columns(measured)]


def fronts(results: Sequence[Result]) -> dict[str, list[bool]]:
    """By the name of each measure that the distance is drawn against: which results are on their Pareto front."""
    distance = results[0].measured["frechet_name"]
    found = [columns(result.measured) for result in results]
    return {
        name: pareto_front([(float(row[name] or 0), float(row[distance] or 0)) for row in found])
        for name in compared_with(results)
    }


def write_sweep(output: Path, protocols: Sequence[Protocol], results: Sequence[Result]) -> str:
    """Writes sweep.csv, sweep.json and sweep.html into the folder of the points; returns what is to be printed."""
    on_front = fronts(results)
    rows = [
        {
            "guidance_scale": protocol.guidance_scale,
            "sampler_steps": protocol.sampler_steps,
            **_numbers(result.measured),
            **{f"on the front with {name}": on_front[name][i] for name in on_front},
            "seconds": round(result.seconds, 1),
        }
        for i, (protocol, result) in enumerate(zip(protocols, results, strict=True))
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / "sweep.csv", text.getvalue())
    card = {k: v for k, v in results[0].protocol.items() if k not in ("guidance_scale", "sampler_steps")}
    about = {"protocol": card, "step": results[0].step, "weights": results[0].weights, "data": results[0].data}
    about |= {"features": results[0].measured["features"], "networks": results[0].measured["networks"]}
    write_text(output / "sweep.json", json.dumps({**about, "points": rows}, indent=1, ensure_ascii=False) + "\n")
    titles = [point_title(protocol) for protocol in protocols]
    page = write_page(output, protocols, results, on_front, [output / f"{point_name(p)}.png" for p in protocols])
    starred = [
        (title + " *" * any(front[i] for front in on_front.values()), columns(result.measured))
        for i, (title, result) in enumerate(zip(titles, results, strict=True))
    ]
    shown = table([*starred, *published(protocols[0].paper, results[0].measured)])
    return f"{shown}\n* no other is better in both: {'; '.join(f'distance and {name}' for name in on_front)}\n{page}"


def _numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of a result, with what is known of their spread, by names."""
    found = {measured["frechet_name"]: measured["frechet"], measured["score_name"]: measured["score"]}
    found[f"{measured['score_name']}, deviation"] = measured["score_std"]
    for name, value in measured["others"].items():
        found[name] = value["value"]
        found |= {f"{name}, {key}": value[key] for key in ("deviation", "low", "high") if value[key] is not None}
    return found


def _known(measurement: RunMeasurement, path: Path, protocol: Protocol) -> Result | None:
    """The result in a file, if measuring again would give it."""
    try:
        result = read_result(path)
    except EvaluationError:
        return None
    return result if measurement.is_of(result, protocol) else None
