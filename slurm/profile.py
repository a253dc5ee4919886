"""A profile of a cluster, of conf/cluster: what a job asks for, and what its ranks find there."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from training.compose import choices
from training.credentials import masked_urls
from training.errors import ConfigurationError

RUNTIMES = ("none", "pyxis", "apptainer")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d(:\d\d)?)?")
MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True)
class Container:
    """runtime: one of RUNTIMES. mounts: FROM:TO, or FROM alone, beside those that every job needs."""

    runtime: str
    image: str | None
    mounts: list[str]


@dataclass(frozen=True)
class Profile:
    """The settings below `cluster`, which conf/cluster/generic.yaml explains."""

    nodes: int
    gpus_per_node: int
    gpu: str | None
    tasks_per_node: int | None
    partition: str | None
    account: str | None
    qos: str | None
    time_limit: str | None
    signal_lead_seconds: int
    exclusive: bool
    memory: str
    cpus_per_node: int | None
    exclude: list[str]
    sbatch_options: list[str]
    modules: list[str]
    environment: dict[str, str]
    scratch: str | None
    container: Container
    preflight: dict[str, Any]

    @property
    def ranks_per_node(self) -> int:
        """One a GPU, or one where there are none, unless it is set."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Of the whole job."""
        return self.nodes * self.ranks_per_node


def profile_of(config: DictConfig) -> Profile:
    """From the settings below `cluster`. Raises ConfigurationError for those that can't be, or hold credentials."""
    settings: Any = OmegaConf.to_container(config.cluster, resolve=True)
    _check_numbers(settings)
    for key, pattern, remedy in (
        ("time_limit", TIME, "sbatch reads minutes, hours:minutes:seconds, or days-hours: 24:00:00, 7-0; or null"),
        ("memory", MEMORY, "sbatch reads a number with K, M, G or T: 200G; 0 is all of a node's"),
    ):
        if settings[key] is not None and not pattern.fullmatch(str(settings[key])):
            raise ConfigurationError(f"cluster.{key}", settings[key], remedy)
    if settings["gpu"] is not None and settings["gpu"] not in choices("gpu"):
        raise ConfigurationError("cluster.gpu", settings["gpu"], f"choose one of {', '.join(choices('gpu'))}, or null")
    _check_environment(settings["environment"])
    if settings["scratch"] is not None and not str(settings["scratch"]).startswith("/"):
        raise ConfigurationError("cluster.scratch", settings["scratch"], "give an absolute path, or null")
    for option in settings["sbatch_options"]:
        if not re.fullmatch(r"--[a-z][^\n]*", str(option)):
            remedy = 'give long options of sbatch, such as ["--reservation=spring"]'
            raise ConfigurationError("cluster.sbatch_options", option, remedy)
    own = {field.name for field in fields(Profile)} - {"container", "time_limit", "memory", "environment"}
    return Profile(
        **{name: settings[name] for name in own},
        time_limit=None if settings["time_limit"] is None else str(settings["time_limit"]),
        memory=str(settings["memory"]),
        environment={name: str(value) for name, value in settings["environment"].items()},
        container=_container(settings["container"]),
    )


def _check_numbers(settings: dict[str, Any]) -> None:
    least = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_node": 1, "signal_lead_seconds": 1}
    for key, lowest in least.items():
        value, may_be_null = settings[key], key in ("tasks_per_node", "cpus_per_node")
        if value is None and may_be_null:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            remedy = f"it must be a whole number of at least {lowest}{', or null' if may_be_null else ''}"
            raise ConfigurationError(f"cluster.{key}", value, remedy)


def _check_environment(environment: dict[str, Any]) -> None:
    for name, value in environment.items():
        key = f"cluster.environment.{name}"
        if not NAME.fullmatch(name):
            raise ConfigurationError(key, value, "a variable's name has letters, digits and _ alone")
        if SECRET.search(name) or masked_urls(str(value)) != str(value):
            raise ConfigurationError(
                key,
                "***",
                "credentials don't belong into a profile, which is written into scripts; set the variable in your "
                "shell, from which sbatch passes it on",
            )


def _container(settings: dict[str, Any]) -> Container:
    runtime, image = settings["runtime"], settings["image"]
    if runtime not in RUNTIMES:
        raise ConfigurationError("cluster.container.runtime", runtime, f"choose one of {', '.join(RUNTIMES)}")
    if runtime != "none" and image is None:
        raise ConfigurationError("cluster.container.image", None, f"name the image that {runtime} is to start")
    if image is not None and image.startswith("/") and not Path(image).exists():
        raise ConfigurationError("cluster.container.image", image, "there is no such file; give one that all nodes see")
    return Container(runtime, image, [str(mount) for mount in settings["mounts"]])
