"""Each rule speaks where its cause is, and not elsewhere; and not all the time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import pytest

from training.alerts import NON_FINITE, Alerts, LossSpike, LowGoodput, Rule, SlowRank, StalledData, Thresholds
from training.tracker import Tracker


class Told:
    """What reached W&B."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, str, bool]] = []

    def alert(self, title: str, text: str, is_error: bool) -> None:
        self.alerts.append((title, text, is_error))


def row(**changes: float) -> dict[str, float]:
    usual = {"loss": 1.0, "wait": 0.1, "slowest": 1.0, "behind": 0.01}
    values = usual | changes
    return {
        "train/loss": values["loss"],
        "speed/step_seconds": 1.0,
        "data/wait_seconds": values["wait"],
        "data/retries": 0.0,
        "speed/slowest_rank": values["slowest"],
        "speed/slowest_behind_seconds": values["behind"],
        "run/goodput": values.get("goodput", 0.9),
    }


def spoke(rule: Rule, rows: Iterable[dict[str, float]]) -> list[str]:
    return [text for text in (rule.look(row) for row in rows) if text]


def test_stalled_data() -> None:
    assert not spoke(StalledData(10, 0.5), [row(wait=0.49)] * 30)
    assert not spoke(StalledData(10, 0.5), [row(wait=0.9)] * 9), "a slow start is no stall"
    assert "60% of the last 10 steps" in spoke(StalledData(10, 0.5), [row(wait=0.6)] * 10)[0]


def test_low_goodput() -> None:
    assert not spoke(LowGoodput(0.5), [row(goodput=0.5), {"train/loss": 1.0}])
    assert "goodput is 40%" in spoke(LowGoodput(0.5), [row(goodput=0.4)])[0]


def test_loss_spike() -> None:
    noisy = [row(loss=1 + 0.9 * math.sin(number)) for number in range(300)]
    assert not spoke(LossSpike(2.0), noisy)
    one = [*noisy[:150], row(loss=8.0), *noisy[150:]]
    assert not spoke(LossSpike(2.0), one), "one bad batch is no spike"
    assert "times the median" in spoke(LossSpike(2.0), [*noisy[:150], *[row(loss=3.0)] * 10])[0]


def test_slow_rank() -> None:
    hosts = ["a", "a", "b", "b"]
    assert not spoke(SlowRank(10, 0.2, hosts), [row(slowest=number % 4, behind=0.5) for number in range(40)])
    assert not spoke(SlowRank(10, 0.2, hosts), [row(slowest=2, behind=0.1)] * 40)
    assert not spoke(SlowRank(10, 0.2, hosts), [{"train/loss": 1.0}] * 40)
    assert (
        "rank 2 on b was the slowest in 10 of 10 steps"
        in spoke(SlowRank(10, 0.2, hosts), [row(slowest=2, behind=0.3)] * 10)[0]
    )


def alerts_of(told: Told, is_main: bool = True, **settings: Any) -> Alerts:
    return Alerts(Thresholds(window=5, **settings), cast(Tracker, told), ["here"] * 4, is_main)


def test_the_same_is_told_once_in_a_while(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    told = Told()
    alerts = alerts_of(told, again_minutes=10)
    for step in range(50):
        alerts.look(step, row(wait=0.8, goodput=0.1))
        now += 30
    assert [title for title, _, _ in told.alerts] == [
        "low goodput",
        "stalled data",
        *["low goodput", "stalled data"] * 2,
    ]
    assert told.alerts[1][1].startswith("step 4: 80%")
    assert alerts.summary() == "low goodput (3), stalled data (3)"
    assert caplog.text.count("stalled data: step") == 3


def test_a_non_finite_step_is_an_error() -> None:
    told = Told()
    alerts_of(told).raise_alarm(NON_FINITE, "loss is nan")
    assert told.alerts == [(NON_FINITE, "loss is nan", True)]


def test_other_ranks_and_rules_that_are_off_are_silent() -> None:
    told = Told()
    off: dict[str, Any] = dict.fromkeys(("data_wait", "goodput", "loss_spike", "slow_rank"))
    for alerts in (alerts_of(told, is_main=False), alerts_of(told, **off)):
        for step in range(20):
            alerts.look(step, row(wait=0.9, goodput=0.1, behind=0.9))
    assert not told.alerts
