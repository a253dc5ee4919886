"""A job without a cluster's launcher: one local process a rank, through torch's own multiprocessing."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from training.checks import threads_a_rank
from training.errors import OUTAGE_STATUS, ConfigurationError
from training.preemption import SAME_REQUEST_SECONDS, STOP_SIGNALS, STOPPED_STATUS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import PContext
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

RANK_MARK = "LDM_RANK_OF_LAUNCHER"
"""Process id of the command that started a rank, and made ready and checked its data. Set for such ranks alone."""
TEMPORARY = "ldm-ranks-"
"""What names of folders begin with that hold temporary files of ranks."""
LONGEST_TEMPORARY = 107 - len("/pymp-12345678/listener-12345678")
"""Data workers have sockets below it, whose paths Linux bounds."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
POLL_SECONDS = 0.2
LIKELY_CAUSES: dict[int, str] = {
    signal.SIGKILL: " (out of memory?)",
    signal.SIGBUS: " (is the disk of engine.offload_folder full?)",
}
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Iterator[None]:
    """Keeps a second job out of the run folder while this one lives; the lock goes with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / "lock").open("w")
    except OSError as error:
        reason = f"no run can be kept there ({error.strerror}); choose another folder"
        raise ConfigurationError("run.folder", folder, reason) from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                "run.folder", folder, "another live job holds this run; stop it, or choose another run.name"
            ) from None
        yield


@dataclass(frozen=True)
class Ending:
    """How the ranks of a job ended: the exit status that tells it, and the error of the one that failed first."""

    status: int
    error: str | None = None


def start_ranks(module: str, overrides: list[str], ranks: int, environment: dict[str, str]) -> Ending:
    """Runs `ranks` local processes of a job, `python -m module`, to their end; status 0 when all of them ended well.

    SIGINT, SIGTERM and SIGUSR1 are passed to the ranks, which finish their step, save and leave; a second one ends
    them at once. When a rank fails the others are ended too, and the error that came first is printed, alone.
    """
    # It would raise an error at these from the moment of the start, at SIGHUP too, which nohup wants ignored.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    # Where the ranks meet. It is served from here: a port that rank 0 opened seconds later could be taken by then.
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_a_rank(ranks))),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        RANK_MARK: str(os.getpid()),
    }
    with _temporary_folder() as temporary, _handlers_restored():
        if len(temporary) <= LONGEST_TEMPORARY:
            place["TMPDIR"] = temporary
        requests = _Requests()
        requests.processes = start_processes(
            name="rank",
            entrypoint=sys.executable,
            args={rank: ("-m", module, *overrides) for rank in range(ranks)},
            envs={rank: environment | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)},
            logs_specs=DefaultLogsSpecs(log_dir=temporary),
        )
        requests.pass_on_early_ones()
        result = requests.processes.wait(period=POLL_SECONDS)
    assert result is not None
    failures = result.failures.values()
    if requests.forced is not None:
        return Ending(128 + requests.forced, f"ended at once by {signal.Signals(requests.forced).name}")
    if requests.first is not None and any(f.exitcode in (-requests.first, 128 + requests.first) for f in failures):
        print("stopped before a first step: there was nothing to save", file=sys.stderr)
        return Ending(STOPPED_STATUS)
    return explain(failures) if failures else Ending(0)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """For temporary files of ranks and their workers, and for what they tell. Those that killed launchers left go."""
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError), (left / "lock").open("r+") as lock:  # no lock yet, or somebody else's
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
    # A worker that is being killed may still write there.
    own = tempfile.TemporaryDirectory(prefix=TEMPORARY, ignore_cleanup_errors=True)
    with own as folder, (Path(folder) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@dataclass
class _Requests:
    """Passes the first request to stop to the ranks; one that comes later ends them, and their workers, at once."""

    processes: PContext | None = None
    first: int | None = None
    forced: int | None = None

    def __post_init__(self) -> None:
        self._time = 0.0
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self._time = number, now
            self._send(number)
        elif now - self._time > SAME_REQUEST_SECONDS:
            self.forced = number
            self._send(signal.SIGKILL)

    def pass_on_early_ones(self) -> None:
        """To be called when `processes` is set: what came while they were being started reached none or some."""
        if self.first is not None:
            self._send(self.first)

    def _send(self, number: int) -> None:
        """To the ranks; SIGKILL to their workers too."""
        pids = set(self.processes.pids().values()) if self.processes else set()
        for child in psutil.Process().children():  # not yet waited for, so their numbers belong to nobody else
            if child.pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    os.killpg(child.pid, number) if number == signal.SIGKILL else child.send_signal(number)


@contextlib.contextmanager
def _handlers_restored() -> Iterator[None]:
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def errors_for_launcher(exit_status: Callable[[Exception], int | None]) -> Iterator[None]:
    """Hands a rank's error to the process that started it, which prints one for all ranks: see `explain`.

    exit_status: that of an error whose message is told without a traceback, None for others.
    """
    try:
        yield
    except Exception as error:
        status = exit_status(error)
        text = f"error: {error}" if status is not None else f"rank {os.environ['RANK']}: {traceback.format_exc()}"
        tell_launcher(text, status or 1)
        raise SystemExit(status or 1) from None


def tell_launcher(message: str, status: int) -> bool:
    """Hands the process that started this rank what it shall print; False when a cluster's launcher started it."""
    if RANK_MARK not in os.environ:
        return False
    now = time.time()
    record = {"message": message, "timestamp": int(now), "time": now, "status": status}
    Path(os.environ[ERROR_FILE]).write_text(json.dumps(record))
    return True


def explain(failures: Collection[ProcessFailure]) -> Ending:
    """Prints what first went wrong among the ranks on stderr, and returns the exit status that tells it."""
    first = min(failures, key=_blame)
    record = first.error_file_data
    if "status" in record:
        print(record["message"], file=sys.stderr)
        return Ending(int(record["status"]), record["message"])
    if first.exitcode < 0:
        reason = f"was ended by {first.signal_name()}{LIKELY_CAUSES.get(-first.exitcode, '')}"
    else:
        reason = f"ended with status {first.exitcode} without a word"
    print(f"error: rank {first.local_rank} {reason}; the same command goes on from what was saved", file=sys.stderr)
    status = 128 - first.exitcode if first.exitcode < 0 else first.exitcode
    return Ending(status, f"rank {first.local_rank} {reason}")


def _blame(failure: ProcessFailure) -> tuple[bool, float]:
    """The smallest is the cause: the others failed because it was gone, or were ended then."""
    record = failure.error_file_data
    if "time" in record:
        return record["status"] not in (2, OUTAGE_STATUS), record["time"]
    if failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM):  # ended by this process, after the first failure
        return True, float("inf")
    # Found dead some time after its death, which made its peers fail at once. Peers that hang are killed much later.
    return True, failure.timestamp - 10.0


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent ends, however it ends. Linux; elsewhere it does nothing.

    A rank that outlived its launcher would write to a run folder that the next job may hold by then.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != int(os.environ[RANK_MARK]):  # it ended before the line above
        os._exit(1)
