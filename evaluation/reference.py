"""What measures need to know of real images, computed once and kept in a file with its card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.measure import Reference
from evaluation.metrics.frechet import FeatureStatistics

CARD = "card"
STATISTICS = ("count", "sum", "outer")


def write_reference(path: Path, reference: Reference, card: Mapping[str, Any]) -> None:
    """Writes the reference, whole or not at all. card: what it was computed from and how, as plain values."""
    tensors = {
        f"statistics/{name}": tensor for name, tensor in zip(STATISTICS, reference.statistics.state, strict=True)
    }
    for metric, kept in reference.metrics.items():
        tensors |= {f"metrics/{metric}/{i}": tensor for i, tensor in enumerate(kept)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    contents = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(contents, part, metadata={CARD: json.dumps(card, sort_keys=True)})
    part.replace(path)


def read_card(path: Path) -> dict[str, Any]:
    """What a file's reference was computed from and how. Raises EvaluationError when it is no such file."""
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})[CARD])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise EvaluationError(
            f"reference.file={path}: holds no reference ({error!r}); name another file, or remove it and set "
            "reference.images to compute it anew"
        ) from error
    assert isinstance(card, dict)
    return card


def read_reference(path: Path, wanted: Mapping[str, Any]) -> Reference:
    """The reference in a file.

    wanted: what its card must say. Raises EvaluationError when it says something else, naming it, and when the file
    holds none.
    """
    card = read_card(path)
    for key, value in wanted.items():
        if card.get(key) != value:
            raise EvaluationError(
                f"reference.file={path}: its {key} is {card.get(key)} and the protocol's {value}; name another file to "
                "compute it anew, or the protocol that it is of"
            )
    kept: dict[str, dict[int, Tensor]] = {}
    with safe_open(path, "pt") as file:
        count, total, outer = (file.get_tensor(f"statistics/{name}") for name in STATISTICS)
        for name in file.keys():  # noqa: SIM118
            if name.startswith("metrics/"):
                _, metric, i = name.split("/")
                kept.setdefault(metric, {})[int(i)] = file.get_tensor(name)
    statistics = FeatureStatistics(len(total))
    for tensor, value in zip(statistics.state, (count, total, outer), strict=True):
        tensor.copy_(value)
    metrics = {name: tuple(tensors[i] for i in range(len(tensors))) for name, tensors in kept.items()}
    return Reference(statistics, {name: metrics.get(name, ()) for name in card["metrics"]})
