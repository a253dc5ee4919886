"""Where runs of the chaos take place: shards in an S3 store behind a proxy, and a small disk for checkpoints."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from data.prepare import prepare
from data.store import EmbeddedStore
from data.stream import Storage
from tests.conftest import Squares, tiny_diffusion_settings, untrained_first_stage
from tests.data.faulty import FaultyProxy

EVERY = 4
"""Steps from one checkpoint to the next."""
WATCHDOG_SECONDS = 10
PATIENCE_SECONDS = 6
TIMEOUT_SECONDS, SLOW_SECONDS = 1, 1.5
MAX_FAILURES = 20
"""A run that somebody kills every few seconds, at the start too, is in no crash loop."""
DISK_MEGABYTES = 256
SETTINGS = (
    *(
        "run.ranks=2",
        "batch.global_size=4",
        "batch.micro_size=2",
        "data.workers=1",
        f"checkpoint.every={EVERY}",
        "checkpoint.keep=3",
    ),
    *(f"watchdog.seconds={WATCHDOG_SECONDS}", f"run.max_failures={MAX_FAILURES}"),
    *(f"data.storage.patience_seconds={PATIENCE_SECONDS}", f"data.storage.timeout_seconds={TIMEOUT_SECONDS}"),
    # As little as a sample: each step asks the store, as with data that no memory holds.
    *("data.storage.block_bytes=4096", "data.storage.cache_bytes=8192"),
)


class Store:
    """Context manager: an S3 store with the squares, at an address that stays the same when it is killed and comes
    back."""

    def __init__(self, folder: Path) -> None:
        self._store = EmbeddedStore(folder)

    def __enter__(self) -> Store:
        self._store.__enter__()
        self.proxy = FaultyProxy(self._address(), {}, SLOW_SECONDS)
        self.proxy.__enter__()
        self.environment = {**self._store.environment, "AWS_ENDPOINT_URL": self.proxy.url}
        self.url = f"{self._store.url}/squares"
        self.uploads = f"{self._store.url}/run"
        os.environ.update(self._store.environment)
        prepare(Squares(), self.url, Storage(), samples_per_shard=20)
        os.environ.update(self.environment)
        return self

    def __exit__(self, *error: object) -> None:
        self.proxy.__exit__(None, None, None)
        self._store.__exit__(None, None, None)
        for name in self.environment:
            os.environ.pop(name, None)

    def kill(self) -> None:
        """As a machine dies: at once. What it had acknowledged is on its disk."""
        for child in psutil.Process().children():
            if "weed" in child.name():
                child.kill()

    def restart(self) -> None:
        """At other ports, as the proxy knows."""
        self._store.__exit__(None, None, None)
        self._store.__enter__()
        self.proxy.upstream = self._address()

    def _address(self) -> tuple[str, int]:
        address = urlsplit(self._store.endpoint_url)
        return str(address.hostname), int(address.port or 0)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a file system of DISK_MEGABYTES there; False where that isn't allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def settings(folder: Path, url: str, steps: int) -> list[str]:
    """Overrides of the run, but for its folder; writes the first stage that it uses."""
    weights = folder / "first_stage.safetensors"
    untrained_first_stage(weights)
    return [*tiny_diffusion_settings(url, weights), *SETTINGS, f"steps={steps}"]
