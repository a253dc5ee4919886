"""A checkpoint's weights as one safetensors file, written tensor by tensor: memory for the largest is enough."""

from __future__ import annotations

import json
import math
from pathlib import Path

from evaluation.errors import EvaluationError
from evaluation.remote_run import run_here
from evaluation.run import ENGINE, kind_of, located
from training.checkpoint_files import CheckpointError, EngineEntry, Reader, byte_bar

FLOAT_BYTES = 4


def write_run_weights(run: str, weights: str, path: Path) -> None:
    """Writes what a run of any task trained, of its newest whole checkpoint, under the names of its own parameters.

    run, weights: as of `load_run`; run may be at a URL. Float32, in the checkpoint's order. Raises EvaluationError.
    """
    with run_here(run) as place:
        _, checkpoint = located(place)
        if checkpoint is None:
            raise EvaluationError(f"run={run}: no complete checkpoint in {place / 'checkpoints'}; train it first")
        try:
            reader = Reader(checkpoint)
            _write(reader, kind_of(reader.manifest, weights, checkpoint), path)
        except CheckpointError as error:
            raise EvaluationError(f"run={run}: {error}") from error


def _write(reader: Reader, kind: str, path: Path) -> None:
    engine = reader.engine(ENGINE)
    size = sum(FLOAT_BYTES * math.prod(entry.shape) for entry in engine.parameters.values())
    with path.open("wb") as file, byte_bar(f"writing {path.name}", size) as bar:
        file.write(_header(engine, {"step": str(reader.manifest.step), "weights": kind}))
        for name in engine.parameters:
            values = reader.tensor(ENGINE, kind, name)
            if not values.isfinite().all():
                raise EvaluationError(f"{reader.checkpoint} holds infinite numbers, or NaN, in {name}")
            bar.update(file.write(values.numpy().data))


def _header(engine: EngineEntry, metadata: dict[str, str]) -> bytes:
    places: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, entry in engine.parameters.items():
        start, end = end, end + FLOAT_BYTES * math.prod(entry.shape)
        places[name] = {"dtype": "F32", "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(places).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
