"""The batch script of a job as text: one of the .sbatch files beside this one, with a profile's lines in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.profile import Profile

HERE = Path(__file__).resolve().parent
DIRECTIVE = re.compile(r"#SBATCH --([a-z-]+)")
FUNCTIONS = ". slurm/ranks.sh"


@dataclass(frozen=True)
class BatchJob:
    """What is to be run, and where.

    script: train, evaluate or prepare: the .sbatch file whose steps the job takes. arguments: of `ldm` after that verb;
    several lists are an array's, one a task. shares: array tasks that share one list of arguments; None: no such array.
    at_once: array tasks that may run at the same time; None: all. name: of the job. log: its path, with %j for the
    job's number. folder: where relative paths start. ldm: the command's path outside containers. mounts: folders that
    containers need. typed: the command that the job is from. preflight: arguments of `ldm preflight` beside the run's;
    None: none is held.
    """

    script: str
    arguments: Sequence[Sequence[str]]
    profile: Profile
    name: str
    log: Path
    folder: Path
    ldm: Path
    typed: str
    mounts: Sequence[Path]
    shares: int | None = None
    at_once: int | None = None
    preflight: Sequence[str] | None = None

    @property
    def tasks(self) -> int | None:
        """Of the array; None: it is none."""
        return self.shares or (len(self.arguments) if len(self.arguments) > 1 else None)

    @property
    def output(self) -> Path:
        """The log as Slurm is told of it: of an array, %A is the job and %a the task."""
        return self.log if self.tasks is None else self.log.with_name(self.log.name.replace("%j", "%A_%a"))


def render(job: BatchJob) -> str:
    """The whole script: nothing in it is looked up in the clone when it runs, but the program itself."""
    template = (HERE / f"{job.script}.sbatch").read_text()
    _, head, body = re.split(r"\n\n(?=#SBATCH|set -u)", template, maxsplit=2)
    assert body.count(FUNCTIONS) == 1, f"{job.script}.sbatch takes {FUNCTIONS} in once"
    shell = "#!/bin/bash -l" if job.profile.modules else "#!/bin/bash"  # a login shell, as it knows `module`
    typed = " ".join(job.typed.splitlines())  # all of it is a comment
    written = f"# Written by: {typed}\n# Submit it again, to go on where that run stopped, with: sbatch <this file>"
    functions = (HERE / "ranks.sh").read_text().rstrip()
    settings = "\n".join(_settings(job))
    body = body.replace(FUNCTIONS, f"{settings}\n\n{functions}")
    return f"{shell}\n{written}\n\n{_head(head, _options(job))}\n\n{body}"


def _head(template: str, options: dict[str, str | None]) -> str:
    """The template's #SBATCH lines with ours in their place, and our others after them. An option that is None goes,
    and the comment above it."""
    lines: list[str] = []
    left = dict(options)
    for line in template.splitlines():
        name = found[1] if (found := DIRECTIVE.match(line)) else None
        if name not in options:
            lines.append(line)
        elif (ours := left.pop(name)) is not None:
            lines.append(_directive(name, ours))
        else:
            while lines and not DIRECTIVE.match(lines[-1]):
                lines.pop()
    added = [_directive(name, value) for name, value in left.items() if value is not None]
    return "\n".join([*lines, *(["# From the profile."] if added else []), *added])


def _directive(name: str, value: str) -> str:
    return f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")


def _options(job: BatchJob) -> dict[str, str | None]:
    """Options of sbatch by name; "": one without a value; None: one that the template has and this job hasn't."""
    profile = job.profile
    options: dict[str, str | None] = {
        "job-name": job.name,
        "output": _no_patterns(job.output),
        "nodes": str(profile.nodes),
        "mem": profile.memory,
        "exclusive": "" if profile.exclusive else None,
        "chdir": str(job.folder),
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "time": profile.time_limit,
        "gpus-per-node": str(profile.gpus_per_node) if profile.gpus_per_node else None,
        "ntasks-per-node": str(profile.ranks_per_node),
        "exclude": ",".join(profile.exclude) or None,
    }
    if profile.cpus_per_node is not None:
        options["cpus-per-task"] = str(max(1, profile.cpus_per_node // profile.ranks_per_node))
    if job.script == "train":
        options["signal"] = f"USR1@{profile.signal_lead_seconds}"
    if job.tasks is not None:
        limit = "" if job.at_once is None else f"%{job.at_once}"
        options["array"] = f"0-{job.tasks - 1}{limit}"
    for option in profile.sbatch_options:
        name, _, value = option.removeprefix("--").partition("=")
        options[name] = value
    return options


def _no_patterns(log: Path) -> str:
    """Slurm fills in %j, %A and %a in the file's name alone."""
    return str(log.parent).replace("%", "%%") + f"/{log.name}"


def _settings(job: BatchJob) -> Iterator[str]:
    """What a person would set by hand before: modules, variables, the container, the arguments."""
    profile = job.profile
    for module in profile.modules:
        yield f"module load {shlex.quote(module)}"
    for name, value in profile.environment.items():
        yield f"export {name}={shlex.quote(value)}"
    if profile.scratch is not None:
        for name in ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            folder = name.removesuffix("_DIR").removesuffix("_CACHE").lower()
            yield f"export {name}={shlex.quote(f'{profile.scratch}/{folder}')}"
    yield from _program(job)
    if job.script == "train":
        yield "LDM_PREFLIGHT=off" if job.preflight is None else f"preflight=({shlex.join(job.preflight)})"
    yield ""
    yield from _arguments(job)


def _program(job: BatchJob) -> Iterator[str]:
    container = job.profile.container
    if container.runtime == "none":
        yield f"ldm=({shlex.quote(str(job.ldm))})"
        return
    assert container.image is not None
    mounts = ",".join([*(f"{path}:{path}" for path in job.mounts), *container.mounts])
    if container.runtime == "pyxis":
        options = [f"--container-image={container.image}", f"--container-mounts={mounts}"]
        yield f"srun_options=({shlex.join([*options, f'--container-workdir={job.folder}'])})"
        yield "ldm=(ldm)"
    else:
        inside = ["apptainer", "exec", "--nv", "--bind", mounts, "--pwd", str(job.folder), container.image, "ldm"]
        yield f"ldm=({shlex.join(inside)})"


def _arguments(job: BatchJob) -> Iterator[str]:
    if len(job.arguments) == 1:
        yield _set(job.arguments[0])
        return
    yield "case $SLURM_ARRAY_TASK_ID in"
    for number, arguments in enumerate(job.arguments):
        yield f"    {number}) {_set(arguments)} ;;"
    yield "esac"


def _set(arguments: Sequence[str]) -> str:
    return " \\\n        ".join(["set --", *map(shlex.quote, arguments)])
