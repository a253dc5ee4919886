"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise


def number(value: float) -> str:
    """Four significant digits, thousands separated, no needless zeros: 23,456 · 96.13 · 0.08125 · 2.1e-05."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    digits = max(0, 3 - math.floor(math.log10(size)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def at_ticks(ticks: Sequence[float], shown: Callable[[float], str] = number) -> list[str]:
    """Labels of an axis, each by `shown`; all with more digits where four are too few to tell where a tick is."""
    if shown is not number or len(ticks) < 2:
        return [shown(tick) for tick in ticks]
    step = min(abs(b - a) for a, b in pairwise(ticks))
    labels = [number(tick) for tick in ticks]
    if all(abs(float(label.replace(",", "")) - tick) <= step / 100 for label, tick in zip(labels, ticks, strict=True)):
        return labels
    digits = max(0, 1 - math.floor(math.log10(step)))  # 2.5 has one more than its power of ten
    labels = [f"{tick:,.{digits}f}" for tick in ticks]
    return labels if any(label[-1] != "0" for label in labels) or not digits else [label[:-1] for label in labels]


def whole(value: float) -> str:
    """Thousands separated, no decimals: 9,000."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A share as per cent: 0.031 -> 3.1 %."""
    value = 100 * share
    return f"{value:.0f} %" if value == 0 or value >= 10 else f"{value:.1f} %" if value >= 0.1 else f"{value:.2f} %"


def gibibytes(value: float) -> str:
    """GiB with one decimal, two below 10: 71.3 GiB · 2.25 GiB."""
    if value == 0:
        return "0"
    return f"{value:.2f} GiB" if value < 10 else f"{value:.1f} GiB"


def duration(seconds: float) -> str:
    """What matters of it: 42 s · 3 min 20 s · 28 min · 2 h 05 min · 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s" if total < 600 else f"{total / 60:.0f} min"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"


def seconds(value: float) -> str:
    """A short time: 86 ms · 0.59 s; and from ten seconds on like `duration`."""
    if value < 0 or not math.isfinite(value):
        return number(value)
    if value >= 10:
        return duration(value)
    return f"{number(1000 * value)} ms" if 0 < value < 0.1 else f"{number(value)} s"


def size(value: float) -> str:
    """Bytes, with a prefix: 512 B · 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{number(value)} {unit}"
        value /= 1024
    return f"{number(value)} TiB"


FORMATS: dict[str, Callable[[float], str]] = {
    "number": number, "percent": percent, "gibibytes": gibibytes, "seconds": seconds, "bytes": size,
}  # fmt: skip
"""By name; charts.js has the same ones."""
