"""Slurm's own commands, and what their errors mean."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurm.profile import Profile
from training.errors import ConfigurationError

PATIENCE_SECONDS = 60
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


class SlurmError(Exception):
    """Slurm isn't there, doesn't answer, or refuses."""


def run(*command: str) -> str:
    """Standard output of one of Slurm's commands. Raises SlurmError with the last line of what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except FileNotFoundError:
        raise SlurmError(
            f"there is no {command[0]} on this machine: submit from a login node of the cluster, or print the script "
            "with --dry-run"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} hasn't answered for {PATIENCE_SECONDS} s; is the controller up?") from None
    if done.returncode:
        raise SlurmError("; ".join(_complaints(done.stderr)) or f"{command[0]} ended with status {done.returncode}")
    return done.stdout.strip()


def _complaints(text: str) -> list[str]:
    """Lines without the program's name before them."""
    lines = (re.sub(r"^(\w+: )?(error|fatal): ", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def test(script: Path, profile: Profile, options: Sequence[str] = ()) -> None:
    """Has Slurm judge a script without submitting it. Raises ConfigurationError naming the setting at fault, or
    SlurmError."""
    try:
        run("sbatch", "--test-only", *options, str(script))
    except SlurmError as error:
        raise _explained(error, profile) from None


def submit(script: Path, profile: Profile, options: Sequence[str] = ()) -> str:
    """Submits a script, and returns the job's number. Raises as `test` does."""
    try:
        return run("sbatch", "--parsable", *options, str(script)).partition(";")[0]
    except SlurmError as error:
        raise _explained(error, profile) from None


def live(jobs: Sequence[str]) -> dict[str, str]:
    """The state of those jobs that wait or run, by number; of an array that of one of its tasks."""
    states = {}
    for job in jobs:
        try:
            found = re.findall(r"\bJobState=(\w+)", run("scontrol", "show", "job", job, "--oneliner"))
        except SlurmError as error:
            if "Invalid job id" in str(error):  # so long ago that Slurm has forgotten it
                continue
            raise
        if living := [state for state in found if state not in ENDED]:
            states[job] = living[0]
    return states


def _explained(error: SlurmError, profile: Profile) -> Exception:
    """The setting that Slurm's words are about."""
    text = str(error)
    if re.search("invalid partition", text, re.IGNORECASE):
        there = ", ".join(sorted(set(run("sinfo", "--noheader", "--format=%R").split())))
        return ConfigurationError("cluster.partition", profile.partition, f"there is no such partition; choose {there}")
    if re.search("invalid account", text, re.IGNORECASE):
        remedy = (
            "Slurm wants an account that you and the partition may use; `sacctmgr show associations user=$USER` lists "
            "yours"
        )
        return ConfigurationError("cluster.account", profile.account, remedy)
    if re.search("invalid qos", text, re.IGNORECASE):
        remedy = "there is no such QOS, or you may not use it; `sacctmgr show associations user=$USER` lists yours"
        return ConfigurationError("cluster.qos", profile.qos, remedy)
    if re.search("node (configuration|count)", text, re.IGNORECASE):
        asked = f"{profile.nodes} nodes with {profile.gpus_per_node} GPUs, {profile.memory} memory"
        remedy = f"no such nodes are there for {asked}; `sinfo --Node --long` lists them ({text})"
        return ConfigurationError("cluster.nodes", profile.nodes, remedy)
    return SlurmError(f"Slurm refuses the job: {text}")
