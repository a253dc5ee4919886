"""`ldm train` without a launcher: data made ready, then one process a rank through torch's launcher."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from omegaconf import DictConfig

from training.checks import threads_a_rank
from training.errors import ConfigurationError
from training.preemption import SAME_REQUEST_SECONDS, STOP_SIGNALS

RANK_MARK = "LDM_RANK_OF_LAUNCHER"
"""Set for ranks that `ldm train` starts: their data was made ready and checked by the process that started them."""
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Iterator[None]:
    """Keeps a second job out of the run folder while this one lives; the lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                "run.folder", folder, "another live job holds this run; stop it, or choose another run.name"
            ) from None
        yield


def start_ranks(config: DictConfig, overrides: list[str], ranks: int, environment: dict[str, str]) -> int:
    """Runs `ranks` local processes of this very job to their end; returns the launcher's exit status.

    SIGINT, SIGTERM and SIGUSR1 are passed to the ranks, which finish their step, save and leave; a second one ends
    them at once.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(f"--nproc-per-node={ranks}", "--nnodes=1", "--node-rank=0", "--monitor-interval=0.2"),
        *("--master-addr=127.0.0.1", f"--master-port={_free_port()}"),
        *("-m", "training.train", *overrides),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads_a_rank(ranks))} | environment | {RANK_MARK: "1"}
    # A session of its own: Ctrl-C reaches this process alone, which then tells the ranks once.
    launcher = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=lambda: die_with_parent(signal.SIGTERM)
    )
    with _passing_signals_on(launcher):
        return launcher.wait()


@contextlib.contextmanager
def _passing_signals_on(launcher: subprocess.Popen[bytes]) -> Iterator[None]:
    first: float | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first > SAME_REQUEST_SECONDS:
            launcher.terminate()
            return
        if first is None:
            first = now
            with contextlib.suppress(psutil.NoSuchProcess):
                for rank in psutil.Process(launcher.pid).children():
                    rank.send_signal(number)

    previous: dict[int, Any] = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def die_with_parent(number: int) -> None:
    """Asks the kernel for a signal when the parent ends, however it ends. Linux; elsewhere it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
