"""A command as a job that can be submitted: checked as the job itself will check it, but before it waits in a queue."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slurm import planned
from slurm.command import Command, of_cluster
from slurm.profile import Profile, profile_of
from slurm.script import BatchJob
from training import compose
from training.credentials import credential_in_override
from training.errors import ConfigurationError

FOLDER = "slurm"
"""In a run folder: scripts, logs, and the list of the run's jobs."""
PLAIN = re.compile(r"[A-Za-z0-9_./:-]+")


@dataclass(frozen=True)
class Submission:
    """job: what is to be run. command: what it is from. runs: the folders of its runs, one for each list of arguments.
    config: of the first of them. told: what is known of it beforehand, for a person."""

    job: BatchJob
    command: Command
    runs: list[Path]
    config: DictConfig
    told: list[str]

    @property
    def folder(self) -> Path:
        """Where script and logs lie."""
        return self.job.log.parent

    @property
    def holds_runs(self) -> bool:
        """Whether no other job may work in its run folders at the same time."""
        return self.command.verb in ("train", "prepare latents")


def submission_of(command: Command, typed: str, waits_for: Path | None = None) -> Submission:
    """The job of a command. waits_for: the folder of the run that another job makes before.

    Raises the errors that training.job.exit_status foresees when a setting can't work.
    """
    for argument in (*command.overrides, *command.own):
        if found := credential_in_override(argument):
            remedy = (
                "credentials don't belong into a command, which is written into scripts; set AWS_ACCESS_KEY_ID, ..."
            )
            raise ConfigurationError(*found, remedy)
    config = compose.composed("submit", command.own)
    profile = profile_of(config)
    if waits_for is not None and command.verb == "evaluate" and not command.given("run"):
        command = command.with_overrides(f"run={waits_for}")
    compose.check_overrides(command.config_name, command.overrides)
    _array_fits(command, config)
    build = {"train": _train, "evaluate": _evaluate, "prepare latents": _prepare_latents}.get(command.verb, _prepare)
    return build(command, config, profile, typed)


def _array_fits(command: Command, config: DictConfig) -> None:
    if config.grid and command.verb != "train":
        raise ConfigurationError("grid", OmegaConf.to_container(config.grid), "it is of `ldm submit train` alone")
    if config.shares is not None and command.verb not in ("prepare", "prepare latents"):
        remedy = "it is of `ldm submit prepare` and `ldm submit prepare latents` alone"
        raise ConfigurationError("shares", config.shares, remedy)
    for key in ("shares", "at_once"):
        value = config[key]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigurationError(key, value, "it must be a whole number of at least 1, or null")


def _train(command: Command, config: DictConfig, profile: Profile, typed: str) -> Submission:
    from training.train import check

    command = _with_scratch(command, profile)
    base = command.composed()
    variants = list(_grid(command, config.grid, base.run))
    configs = [variant.composed() for variant in variants] if config.grid else [base]
    for one in configs:
        check(one, profile.ranks)
    told = planned.summary(variants[0], profile, bool(config.check_memory))
    preflight = of_cluster(command.own)
    job = _job(
        command,
        profile,
        typed,
        name=f"ldm-{_plain_name(base.run.name)}",
        folder=_absolute(base.run.folder),
        arguments=[variant.overrides for variant in variants],
    )
    job = replace(job, at_once=config.at_once, preflight=preflight if profile.preflight["enabled"] else None)
    return Submission(job, command, [_absolute(one.run.folder) for one in configs], configs[0], told)


def _evaluate(command: Command, config: DictConfig, profile: Profile, typed: str) -> Submission:
    from evaluation.evaluate import build_protocol

    own = command.composed()
    _has_values(own)
    build_protocol(own)
    folder = _absolute(own.run)
    job = _job(command, profile, typed, f"ldm-evaluate-{_plain_name(folder.name)}", folder, [command.overrides])
    return Submission(job, command, [folder], own, [])


def _prepare_latents(command: Command, config: DictConfig, profile: Profile, typed: str) -> Submission:
    from training.prepare_latents import check

    command = _with_scratch(command, profile)
    own = command.composed()
    check(own, profile.ranks)
    folder = _absolute(own.run.folder)
    name = f"ldm-latents-{_plain_name(own.run.name)}"
    job = _job(command, profile, typed, name, folder, [["latents", *command.overrides]])
    told = [] if config.shares is None else [f"{config.shares} array tasks share the shards"]
    return Submission(replace(job, shares=config.shares, at_once=config.at_once), command, [folder], own, told)


def _prepare(command: Command, config: DictConfig, profile: Profile, typed: str) -> Submission:
    """One process on one node."""
    own = command.composed()
    _has_values(own)
    profile = replace(profile, nodes=1, gpus_per_node=0, tasks_per_node=1)
    folder = _absolute("runs/prepare")
    words = command.verb.split()[1:]
    job = _job(command, profile, typed, "ldm-prepare", folder, [[*words, *command.overrides]])
    told = [] if config.shares is None else [f"{config.shares} array tasks share the samples"]
    return Submission(replace(job, shares=config.shares, at_once=config.at_once), command, [], own, told)


def _job(
    command: Command, profile: Profile, typed: str, name: str, folder: Path, arguments: Sequence[Sequence[str]]
) -> BatchJob:
    script = command.verb.split()[0]
    log = folder / FOLDER / f"{command.verb.replace(' ', '_')}-%j.log"
    mounts = [Path.cwd(), folder, *([Path(profile.scratch)] if profile.scratch else [])]
    return BatchJob(script, arguments, profile, name, log, Path.cwd(), _program(profile), typed, mounts)


def _program(profile: Profile) -> Path:
    """`ldm` of the environment that this process is from, or of LDM_VENV."""
    venv = os.environ.get("LDM_VENV", sys.prefix)
    path = Path(venv) / "bin" / "ldm"
    if profile.container.runtime == "none" and not os.access(path, os.X_OK):
        found = shutil.which("ldm")
        if "LDM_VENV" in os.environ or found is None:
            raise ConfigurationError("LDM_VENV", venv, f"{path} isn't there; install the project into an environment")
        return Path(found)
    return path


def _grid(command: Command, grid: DictConfig, run: DictConfig) -> Iterator[Command]:
    """A command for each combination of values, with a run of its own, which is called after `run`."""
    choices: dict[str, Any] = OmegaConf.to_container(grid)  # type: ignore[assignment]
    if not choices:
        yield command
        return
    for key, values in choices.items():
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"grid.{key}", values, "give a list of values: {learning_rate.base: [1e-4, 2e-4]}")
    if OmegaConf.is_missing(run, "name"):
        raise ConfigurationError("run.name", "???", "it has no value; the runs of the grid are called after it")
    for number, values in enumerate(itertools.product(*choices.values())):
        chosen = [f"{key}={_written(value)}" for key, value in zip(choices, values, strict=True)]
        places = [f"run.name={run.name}-{number}"]
        if command.given("run.folder"):
            places.append(f"run.folder={run.folder}-{number}")
        variant = command.with_overrides(*chosen, *places)
        compose.check_overrides(variant.config_name, variant.overrides)
        yield variant


def _written(value: object) -> str:
    """A value as an override has it."""
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else json.dumps(value)


def _with_scratch(command: Command, profile: Profile) -> Command:
    """Blocks of remote shards are kept on the nodes' own disks, where the profile names a folder there."""
    if profile.scratch is None or command.given("data.storage.cache_folder"):
        return command
    return command.with_overrides(f"data.storage.cache_folder={_written(f'{profile.scratch}/shards')}")


def _has_values(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigurationError(missing[0], "???", "it has no value; set it on the command line")


def _absolute(folder: str) -> Path:
    return Path(os.path.abspath(folder))


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
