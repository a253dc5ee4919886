"""What a node finds out about itself."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from data.errors import DataError
from data.stream import Storage
from slurm.verdict import Finding
from training.components import component
from training.data_sources import sources_of

SHARED_MEMORY = Path("/dev/shm")
MATRIX = 4096
READ_BYTES, PIECE_BYTES, READ_SECONDS = 256 << 20, 8 << 20, 10.0


def check_gpus(finding: Finding, asked: int) -> None:
    """As many GPUs as Slurm gave to the node, each of which multiplies right."""
    if not asked:
        return
    seen = torch.cuda.device_count()
    finding.measured["GPUs"] = f"{seen}"
    if seen < asked:
        finding.problems["GPUs"] = f"{seen} GPUs are seen of {asked}"
        return
    for number in range(seen):
        try:
            problem = _multiplies(torch.device("cuda", number))
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
        if problem is not None:
            finding.problems["GPUs"] = f"GPU {number}: {problem}"
            return


def _multiplies(device: torch.device) -> str | None:
    """What is wrong with a product of whole numbers, which any order of summation gives exactly."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-4, 5, (MATRIX, 64), generator=generator).float() for _ in range(2))
    product = (left.to(device) @ right.to(device).T).cpu()
    wrong = int((product != left @ right.T).sum())
    return f"a matrix product is wrong in {wrong} places" if wrong else None


def check_room(finding: Finding, check: str, folder: Path, gigabytes: float) -> None:
    """So much free space in a folder, or in the nearest one above it that is there."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        free = shutil.disk_usage(there).free / 1e9
    except OSError as error:
        finding.problems[check] = f"{folder}: {error.strerror}"
        return
    finding.measured[check] = f"{free:.1f} GB free"
    if free < gigabytes:
        finding.problems[check] = f"{folder}: {free:.2g} GB are free, {gigabytes:g} GB are asked for"
    elif not os.access(there, os.W_OK):
        finding.problems[check] = f"{folder}: no leave to write there"


def check_store(finding: Finding, config: DictConfig, number: int, megabytes_per_second: float) -> None:
    """Reads from the training shards for a while; node `number` begins with another shard than its neighbours.

    config: of the run. Nothing is asked where the store is the run's own, and where the shards are yet to be written
    only whether it answers.
    """
    if config.data.embedded_store:
        return
    uncached = OmegaConf.merge(config, {"data": {"storage": {"cache_folder": None}}})  # which would be measured instead
    assert isinstance(uncached, DictConfig)
    storage: Storage = component(uncached, "data.storage")
    try:
        if config.data.prepare is not None:
            storage.check_writable_place(config.data.url)
            return
        sources = sources_of(config)
        shards = storage.check(sources[number % len(sources)].urls)
        rate = _reading_rate(storage, shards[number % len(shards) :] + shards[: number % len(shards)]) / 1e6
    except DataError as error:
        finding.problems["store"] = str(error)
        return
    finding.measured["store"] = f"{rate:.0f} MB/s"
    if rate < megabytes_per_second:
        finding.problems["store"] = f"reading brings {rate:.0f} MB/s, {megabytes_per_second:g} are asked for"


def _reading_rate(storage: Storage, shards: list[str]) -> float:
    """Bytes a second over READ_BYTES, READ_SECONDS or all shards, whatever ends first."""
    began, read = time.monotonic(), 0
    for shard in shards:
        size = storage.size(shard)
        for start in range(0, size, PIECE_BYTES):
            read += len(storage.read(shard, start, min(start + PIECE_BYTES, size)))
            if read >= READ_BYTES or time.monotonic() - began > READ_SECONDS:
                return read / (time.monotonic() - began)
    return read / (time.monotonic() - began)


def check_node(config: DictConfig, run: DictConfig, name: str, number: int) -> Finding:
    """Everything that a node can find out alone. config: of `ldm preflight`; run: of `ldm train`."""
    finding, bounds = Finding(name), config.cluster.preflight
    check_gpus(finding, int(os.environ.get("SLURM_GPUS_ON_NODE") or 0))
    check_room(finding, "/dev/shm", SHARED_MEMORY, bounds.shared_memory_gigabytes)
    check_room(finding, "run folder", Path(run.run.folder), bounds.free_disk_gigabytes)
    if config.cluster.scratch is not None:
        check_room(finding, "scratch", Path(config.cluster.scratch), bounds.free_disk_gigabytes)
    check_store(finding, run, number, bounds.store_megabytes_per_second)
    return finding


def expected_network(settings: Any, card_bytes_per_second: float | None) -> float:
    """Bytes a second that an all-reduce between nodes should reach; 0: nothing is expected.

    card_bytes_per_second: a GPU's share of the network by its data sheet, where it is known.
    """
    if settings.network_gigabytes_per_second is not None:
        return float(settings.network_gigabytes_per_second) * 1e9
    return 0.0 if card_bytes_per_second is None else 0.75 * card_bytes_per_second
