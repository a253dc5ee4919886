"""Who am I among the ranks, and what do we agree on. A leaf: imports nothing else of this project."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE_MINUTES = 30
VALUE_BYTES, LENGTH_BYTES = 4096, 8
"""Of a message of `gather_values`, and of its length before it."""


@dataclass(frozen=True)
class Distributed:
    """This process's place in the job, and the few collectives the project needs outside the engine.

    With one process every collective is the identity, so callers never branch on the world size.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the rank that writes what must be written once."""
        return self.rank == 0

    def share(self, count: int, size: int) -> list[torch.Tensor]:
        """This rank's of the numbers below `count`, every `world`-th, in parts of at most `size`: int64 each. None
        where there are more ranks than numbers."""
        mine = torch.arange(count)[self.rank :: self.world]
        return list(mine.split(size)) if len(mine) else []

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of `tensor` over all ranks, in its own dtype; the argument is left alone."""
        total = tensor.detach().clone()
        if dist.is_initialized():
            # NCCL moves device tensors only; a statistic on the CPU travels through the device.
            moved = total.to(self.device)
            dist.all_reduce(moved)
            total = moved.to(tensor.device)
        return total

    def all_reduce_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the mean of `tensor` over all ranks."""
        return self.all_reduce_sum(tensor) / self.world

    def any(self, flag: bool) -> bool:
        """True on every rank when `flag` is true on at least one."""
        return bool(self.all_reduce_sum(torch.tensor(float(flag))) > 0)

    def gather_objects(self, value: Any) -> list[Any]:
        """Returns every rank's `value`, in rank order, on every rank."""
        if not dist.is_initialized():
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def gather_values(self, value: Any) -> list[Any]:
        """Returns every rank's `value`, in rank order, on every rank: what JSON holds, and tuples as lists.

        One collective, where `gather_objects` takes two, unless a value is longer than VALUE_BYTES.
        """
        if not dist.is_initialized():
            return [json.loads(json.dumps(value))]
        text = json.dumps(value).encode()
        room = VALUE_BYTES
        while True:
            gathered = self._gather_bytes(len(text).to_bytes(LENGTH_BYTES) + text, room)
            lengths = [int.from_bytes(part[:LENGTH_BYTES]) for part in gathered]
            if max(lengths) + LENGTH_BYTES <= room:
                texts = (part[LENGTH_BYTES:][:length] for part, length in zip(gathered, lengths, strict=True))
                return [json.loads(text) for text in texts]
            room = max(lengths) + LENGTH_BYTES  # the same on every rank

    def _gather_bytes(self, mine: bytes, room: int) -> list[bytes]:
        """The first `room` bytes of every rank's."""
        padded = torch.frombuffer(bytearray(mine[:room].ljust(room)), dtype=torch.uint8)
        everyone = torch.empty(self.world * room, dtype=torch.uint8, device=self.device)
        dist.all_gather_into_tensor(everyone, padded.to(self.device))
        whole = everyone.cpu().numpy().tobytes()
        return [whole[start : start + room] for start in range(0, len(whole), room)]

    def broadcast_object(self, value: Any) -> Any:
        """Returns rank 0's `value` on every rank."""
        if not dist.is_initialized():
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        if dist.is_initialized():
            dist.barrier()


def launched() -> bool:
    """True when a launcher (torchrun, or srun through slurm/train.sbatch) has set this process's place."""
    return all(name in os.environ for name in LAUNCHER_VARIABLES)


def adopt_slurm_variables() -> None:
    """Fills torch's rendezvous variables from srun's, where only srun's are there.

    `MASTER_ADDR` and `MASTER_PORT` come from slurm/train.sbatch, which alone knows the first node.
    """
    if "SLURM_PROCID" not in os.environ or "MASTER_ADDR" not in os.environ:
        return
    for ours, theirs in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
        os.environ.setdefault(ours, os.environ[theirs])


def initialise(patience_minutes: int = PATIENCE_MINUTES) -> Distributed:
    """Joins the process group that the launcher's variables describe; one process alone joins none.

    NCCL where there are GPUs, gloo otherwise. patience_minutes: how long ranks wait for one another.
    """
    adopt_slurm_variables()
    rank, world, local_rank = (
        int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if launched() and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=patience_minutes))
    return Distributed(rank, world, local_rank, device)


def become_a_group_of_one() -> None:
    """DeepSpeed needs a process group even for one process, and its place among those of the machine."""
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def in_group() -> bool:
    """True between `initialise` and `shut_down`, where there is more than this process."""
    return dist.is_initialized()


def shut_down() -> None:
    """Leaves the process group, if this process is in one."""
    if in_group():
        dist.destroy_process_group()


def all_gather_by_broadcasts(
    groups_flat: list[torch.Tensor],
    partitioned_param_groups: list[list[torch.Tensor]],
    dp_process_group: list[torch.distributed.ProcessGroup],
    start_alignment_factor: int,
    allgather_bucket_size: int,
) -> None:
    """DeepSpeed's all-gather of updated weights under ZeRO 1 and 2, for gloo.

    Gloo's own copies everything twice; a rank's part that is broadcast goes straight to its place.
    """
    for parts, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        for rank, part in enumerate(parts):
            torch.distributed.broadcast(part, group=group, group_src=rank)
