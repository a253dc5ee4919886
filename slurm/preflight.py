"""`ldm preflight`: one task on each node of a Slurm job looks at it, and all of them at the network between them.

The first node's task judges. Exit status, the same on all nodes: 0 all is well; 75 bad nodes are named in the file
excluded_nodes, and others may do; 2 it isn't the nodes.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from slurm.command import split
from slurm.verdict import SLOW_SHARE, Finding, Verdict, judge, rounds_of_pairs, skews, slow_ones
from training import compose
from training.errors import ConfigurationError

if TYPE_CHECKING:
    from slurm.network import Meeting

EXCLUDED, VERDICT, REPORT = "excluded_nodes", "preflight.verdict", "preflight.json"
PORTS = 30000, 2000
"""First port and how many: beyond those of slurm/ranks.sh, below those that kernels hand out."""


def main() -> None:
    """Entry point of `ldm preflight` and `python -m slurm.preflight`."""
    own, overrides = split(sys.argv[1:], "preflight")
    flags = [argument for argument in overrides if "=" not in argument and not argument.startswith("~")]
    sys.argv[1:] = [*own, *flags]
    compose.command("preflight", partial(run, [o for o in overrides if o not in flags]), (ConfigurationError,))


def run(overrides: list[str], config: DictConfig) -> None:
    """This node's part. Ends the process with the status that all nodes agree on."""
    compose.check_overrides("train", overrides)
    place = {name: os.environ.get(name) for name in ("SLURM_NODEID", "SLURM_NNODES", "SLURM_JOB_ID", "MASTER_ADDR")}
    if missing := [name for name, value in place.items() if value is None]:
        raise ConfigurationError(missing[0], None, "start it with srun, one task a node, as slurm/train.sbatch does")
    from slurm.network import Meeting
    from slurm.node_checks import check_node

    number, count, job = (int(place[name] or 0) for name in ("SLURM_NODEID", "SLURM_NNODES", "SLURM_JOB_ID"))
    try:
        meeting = Meeting(str(place["MASTER_ADDR"]), PORTS[0] + job % PORTS[1], number, count)
    except RuntimeError as error:
        compose.fail(f"{os.environ.get('SLURMD_NODENAME')}: no way to {place['MASTER_ADDR']}: {error}")
    finding = check_node(config, compose.composed("train", overrides), os.environ["SLURMD_NODENAME"], number)
    raise SystemExit(lead(meeting, finding, config) if number == 0 else follow(meeting, finding))


def follow(meeting: Meeting, finding: Finding) -> int:
    """The part of any node but the first; returns the status to exit with."""
    from slurm.network import LONG_PATIENCE

    offset, doubt = meeting.offset()
    meeting.tell(f"finding-{meeting.number}", json.dumps([asdict(finding), offset, doubt]))
    members = json.loads(meeting.hear("members", LONG_PATIENCE) or "[]")
    _measure(meeting, "all", members)
    for name, pairs in json.loads(meeting.hear("rounds", LONG_PATIENCE) or "[]"):
        for pair in pairs:
            _measure(meeting, name, pair)
    status = int(meeting.hear("verdict", LONG_PATIENCE) or 1)
    meeting.tell(f"heard-{meeting.number}", "")
    return status


def lead(meeting: Meeting, own: Finding, config: DictConfig) -> int:
    """The first node's part: collects, judges, writes down. Returns the status to exit with."""
    bounds, folder = config.cluster.preflight, Path(config.folder)
    findings, offsets, doubts = {0: own}, {own.node: 0.0}, {own.node: 0.0}
    for number in range(1, meeting.count):
        heard = meeting.hear(f"finding-{number}") if meeting.answer_clock(number) else None
        if heard is not None:
            told, offset, doubt = json.loads(heard)
            findings[number] = Finding(**told)
            offsets[findings[number].node], doubts[findings[number].node] = -offset, doubt
    for found in findings.values():
        skew = skews(offsets)[found.node]
        found.measured["clock"] = f"{1000 * skew:+.0f} ms"
        if abs(skew) - doubts[found.node] > bounds.clock_skew_seconds:
            found.problems["clock"] = f"its clock is {skew:+.1f} s off; {bounds.clock_skew_seconds} s are allowed"
    _look_at_network(meeting, findings, config)
    names = _node_names(meeting.count)
    silent = [names[number] for number in range(meeting.count) if number not in findings]
    before = _lines(folder / EXCLUDED)
    verdict = judge(list(findings.values()), silent, len(before), bounds.most_excluded)
    _write(folder, list(findings.values()), verdict, before)
    meeting.tell("verdict", str(verdict.status))
    for number in range(1, meeting.count):  # this process serves the store that they hear it from
        if number in findings:
            meeting.hear(f"heard-{number}")
    return verdict.status


def _look_at_network(meeting: Meeting, findings: dict[int, Finding], config: DictConfig) -> None:
    """An all-reduce between all nodes; where it is slow, between neighbours, to find out because of whom."""
    expected = _expected(config)
    members = [number for number, found in findings.items() if "GPUs" not in found.problems]
    meeting.tell("members", json.dumps(members))
    rate = _rate_of(meeting, "all", members)
    rounds: list[tuple[str, list[tuple[int, int]]]] = []
    if rate is not None and rate < SLOW_SHARE * expected:
        rounds = [
            (f"round-{number}", [(members[a], members[b]) for a, b in pairs])
            for number, pairs in enumerate(rounds_of_pairs(len(members)))
        ]
    meeting.tell("rounds", json.dumps(rounds))
    rates = {pair: _rate_of(meeting, name, list(pair)) or 0.0 for name, pairs in rounds for pair in pairs}
    slow = slow_ones(rates, expected)
    for number in members if rate is not None else []:
        findings[number].measured["all-reduce"] = f"{(rate or 0) / 1e9:.2f} GB/s"
        if number in slow:
            best = max(value for pair, value in rates.items() if number in pair)
            findings[number].problems["network"] = (
                f"an all-reduce with its neighbours brings {best / 1e9:.2g} GB/s, {expected / 1e9:.2g} are expected "
                "(cluster.preflight.network_gigabytes_per_second)"
            )
    if rounds and not slow:
        print(f"pre-flight: all nodes together reach {(rate or 0) / 1e9:.2g} of {expected / 1e9:.2g} GB/s, pairs more")


def _measure(meeting: Meeting, name: str, members: list[int]) -> None:
    """Takes part in a measurement, if this node is among its members, and tells what it found."""
    if meeting.number in members and len(members) > 1:
        tag = f"{name}-{'-'.join(map(str, members))}" if name != "all" else name
        meeting.tell(f"rate-{tag}-{meeting.number}", repr(meeting.rate(tag, members)))


def _rate_of(meeting: Meeting, name: str, members: list[int]) -> float | None:
    """The slowest member's rate, after taking part where the first node is one. None: there aren't two."""
    if len(members) < 2:
        return None
    _measure(meeting, name, members)
    tag = f"{name}-{'-'.join(map(str, members))}" if name != "all" else name
    return min(float(meeting.hear(f"rate-{tag}-{number}") or 0.0) for number in members)


def _expected(config: DictConfig) -> float:
    from slurm.node_checks import expected_network
    from training.compose import CONFIG_FOLDER

    gpu = config.cluster.gpu
    card = None if gpu is None else OmegaConf.load(CONFIG_FOLDER / "gpu" / f"{gpu}.yaml").network_bytes_per_second
    return expected_network(config.cluster.preflight, card)


def _node_names(count: int) -> list[str]:
    """Of the job's nodes, in the order of their numbers."""
    from slurm.queue import run as ask

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    return ask("scontrol", "show", "hostnames", nodes).split()[:count]


def _write(folder: Path, findings: list[Finding], verdict: Verdict, before: list[str]) -> None:
    """Tells in the log, and leaves the files that slurm/ranks.sh reads."""
    for found in findings:
        measured = ", ".join(f"{name} {value}" for name, value in found.measured.items())
        print(f"pre-flight: {found.node}: {measured}")
    for node, problem in verdict.bad.items():
        print(f"pre-flight: {node} is bad: {problem}")
    for problem in verdict.common:
        print(f"pre-flight: no other nodes would help: {problem}")
    record = {"findings": [asdict(found) for found in findings], "bad": verdict.bad, "common": verdict.common}
    (folder / REPORT).write_text(json.dumps(record, indent=1) + "\n")
    (folder / EXCLUDED).write_text("".join(f"{node}\n" for node in dict.fromkeys([*before, *verdict.bad])))
    (folder / VERDICT).write_text(f"{verdict.status}\n")
    sys.stdout.flush()


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


if __name__ == "__main__":
    main()
