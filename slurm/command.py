"""What was typed after `ldm submit`: the verb that the job runs, its arguments, and the settings of the submission."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from evaluation.data_folder import data_by_name
from training import compose
from training.cli import VERBS

CONFIGS = {
    "train": "train",
    "evaluate": "evaluate",
    "prepare": "prepare",
    "prepare index": "prepare_index",
    "prepare latents": "prepare_latents",
}
"""The verbs that a job may run, and the configuration of each."""

FREELY_NAMED = ("grid", "cluster.environment")
"""Settings below which any key may be given."""


@dataclass(frozen=True)
class Command:
    """verb: one of CONFIGS. overrides: its arguments. own: overrides of conf/submit.yaml."""

    verb: str
    overrides: list[str]
    own: list[str]

    @property
    def config_name(self) -> str:
        """Of the verb's configuration."""
        return CONFIGS[self.verb]

    def with_overrides(self, *more: str) -> Command:
        """The same, with further arguments of the verb."""
        return Command(self.verb, [*self.overrides, *more], self.own)

    def composed(self) -> DictConfig:
        """The configuration as the job will compose it."""
        return compose.composed(self.config_name, self.overrides)

    def given(self, key: str) -> bool:
        """Whether an argument sets this key."""
        return any(setting(override) == key for override in self.overrides)


def setting(override: str) -> str:
    """The whole key that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def of_cluster(overrides: list[str]) -> list[str]:
    """Those that choose or change the profile."""
    return [override for override in overrides if setting(override).partition(".")[0] == "cluster"]


def split(arguments: list[str], config_name: str) -> tuple[list[str], list[str]]:
    """Arguments that set what conf/`config_name`.yaml has at its top, and the others."""
    names = set(OmegaConf.load(compose.CONFIG_FOLDER / f"{config_name}.yaml")) - {"defaults", "hydra"}
    names.add("cluster")
    own, others = [], []
    for argument in arguments:
        if setting(argument).partition(".")[0] not in names:
            others.append(argument)
        elif setting(argument).startswith(FREELY_NAMED) and not argument.startswith(("+", "~")):
            own.append(f"++{argument}")
        else:
            own.append(argument)
    return own, others


def parse(arguments: list[str]) -> Command:
    """The command of these words. Those before the first setting name a verb; without any it is `train`."""
    words: list[str] = []
    for argument in arguments:
        if "=" in argument or argument.startswith(("-", "~")):
            break
        words.append(argument)
    verb = " ".join(words) or "train"
    if verb not in CONFIGS:
        there = "jobs run" if verb in VERBS else "ldm has no such verb; jobs run"
        compose.fail(f"{verb}: {there} {', '.join(CONFIGS)}")
    settings = arguments[len(words) :]
    own, overrides = split(data_by_name(settings) if verb == "evaluate" else settings, "submit")
    return Command(verb, overrides, own)
