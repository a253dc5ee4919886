"""Which samples to train on, by what is known of them: predicates from the configuration, nothing executed."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Details = Mapping[str, Any]
_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "at_least": lambda value, bound: value >= bound,
    "at_most": lambda value, bound: value <= bound,
    "among": lambda value, choices: value in choices,
    "not_among": lambda value, choices: value not in choices,
}
_LISTS = ("among", "not_among")
_UNKNOWN = ("keep", "drop")


def _aspect(details: Details) -> float | None:
    width, height = _number(details.get("width")), _number(details.get("height"))
    return width / height if width and height else None


def _shorter_side(details: Details) -> float | None:
    width, height = _number(details.get("width")), _number(details.get("height"))
    return min(width, height) if width and height else None


_DERIVED: dict[str, Callable[[Details], float | None]] = {"aspect": _aspect, "shorter_side": _shorter_side}


class BadCondition(ValueError):
    """A condition that can't be: its place, its value, and the remedy."""

    def __init__(self, place: str, value: object, remedy: str) -> None:
        super().__init__(f"{place}={value}: {remedy}")
        self.place = place
        self.value = value
        self.remedy = remedy


class Where:
    """Conditions that a sample's details have to fulfil, all of them.

    predicates: by field, {at_least: number, at_most: number, among: list, not_among: list, unknown: keep or drop}.
    A field is a key of the sample's .json, or a column of the parquet beside its shard (such as similarity, NSFW,
    pwatermark, LANGUAGE), or "aspect", the width by the height, or "shorter_side", in pixels. A sample whose details
    don't have the field, or have no number where one is compared, is dropped unless `unknown` is keep. Raises
    BadCondition.
    """

    def __init__(self, predicates: Mapping[str, Mapping[str, Any]]) -> None:
        for name, conditions in predicates.items():
            _check(name, conditions)
        self.predicates = {name: dict(conditions) for name, conditions in predicates.items()}

    def __bool__(self) -> bool:
        return bool(self.predicates)

    @property
    def fields(self) -> set[str]:
        """The keys of a sample's details that the conditions are about."""
        derived = {"width", "height"} if set(self.predicates) & set(_DERIVED) else set()
        return derived | (set(self.predicates) - set(_DERIVED))

    def failing(self, details: Details) -> str | None:
        """The first field whose conditions a sample with these details doesn't fulfil; None when it is to be kept."""
        for name, conditions in self.predicates.items():
            value = _DERIVED[name](details) if name in _DERIVED else details.get(name)
            if not _fulfils(value, conditions):
                return name
        return None


def _fulfils(value: object, conditions: Mapping[str, Any]) -> bool:
    for condition, wanted in conditions.items():
        if condition == "unknown":
            continue
        known = value is not None if condition in _LISTS else (value := _number(value)) is not None
        if not known:
            return conditions.get("unknown") == "keep"
        if not _CONDITIONS[condition](value, wanted):
            return False
    return True


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _check(name: str, conditions: object) -> None:
    if not isinstance(conditions, Mapping) or not set(conditions) - {"unknown"}:
        raise BadCondition(name, conditions, f"give one or more of {', '.join(_CONDITIONS)}, such as {{at_least: 0.3}}")
    for condition, wanted in conditions.items():
        place = f"{name}.{condition}"
        if condition == "unknown":
            if wanted not in _UNKNOWN:
                raise BadCondition(place, wanted, f"choose one of {', '.join(_UNKNOWN)}")
        elif condition not in _CONDITIONS:
            raise BadCondition(place, wanted, f"no such condition; choose one of {', '.join(_CONDITIONS)}, unknown")
        elif condition in _LISTS:
            if not isinstance(wanted, list) or not wanted or any(isinstance(item, list | dict) for item in wanted):
                raise BadCondition(place, wanted, "it must be a list of texts or numbers")
            if any(isinstance(item, bool) for item in wanted):
                raise BadCondition(
                    place,
                    wanted,
                    "YAML takes no, off, yes and on for false and true: put texts in quotes, such as "
                    '["en", "no"]; where false and true are meant, write 0 and 1',
                )
        elif _number(wanted) is None:
            raise BadCondition(place, wanted, "it must be a number")
