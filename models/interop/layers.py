"""What every format shares: layers paired by path, weights moved between them, settings read one by one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Layer(NamedTuple):
    """One of our layers, and the foreign layers that hold the same weight and bias.

    ours: path in our module. theirs: foreign paths; ours has the rows of all of them, one after the other.
    groups: the rows of ours run in so many groups, and each group takes its share from every foreign layer
    in turn. ones: sizes of 1 at the end of the foreign weight's shape that ours is without: 2 for a 1 x 1
    convolution that is a linear layer here, -2 for the opposite.
    """

    ours: str
    theirs: tuple[str, ...]
    ones: int = 0
    groups: int = 1

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Our rows of the foreign layers' rows."""
        if len(parts) == 1:
            return parts[0]
        grouped = [part.unflatten(0, (self.groups, -1)) for part in parts]  # each [groups, rows, ...]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def split(self, value: Tensor) -> list[Tensor]:
        """The foreign layers' rows of ours: undoes `joined`."""
        if len(self.theirs) == 1:
            return [value]
        grouped = value.unflatten(0, (self.groups, -1))  # [groups, rows of all, ...]
        return [part.flatten(0, 1) for part in grouped.chunk(len(self.theirs), dim=1)]

    def foreign_shape(self, shape: torch.Size, leaf: str) -> tuple[int, ...]:
        """Shape over there of a weight or bias that has `shape` here, before it is split."""
        if leaf == "bias" or self.ones == 0:
            return tuple(shape)
        return (*shape, *(1,) * self.ones) if self.ones > 0 else tuple(shape[: self.ones])


LEAVES = ("weight", "bias")


def nested(ours: str, theirs: str, layers: Iterable[Layer]) -> Iterator[Layer]:
    """The layers, each path put below one of ours or theirs."""
    for layer in layers:
        paths = tuple(f"{theirs}.{path}" for path in layer.theirs)
        yield layer._replace(ours=f"{ours}.{layer.ours}", theirs=paths)


def same_names(module: nn.Module, ours: str, theirs: str) -> Iterator[Layer]:
    """The layers of a module that lies below `ours`, each called the same over there, below `theirs`."""
    for path, layer in module.named_modules():
        if isinstance(getattr(layer, "weight", None), Tensor):
            yield Layer(f"{ours}.{path}", (f"{theirs}.{path}",))


def exported(model: nn.Module, layers: Iterable[Layer]) -> dict[str, Tensor]:
    """The model's weights under foreign names and in foreign shapes; they share the model's memory where they can.

    Raises ValueError when the layers leave out some of the model's entries: the format has no place for them.
    """
    left = model.state_dict()
    weights = {}
    for layer in layers:
        for leaf in LEAVES:
            value = left.pop(f"{layer.ours}.{leaf}", None)
            if value is None:
                continue
            value = value.reshape(layer.foreign_shape(value.shape, leaf))
            for path, part in zip(layer.theirs, layer.split(value), strict=True):
                weights[f"{path}.{leaf}"] = part
    if left:
        raise ValueError(f"this format has no place for {sorted(left)}: the model can't be written in it")
    return weights


def fill(model: nn.Module, layers: Iterable[Layer], state_dict: Mapping[str, Tensor]) -> None:
    """Puts foreign weights into a model, without a copy where they fit as they are.

    Every name on both sides must be used exactly once. Raises ValueError with the names of those that are missing or
    too many, or with the name and shapes of one that doesn't fit.
    """
    expected = model.state_dict()
    wanted: dict[str, tuple[Layer, list[str]]] = {}
    for layer in layers:
        for leaf in LEAVES:
            if f"{layer.ours}.{leaf}" in expected:
                wanted[f"{layer.ours}.{leaf}"] = layer, [f"{path}.{leaf}" for path in layer.theirs]
    _check_names([name for _, names in wanted.values() for name in names], state_dict)
    weights = {}
    for name, (layer, names) in wanted.items():
        rows, *rest = expected[name].shape
        shape = layer.foreign_shape(torch.Size((rows // len(names), *rest)), name.rpartition(".")[2])
        for part in names:
            if state_dict[part].shape != shape:
                raise ValueError(
                    f"{part} has shape {list(state_dict[part].shape)} in the checkpoint and {list(shape)} by the "
                    "configuration: they belong to different models"
                )
        weights[name] = layer.joined([state_dict[part] for part in names]).reshape(expected[name].shape)
    model.load_state_dict(weights, assign=True)


def _check_names(wanted: list[str], state_dict: Mapping[str, Tensor]) -> None:
    missing = sorted(set(wanted) - state_dict.keys())
    surplus = sorted(state_dict.keys() - set(wanted))
    if wanted and len(missing) == len(wanted):
        raise ValueError(
            f"the checkpoint has none of the model's {len(wanted)} entries, such as {missing[0]}; its own are such as "
            f"{surplus[:3]}: check the prefix"
        )
    if missing or surplus:
        faults = [f"lacks {missing}"] if missing else []
        faults += [f"has {len(surplus)} entries too many: {surplus}"] if surplus else []
        raise ValueError(f"the checkpoint {' and '.join(faults)}; check the prefix and the configuration")


class Settings:
    """A foreign configuration that is read key by key, so that none is passed over in silence."""

    def __init__(self, config: Mapping[str, Any], ignored: tuple[str, ...] = ()) -> None:
        self._left = {key: value for key, value in config.items() if key not in ignored}

    def take(self, key: str, *default: Any) -> Any:
        """The value of a key, or its default. Raises ValueError when there is neither."""
        if key not in self._left and not default:
            raise ValueError(f"the configuration has no {key}; left in it: {sorted(self._left)}")
        return self._left.pop(key, *default)

    def expect(self, key: str, *supported: Any) -> Any:
        """As `take`, with the first of the supported values as default. Raises ValueError for any other value."""
        value = self.take(key, supported[0])
        if value not in supported:
            raise ValueError(f"{key}={value}: only {' and '.join(map(str, supported))} can be imported")
        return value

    def finish(self) -> None:
        """Raises ValueError when keys are left that nobody asked for."""
        if self._left:
            raise ValueError(f"this importer doesn't know the settings {self._left}: nothing can be imported")
