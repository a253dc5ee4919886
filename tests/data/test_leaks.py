"""What loading leaves behind: no process, no open file, no shared memory, however it ends; and it always ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from faulty import WebServer

from data.errors import DataError
from data.index import Index
from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage

SHARED_MEMORY = Path("/dev/shm")
PROGRAM = """
import gc, json, multiprocessing, os, signal, sys, time
from itertools import islice
from data.index import Index
from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage

storage = Storage(block_bytes=2048, cache_bytes=1 << 16)
index = Index.load(sys.argv[1], storage)

def stream():
    return Loader([IndexedSource(index)], storage, 0, 8, {}, 4, 4, workers=2).batches()

def tell(**found):
    print(json.dumps(found), flush=True)

def workers():
    return [child.pid for child in multiprocessing.active_children()]

def left():
    gc.collect()
    shared = [name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{os.getpid()}_")]
    return {"workers": workers(), "files": len(os.listdir("/proc/self/fd")), "shared": shared}
"""


@pytest.fixture
def served(shards: Callable[..., str]) -> Any:
    """URL of an uneven data set on a web server."""
    with WebServer(shards(5, 1, 9, 2), True) as server:
        yield "http://{}:{}/{{00000..00003}}.tar".format(*server.address)


def program(served: str, text: str, temporary: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM + text, served]
    environment = {**os.environ, "TMPDIR": temporary}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.fixture
def temporary() -> Iterator[str]:
    """A folder with a short path, as sockets are put into it; `tmp_path` has a long one."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def told(process: subprocess.Popen[str]) -> Any:
    """The next line of a program's."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return json.loads(line)


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(psutil.pid_exists, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_nothing_is_left_after_loading_after_a_killed_worker_and_after_an_interrupt(
    served: str, temporary: str
) -> None:
    process = program(
        served,
        """
def load():
    batches = stream()
    found = [batch.captions for batch in islice(batches, 9)]  # two epochs: shards are uneven, and nothing waits
    batches.close()
    return len(found)

load()
before = left()
tell(before=before, batches=[load(), load()], after=left())
batches = stream()
next(batches)
os.kill(workers()[0], signal.SIGKILL)
try:
    for _ in range(100):
        next(batches)
except Exception as error:  # by where it was when it died: torch's own, or of the connection to it
    told = repr(error)
tell(told=told, after=left())
batches = stream()
try:
    tell(workers=workers())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    for _ in range(9):
        next(batches)  # not kept: a batch's memory is shared by open files
        os.killpg(0, signal.SIGINT)
except KeyboardInterrupt:
    batches.close()
tell(after=left())
batches = stream()
next(batches)
tell(workers=workers())
os.kill(workers()[0], signal.SIGKILL)
for batch in batches:  # nobody handles the error, and the program ends with it
    pass
""",
        temporary,
    )
    calm = told(process)
    assert calm["batches"] == [9, 9]
    killed = told(process)
    assert killed["told"]
    told(process)
    for after in (calm["after"], killed["after"], told(process)["after"]):
        assert after["workers"] == after["shared"] == []
        assert after["files"] <= calm["before"]["files"]
    workers = told(process)["workers"]
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" in err
    assert gone(workers, 1)


def test_workers_end_with_a_trainer_that_is_killed_even_while_they_ask_a_store_that_is_down(
    shards: Callable[..., str], temporary: str
) -> None:
    shared = set(SHARED_MEMORY.iterdir())
    with WebServer(shards(5, 1, 9, 2), True) as server:
        served = "http://{}:{}/{{00000..00003}}.tar".format(*server.address)
        process = program(served, "batches = stream()\nnext(batches)\ntell(workers=workers())\ninput()", temporary)
        workers = told(process)["workers"]
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=60)
    assert gone(workers, 3)
    ours = [path for path in set(SHARED_MEMORY.iterdir()) - shared if path.name.split("_")[1:2] == [str(process.pid)]]
    assert not [path for path in ours if path.name.startswith("torch_")]


def test_a_folder_whose_sockets_workers_could_not_open_is_named(
    shards: Callable[..., str], temporary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage()
    index = Index.load(shards(5), storage)
    folder = temporary + "/" + (74 - len(temporary)) * "t"
    os.mkdir(folder)
    for workers, name in ((1, folder), (0, f"{folder}t")):
        monkeypatch.setattr(tempfile, "tempdir", name)
        batches = Loader([IndexedSource(index)], storage, 0, 8, {}, 4, 4, workers=workers).batches()
        assert len(next(batches)) == 4
        batches.close()
    with pytest.raises(DataError, match="t has 76 bytes: with workers it may have 75"):
        next(Loader([IndexedSource(index)], storage, 0, 8, {}, 4, 4, workers=1).batches())
