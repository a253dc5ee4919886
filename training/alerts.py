"""What somebody should know before the run is over: told in the log and through W&B, seldom."""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.tracker import Tracker

log = logging.getLogger(__name__)

NON_FINITE = "non-finite step"
LOSSES_NOW, LOSSES_BEFORE = 10, 100


@dataclass(frozen=True)
class Thresholds:
    """Beyond these a rule speaks; None: it doesn't.

    window: steps that are looked back on. data_wait: share of their time that was waited for data. goodput: the run's,
    below. loss_spike: mean of the last 10 losses, in medians of the 100 before. slow_rank: how much longer the same
    rank took than the median rank in nearly all of the window's steps, as a share of their time. again_minutes: before
    a rule speaks again.
    """

    window: int = 50
    data_wait: float | None = 0.5
    goodput: float | None = 0.5
    loss_spike: float | None = 2.0
    slow_rank: float | None = 0.2
    again_minutes: float = 30.0


class Alerts:
    """Looks at every row, on the main rank. hosts: of the ranks, in their order."""

    def __init__(self, thresholds: Thresholds, tracker: Tracker, hosts: Sequence[str], is_main: bool) -> None:
        self.tracker = tracker
        self.is_main = is_main
        self.again_seconds = 60 * thresholds.again_minutes
        self.told: Counter[str] = Counter()
        self._when: dict[str, float] = {}
        self._rules: dict[str, Rule] = {}
        if thresholds.data_wait is not None:
            self._rules["stalled data"] = StalledData(thresholds.window, thresholds.data_wait)
        if thresholds.goodput is not None:
            self._rules["low goodput"] = LowGoodput(thresholds.goodput)
        if thresholds.loss_spike is not None:
            self._rules["loss spike"] = LossSpike(thresholds.loss_spike)
        if thresholds.slow_rank is not None:
            self._rules["slow rank"] = SlowRank(thresholds.window, thresholds.slow_rank, hosts)

    def look(self, step: int, row: Mapping[str, float]) -> None:
        """Raises the alarms that the row of a step gives cause for."""
        if not self.is_main:
            return
        for name, rule in self._rules.items():
            if (text := rule.look(row)) is not None:
                self.raise_alarm(name, f"step {step}: {text}")

    def raise_alarm(self, name: str, text: str) -> None:
        """Tells of it, unless the same was told a moment ago."""
        now = time.monotonic()
        if not self.is_main or now - self._when.get(name, -self.again_seconds) < self.again_seconds:
            return
        self._when[name] = now
        self.told[name] += 1
        log.warning("%s: %s", name, text)
        self.tracker.alert(name, text, is_error=name == NON_FINITE)

    def summary(self) -> str:
        """What was told since the start, for the end of the log; empty where nothing was."""
        return ", ".join(f"{name} ({count})" for name, count in self.told.items())


class Rule(Protocol):
    """One cause for alarm."""

    def look(self, row: Mapping[str, float]) -> str | None:
        """What is wrong by now, given the next row; mostly nothing."""
        ...


class StalledData:
    """Most of the time of the last steps was waited for data."""

    def __init__(self, window: int, share: float) -> None:
        self.share = share
        self._steps: deque[tuple[float, float]] = deque(maxlen=window)

    def look(self, row: Mapping[str, float]) -> str | None:
        self._steps.append((row["data/wait_seconds"], row["speed/step_seconds"]))
        waited, seconds = (sum(column) for column in zip(*self._steps, strict=True))
        if len(self._steps) < (self._steps.maxlen or 0) or waited <= self.share * seconds:
            return None
        return (
            f"{waited / seconds:.0%} of the last {len(self._steps)} steps were waited for data (data/retries is "
            f"{row['data/retries']:.0f}); more data.workers, a local data.storage.cache_folder or a faster store help"
        )


class LowGoodput:
    """Little of the time that counts since the run was first submitted went into steps."""

    def __init__(self, share: float) -> None:
        self.share = share

    def look(self, row: Mapping[str, float]) -> str | None:
        goodput = row.get("run/goodput")
        if goodput is None or goodput >= self.share:
            return None
        return f"goodput is {goodput:.0%} of the time since the run began; the run's report says what took the rest"


class LossSpike:
    """The mean of the last losses is well above the median of those before."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._losses: deque[float] = deque(maxlen=LOSSES_BEFORE + LOSSES_NOW)

    def look(self, row: Mapping[str, float]) -> str | None:
        self._losses.append(row["train/loss"])
        if len(self._losses) < LOSSES_BEFORE + LOSSES_NOW:
            return None
        losses = list(self._losses)
        usual = statistics.median(losses[:LOSSES_BEFORE])
        now = statistics.fmean(losses[LOSSES_BEFORE:])
        if usual <= 0 or now <= self.ratio * usual:
            return None
        return (
            f"the mean loss of the last {LOSSES_NOW} steps is {now:.4g}, {now / usual:.1f} times the median of the "
            f"{LOSSES_BEFORE} before; if it stays, go back to a checkpoint of before with a lower learning_rate.base"
        )


class SlowRank:
    """One rank takes longer than the others, again and again: all wait for it."""

    def __init__(self, window: int, share: float, hosts: Sequence[str]) -> None:
        self.share = share
        self.hosts = hosts
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=window)

    def look(self, row: Mapping[str, float]) -> str | None:
        if "speed/slowest_rank" not in row:
            return None
        behind = row["speed/slowest_behind_seconds"]
        self._steps.append((int(row["speed/slowest_rank"]), behind, row["speed/step_seconds"]))
        if len(self._steps) < (self._steps.maxlen or 0):
            return None
        rank, often = Counter(rank for rank, _, _ in self._steps).most_common(1)[0]
        lost = sum(behind for slowest, behind, _ in self._steps if slowest == rank)
        share = lost / sum(seconds for _, _, seconds in self._steps)
        if often < 0.9 * len(self._steps) or share <= self.share:
            return None
        return (
            f"rank {rank} on {self.hosts[rank]} was the slowest in {often} of {len(self._steps)} steps and kept the "
            f"others waiting for {share:.0%} of their time; look at that machine, or leave it out"
        )
