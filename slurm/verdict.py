"""From what nodes found out to what follows: which of them are bad, and whether other ones would do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

GOOD, ELSEWHERE, HOPELESS = 0, 75, 2
"""Exit statuses: start; other nodes are wanted; no other nodes would help."""
SHARED = ("store", "run folder", "network")
"""Checks that a node of its own can't be blamed for when there is no other one beside it."""
SLOW_SHARE = 0.5
"""Of the expected rate: what is below is slow. A busy network halves a rate at times; a broken adapter quarters it."""


@dataclass
class Finding:
    """What one node found out about itself. measured: numbers with their unit, by name. problems: by check."""

    node: str
    measured: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """bad: what is wrong with each bad node. common: what is wrong with all of them, and so with none."""

    bad: dict[str, str]
    common: list[str]

    @property
    def status(self) -> int:
        """The exit status of the pre-flight."""
        return HOPELESS if self.common else ELSEWHERE if self.bad else GOOD


def judge(findings: Sequence[Finding], silent: Sequence[str], excluded: int, most: int) -> Verdict:
    """Blames nodes, but for what fails on all of them: that is the setting's, the store's or the network's fault.

    silent: nodes that didn't answer. excluded: how many were excluded before. most: of them, before that is taken for
    a fault of something else.
    """
    common = [
        f"{check}: {told[0]}" + (f", and so on all {len(told)} nodes" if len(told) > 1 else "")
        for check, told in _by_check(findings)
        if len(told) == len(findings) and not silent and (len(findings) > 1 or check in SHARED)
    ]
    bad = {node: "it didn't answer" for node in silent}
    if not common:
        bad |= {found.node: "; ".join(found.problems.values()) for found in findings if found.problems}
    if len(bad) + excluded > most:
        common = [f"{len(bad) + excluded} bad nodes are more than cluster.preflight.most_excluded={most}"]
    return Verdict(bad, common)


def _by_check(findings: Sequence[Finding]) -> Iterator[tuple[str, list[str]]]:
    for check in dict.fromkeys(check for found in findings for check in found.problems):
        yield check, [found.problems[check] for found in findings if check in found.problems]


def skews(offsets: dict[str, float]) -> dict[str, float]:
    """How far each node's clock is from the middle one, in seconds, of offsets from anyone's."""
    middle = statistics.median(offsets.values())
    return {node: offset - middle for node, offset in offsets.items()}


def rounds_of_pairs(count: int) -> list[list[tuple[int, int]]]:
    """The neighbours on a ring of so many, in rounds of pairs that have nobody in common: everyone meets both of its
    neighbours. Two have one round, an odd number three."""
    ring = [(number, (number + 1) % count) for number in range(count if count > 2 else count - 1)]
    last = [ring.pop()] if count > 2 and count % 2 else []
    return [pairs for pairs in (ring[0::2], ring[1::2], last) if pairs]


def slow_ones(rates: dict[tuple[int, int], float], expected: float) -> set[int]:
    """Those for whom every pair is slow. A single slow neighbour leaves the other pair fast."""
    numbers = {number for pair in rates for number in pair}
    slow = {pair for pair, rate in rates.items() if rate < SLOW_SHARE * expected}
    return {number for number in numbers if all(pair in slow for pair in rates if number in pair)}
