"""`ldm submit`: checks a command as its job will, writes the batch script, and hands it to Slurm."""

from __future__ import annotations

import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slurm import queue
from slurm.command import Command, of_cluster, parse
from slurm.dashboard import dashboard
from slurm.places import check_stores
from slurm.script import render
from slurm.submission import FOLDER, Submission, submission_of
from training import compose
from training.errors import ConfigurationError

JOBS = "jobs.jsonl"
DEPENDENCY = {"then": "afterok", "beside": "after"}


def main() -> None:
    """Entry point of `ldm submit` and `python -m slurm.submit`."""
    arguments = ["dry_run=true" if argument == "--dry-run" else argument for argument in sys.argv[1:]]
    command = parse(arguments)
    flags = [argument for argument in command.overrides if "=" not in argument and not argument.startswith("~")]
    overrides = [argument for argument in command.overrides if argument not in flags]
    typed = shlex.join(["ldm", "submit", *sys.argv[1:]])
    sys.argv[1:] = [*command.own, *flags]
    compose.command("submit", partial(run, Command(command.verb, overrides, command.own), typed), ())


def run(command: Command, typed: str, config: DictConfig) -> None:
    """Checks everything, then submits the job and those that follow it."""
    from training.job import exit_status

    try:
        first = submission_of(command, typed)
        followers = [(key, _follower(key, text, first, typed)) for key in DEPENDENCY for text in config[key]]
        if config.dry_run:
            for told in first.told:
                print(told, file=sys.stderr)
            print("\n".join(render(each.job) for each in (first, *(follower for _, follower in followers))), end="")
            return
        for each in (first, *(follower for _, follower in followers)):
            _check_here(each)
        job = _submit(first)
        for key, follower in followers:
            _submit(follower, f"--dependency={DEPENDENCY[key]}:{job}", "--kill-on-invalid-dep=yes")
    except Exception as error:
        if not isinstance(error, queue.SlurmError) and exit_status(error) is None:
            raise
        compose.fail(str(error))


def _follower(key: str, text: str, first: Submission, typed: str) -> Submission:
    """A command of `then` or `beside`: on the same cluster, and of the same run, where it doesn't say otherwise."""
    command = parse(shlex.split(text))
    if command.verb == "train" and not text.startswith("train"):
        raise ConfigurationError(key, text, "begin with the verb, such as evaluate")
    cluster = of_cluster(first.command.own)
    if others := [own for own in command.own if own not in of_cluster(command.own)]:
        raise ConfigurationError(key, text, f"{others[0]} is for what is submitted first; leave it out here")
    if len(first.runs) != 1:
        raise ConfigurationError(key, text, "it follows one run, and an array or a preparation has none or many")
    return submission_of(Command(command.verb, command.overrides, [*cluster, *command.own]), typed, first.runs[0])


def _check_here(submission: Submission) -> None:
    """What can be known on this machine, now. Raises DataError, ConfigurationError or queue.SlurmError."""
    from training.launch import hold_run_folder

    script = _write(submission, f"{_stem(submission)}.sbatch")
    queue.test(script, submission.job.profile)
    check_stores(submission)
    if submission.holds_runs:
        for folder in submission.runs:
            if states := queue.live([job["job"] for job in jobs_of(folder) if job["holds"]]):
                told = ", ".join(f"{job} is {state}" for job, state in states.items())
                remedy = f"another live job holds this run: {told}; scancel it, or choose another run.name"
                raise ConfigurationError("run.folder", folder, remedy)
            with hold_run_folder(folder):  # by a job that this command didn't submit
                pass


def _submit(submission: Submission, *options: str) -> str:
    """Submits it, keeps the job's number with its runs, and tells. Returns the number."""
    job = submission.job
    script = _write(submission, f"{_stem(submission)}.sbatch")
    number = queue.submit(script, job.profile, options)
    script = script.replace(script.with_name(f"{_stem(submission)}-{number}.sbatch"))
    for task, folder in enumerate(submission.runs):
        one = number if len(submission.runs) == 1 else f"{number}_{task}"
        note = {"job": one, "verb": submission.command.verb, "holds": submission.holds_runs, "script": str(script)}
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        with (folder / FOLDER / JOBS).open("a") as file:
            file.write(json.dumps(note | {"submitted": time.time()}) + "\n")
    waits = f", waits: {options[0].removeprefix('--dependency=')}" if options else ""
    ranks = f"{job.profile.nodes} x {job.profile.ranks_per_node} ranks"
    tasks = f", {job.tasks} array tasks" if job.tasks else ""
    print(f"job {number}: {submission.command.verb}, {ranks}{tasks}{waits}")
    print(f"  script     {script}")
    print(f"  log        {str(job.output).replace('%j', number).replace('%A', number)}")
    for folder in submission.runs if submission.command.verb == "train" else []:
        print(f"  dashboard  {dashboard(folder, submission.config.tracker)}")
    for line in submission.told:
        print(f"  plan       {line}")
    return number


def _write(submission: Submission, name: str) -> Path:
    submission.folder.mkdir(parents=True, exist_ok=True)
    path = submission.folder / name
    path.write_text(render(submission.job))
    return path


def _stem(submission: Submission) -> str:
    return submission.command.verb.replace(" ", "_")


def jobs_of(folder: Path) -> list[dict[str, Any]]:
    """The jobs that were submitted for a run."""
    path = folder / FOLDER / JOBS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
