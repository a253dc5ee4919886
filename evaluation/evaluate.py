"""`ldm evaluate`: measures a run by a protocol, on one process or on many ranks."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from evaluation.networks import Networks
    from evaluation.protocol import Protocol
    from evaluation.run_measurement import RunMeasurement
    from training.distributed import Distributed

PUBLISHED_WITH = ("captions", "image_size", "splits", "draws", "reference", "picture_file", "weights")
"""Settings of a protocol that all published rows of its file were measured with; the others the rows' names tell."""
log = logging.getLogger("evaluation.evaluate")  # also when run as __main__


def main() -> None:
    """Entry point of `ldm evaluate` and `python -m evaluation.evaluate`."""
    if sys.argv[1:2] == ["compare"]:
        from evaluation import compare

        compare.main(sys.argv[2:])
        return
    from data.errors import DataError
    from evaluation.data_folder import data_by_name
    from training import compose

    sys.argv[1:] = data_by_name(sys.argv[1:])
    compose.command("evaluate", run, (EvaluationError, DataError))


def run(config: DictConfig) -> None:
    """Evaluates on this rank; rank 0 writes the result and the report anew."""
    from training.distributed import initialise, shut_down

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("data", "evaluation"):
        logging.getLogger(name).setLevel(logging.INFO)
    ranks = initialise()
    try:
        if config.watch:
            from evaluation.watch import watch

            watch(config, build_protocol(config), ranks, partial(evaluate, config, ranks))
        else:
            evaluate(config, ranks)
    finally:
        shut_down()


def evaluate(config: DictConfig, ranks: Distributed, checkpoint: Path | None = None) -> None:
    """Measures config.run by config.protocol, or by all that config.sweep makes of it.

    checkpoint: the one that is measured; None: the newest. The results lie in <run>/evaluation/ afterwards.
    """
    from evaluation.data_folder import with_data_of_folder
    from evaluation.drawing import SOURCES, Samples, check_data
    from evaluation.metrics.metric import Sizes
    from evaluation.real_images import known_reference
    from evaluation.run_measurement import RunMeasurement
    from evaluation.sweep import Sweep, measure_sweep

    folder, config = Path(config.run), with_data_of_folder(config)
    if config.data.shards is None and config.data.captions is not None:
        raise EvaluationError("data.shards=null: name a folder where the shards of data.captions are written and kept")
    protocol = build_protocol(config)
    sweep = Sweep.of(config.sweep, protocol)
    try:
        networks = load_networks(config, protocol, ranks)
        known = known_reference(config, protocol, networks, ranks)
        real = protocol.captions if known is None else int(known[0].statistics.count)
        networks.metrics(protocol.metrics, Sizes(protocol.captions, real))  # what can't be measured is named first
        source = SOURCES[protocol.draws](checkpoint or folder, protocol, ranks)
        if isinstance(source, Samples) and protocol.image_size != source.trained_size and ranks.is_main:
            log.warning("the run was trained at %d pixels and draws at %d", source.trained_size, protocol.image_size)
        with source.samples(config, protocol, ranks) as samples:
            check_data(protocol, samples)
            measurement = RunMeasurement(folder, source, samples, networks, known, config.batch_size, ranks)
            if sweep is None:
                _measure(measurement, folder, protocol, config.keep_images, ranks)
            else:
                measure_sweep(measurement, folder, sweep, config.keep_images, ranks)
    except ValueError as error:
        raise EvaluationError(f"protocol {protocol.name}: {error}") from error
    ranks.barrier()


def _measure(
    measurement: RunMeasurement, folder: Path, protocol: Protocol, keep_images: bool, ranks: Distributed
) -> None:
    """Measures by one protocol; rank 0 writes the result and the report anew, and prints them."""
    from evaluation.report import write_report
    from evaluation.results import write_result
    from evaluation.table import columns, published, table
    from evaluation.wandb_results import log_result

    result = measurement.result(protocol)
    if ranks.is_main:
        path, measured = write_result(folder, result), result.measured
        print(f"{measured['frechet_name']}: {measured['frechet']:.4f}")
        print(f"{measured['score_name']}: {measured['score']:.4f} ± {measured['score_std']:.4f}")
        print(table([("measured", columns(measured)), *published(protocol.paper, measured)]))
        print(f"{path}\n{write_report(folder)}")
        log_result(folder, result)
    if not keep_images:
        measurement.forget(protocol)


def load_networks(config: DictConfig, protocol: Protocol, ranks: Distributed) -> Networks:
    """The networks of the protocol's measures. Raises EvaluationError when one can't be had."""
    from evaluation.features import load_features
    from evaluation.networks import Networks

    try:
        features = load_features(protocol.features, config.feature_weights, ranks.device, protocol.features_sha256)
    except ValueError as error:
        raise EvaluationError(f"feature_weights={config.feature_weights}: {error}") from error
    return Networks(features, config.clip_weights, config.perceptual_weights, ranks.device)


def build_protocol(config: DictConfig) -> Protocol:
    """The protocol of the configuration. Raises EvaluationError when a value is out of range."""
    from evaluation.protocol import Protocol
    from training.compose import choices, composed

    try:
        protocol = Protocol.of(config.protocol)
    except ValueError as error:
        raise EvaluationError(f"protocol: {error}") from error
    if not protocol.paper or protocol.name not in choices("protocol"):
        return protocol
    shipped = Protocol.of(composed("evaluate", ["run=.", f"protocol={protocol.name}"]).protocol)
    return replace(protocol, paper=_told_apart(protocol, shipped))


def _told_apart(protocol: Protocol, shipped: Protocol) -> list[dict[str, Any]]:
    """The published rows, whose names tell what they were measured with where the protocol has it otherwise."""
    other = [name for name in PUBLISHED_WITH if getattr(protocol, name) != getattr(shipped, name)]
    told = "".join(f", {name} {getattr(shipped, name)}" for name in other)
    return [{**row, "name": row["name"] + told} for row in protocol.paper]


if __name__ == "__main__":
    main()
