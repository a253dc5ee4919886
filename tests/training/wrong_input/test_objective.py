"""Wrong settings of what is learned, and how fast."""

from __future__ import annotations

import pytest

from tests.training.wrong_input.refusals import Refused, Wrong, check

OBJECTIVES = {
    "no rate": Wrong(("learning_rate.base=0",), "learning_rate.base=0", "above 0"),
    "a rate that is no number": Wrong(("learning_rate.base=nan",), "learning_rate.base=nan", "above 0"),
    "an infinite share": Wrong(("task.offset_noise=inf",), "task.offset_noise=inf", "at least 0"),
    "unknown decay": Wrong(("learning_rate.decay=linear",), "learning_rate.decay=linear", "constant, cosine"),
    "unknown prediction": Wrong(("task.prediction=x_0",), "task.prediction=x_0", "choose one of epsilon, v, z_0"),
    "unknown loss": Wrong(("task.loss=huber",), "task.loss=huber", "choose one of l2, l1"),
    "noise that can't be": Wrong(("task.offset_noise=-0.1",), "task.offset_noise=-0.1", "at least 0"),
    "no gamma": Wrong(("task.snr_weight={gamma:0,power:1}",), "task.snr_weight.gamma=0", "or null"),
    "a power below 0": Wrong(("task.snr_weight={gamma:5,power:-1}",), "task.snr_weight.power=-1", "at least 0"),
    "a weight that is a number": Wrong(("task.snr_weight=5",), "task.snr_weight=5", "by name: gamma, power"),
    "unknown schedule": Wrong(("schedule=quadratic",), "schedule=quadratic", "choose one of cosine, linear"),
    "betas": Wrong(("schedule.beta_end=1.5",), "schedule=models.schedule.linear: ", "beta_start <= beta_end < 1"),
    "noise without a trace": Wrong(
        ("schedule.zero_terminal_snr=true",), "task.prediction=epsilon", "choose v or z_0 prediction"
    ),
    "unknown action": Wrong(("loss_spike.action=stop",), "loss_spike.action=stop", "one of null, skip, roll_back"),
    "a limit that all exceed": Wrong(("loss_spike.loss=1",), "loss_spike.loss=1", "above 1, in medians"),
    "no spike": Wrong(
        ("loss_spike.action=skip", "loss_spike.loss=null", "loss_spike.gradient_norm=null"),
        "loss_spike.action=skip",
        "give one of them",
    ),
}


def test_a_weight_without_its_power(refused: Refused) -> None:
    """Where the experiment has none that it would be added to."""
    overrides = ["experiment=txt2img_1p45b", "data.url=nowhere", "task.snr_weight={gamma:5}"]
    check(refused(overrides), "task.snr_weight={'gamma': 5}", "{gamma: 5, power: 1}")


@pytest.mark.parametrize("wrong", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_wrong_setting(wrong: Wrong, base: list[str], refused: Refused) -> None:
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)
