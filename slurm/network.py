"""What nodes find out together: their clocks, and how fast they add up tensors between them."""

from __future__ import annotations

import datetime
import os
import time

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(seconds=120)
"""For a node to come, and to look at itself."""
LONG_PATIENCE = datetime.timedelta(minutes=30)
"""For the first node, which waits for all others."""
COLLECTIVE_PATIENCE = datetime.timedelta(seconds=60)
ELEMENTS = {"nccl": 64 << 20, "gloo": 2 << 20}
"""Of the tensor that is added up, float32: large enough that starting doesn't count."""
ROUNDS = 5


class Meeting:
    """The store that one task of each node meets at; the first one's node serves it."""

    def __init__(self, host: str, port: int, number: int, count: int) -> None:
        self.number, self.count = number, count
        self._store = dist.TCPStore(host, port, count, number == 0, PATIENCE, wait_for_workers=False)

    def tell(self, key: str, text: str) -> None:
        """For whoever asks for that key."""
        self._store.set(key, text)

    def hear(self, key: str, patience: datetime.timedelta = PATIENCE) -> str | None:
        """What was told, as soon as it is; None when nobody has within `patience`."""
        try:
            self._store.wait([key], patience)
            return str(self._store.get(key), "utf-8")
        except RuntimeError:  # torch's DistStoreError among them
            return None

    def offset(self) -> tuple[float, float]:
        """How far the first node's clock is ahead of this one's, and how far off that may be, in seconds."""
        self.hear(f"turn-{self.number}", LONG_PATIENCE)
        asked = time.time()
        self.tell(f"asks-{self.number}", "")
        there = self.hear(f"clock-{self.number}")
        answered = time.time()
        return float(there or "nan") - (asked + answered) / 2, (answered - asked) / 2

    def answer_clock(self, number: int) -> bool:
        """Tells node `number` the time when it asks; False when it doesn't."""
        self.tell(f"turn-{number}", "")
        if self.hear(f"asks-{number}") is None:
            return False
        self.tell(f"clock-{number}", repr(time.time()))
        return True

    def rate(self, name: str, members: list[int]) -> float:
        """Bytes a second that each member sends while they all-reduce a tensor; the slowest GPU's. 0 when it fails.

        name: that this measurement alone has. Every member calls it. By the ring, whose members send 2 (n - 1)/n of
        the tensor; all GPUs of a node do so one after the other, each through its own part of the network.
        """
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # errors instead of the end of this process
        store = dist.PrefixStore(name, self._store)
        try:
            dist.init_process_group(
                backend,
                store=store,
                rank=members.index(self.number),
                world_size=len(members),
                timeout=COLLECTIVE_PATIENCE,
            )
            devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] or [torch.device("cpu")]
            return min(_rate(ELEMENTS[backend], len(members), device) for device in devices)
        except RuntimeError:
            return 0.0
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _rate(elements: int, members: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tensor = torch.zeros(elements, device=device)
    dist.all_reduce(tensor)
    float(tensor[0])
    began = time.monotonic()
    for _ in range(ROUNDS):
        dist.all_reduce(tensor)
    float(tensor[0])  # waits for a GPU
    sent = 2 * (members - 1) / members * tensor.nbytes * ROUNDS
    return sent / (time.monotonic() - began)
