"""What can befall a run, and how each fault is made."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.chaos.place import DISK_MEGABYTES, PATIENCE_SECONDS, WATCHDOG_SECONDS, Store
from tests.chaos.supervisor import END_SECONDS, Hung, Supervisor
from training.checkpoint_files import MANIFEST, problems
from training.watchdog import OTHERS_SECONDS, SLOW_STEP

STOPPED_SECONDS = SLOW_STEP * WATCHDOG_SECONDS + OTHERS_SECONDS + 60
"""Within which a watchdog has ended the start of a rank that stands still, and the launcher has killed that."""
ENOUGH_SECONDS = 12.0
"""A store doesn't misbehave for longer, even if nobody asks it for anything."""
MOST_ANSWERS = 8
"""Answers of a store that are spoilt, at most."""


@dataclass(frozen=True)
class Chaos:
    """The run, what it stands on, and the generator that every moment and victim is drawn from."""

    run: Supervisor
    store: Store
    moments: random.Random


@dataclass(frozen=True)
class Fault:
    """inflict: makes it, and returns when it is over; what it says becomes part of the record. May raise NotMade, or
    Hung.

    checkpoints: complete ones that must be there, for what nobody could survive otherwise. training: only a start that
    has made a step; others may be hit before. ends: this start must end by it.
    """

    name: str
    inflict: Callable[[Chaos], str]
    checkpoints: int = 0
    training: bool = False
    ends: bool = True


class NotMade(Exception):
    """There was nothing that the fault could hit."""


def kill_rank(chaos: Chaos) -> str:
    """As the kernel does without memory."""
    return _kill_one(chaos, chaos.run.ranks)


def kill_worker(chaos: Chaos) -> str:
    """One that loads data."""
    return _kill_one(chaos, chaos.run.workers)


def _kill_one(chaos: Chaos, candidates: Callable[[], list[psutil.Process]]) -> str:
    """As soon as there are any."""
    if not chaos.run.wait(lambda: bool(candidates()), END_SECONDS):
        raise NotMade("the start had ended")
    with contextlib.suppress(psutil.NoSuchProcess):
        if found := candidates():
            chaos.moments.choice(found).kill()
            return ""
    raise NotMade("it had ended")


def kill_node(chaos: Chaos) -> str:
    """Everything, as when the machine dies."""
    chaos.run.kill_all()
    return ""


def send(number: signal.Signals, group: bool, chaos: Chaos) -> str:
    """A request to stop."""
    chaos.run.signal(number, group)
    return ""


def stop_rank(chaos: Chaos) -> str:
    """Stands still without being dead: the watchdog of another rank must notice."""
    if not (ranks := chaos.run.ranks()):
        raise NotMade("the start had ended")
    victim = chaos.moments.choice(ranks)
    try:
        victim.suspend()
        chaos.run.wait(lambda: False, STOPPED_SECONDS)
    except psutil.NoSuchProcess:
        raise NotMade("it had ended") from None
    except Hung:
        victim.resume()
        return f"not noticed for {STOPPED_SECONDS:.0f} s, as in a save ranks wait longer for one another; woken"
    return ""


def kill_store(chaos: Chaos) -> str:
    """Down for some seconds: less or more than a run is patient for."""
    seconds = chaos.moments.uniform(0.5, 1.5 * PATIENCE_SECONDS)
    chaos.store.kill()
    time.sleep(seconds)
    chaos.store.restart()
    return f"down for {seconds:.1f} s"


def misbehave(kind: str, chaos: Chaos) -> str:
    """Half of the store's answers are spoilt, until there were enough of them."""
    proxy, enough = chaos.store.proxy, chaos.moments.randint(2, MOST_ANSWERS)
    before = proxy.met[kind]
    deadline = time.monotonic() + ENOUGH_SECONDS
    proxy.shares = {kind: 0.5}
    while chaos.run.lives and proxy.met[kind] - before < enough and time.monotonic() < deadline:
        time.sleep(0.01)
    proxy.shares = {}
    if proxy.met[kind] == before:
        raise NotMade("nobody asked the store for anything")
    return f"{proxy.met[kind] - before} answers"


def fill_disk(chaos: Chaos) -> str:
    """The checkpoints' disk has no room, until the run gave up."""
    ballast = chaos.run.folder / "checkpoints" / "ballast"
    with ballast.open("wb", buffering=0) as file:

        def fill() -> bool:
            """What an older checkpoint leaves, too."""
            with contextlib.suppress(OSError):
                for _ in range(4 * DISK_MEGABYTES):
                    file.write(bytes(1 << 18))
            return False

        try:
            chaos.run.wait(fill, END_SECONDS)
        finally:
            ballast.unlink()
    return ""


def damage(what: str, chaos: Chaos) -> str:
    """A bit of a file of the newest checkpoint turns, as disks do. Only where an older one is whole."""
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, as a newer one is complete
            whole = [path for path in chaos.run.checkpoints if not problems(path)]
            if len(whole) < 2:
                time.sleep(0.1)
                continue
            files = [whole[0] / MANIFEST] if what == MANIFEST else sorted(whole[0].glob("*.safetensors"))
            path = chaos.moments.choice(files)
            _turn_a_bit(path, chaos.moments)
            return f"{path.parent.name}/{path.name}"
    raise NotMade("there was none but the last whole one")


def damage_while_down(what: str, chaos: Chaos) -> str:
    """After everything was killed, before it starts again."""
    chaos.run.kill_all()
    return damage(what, chaos)


SHARDS = "rank-*.safetensors"
FAULTS: Sequence[Fault] = (
    Fault("kill -9 of a rank", kill_rank),
    Fault("kill -9 of a data worker", kill_worker),
    Fault("kill -9 of the launcher", partial(send, signal.SIGKILL, False)),
    Fault("kill -9 of everything", kill_node),
    Fault("SIGTERM", partial(send, signal.SIGTERM, False)),
    Fault("SIGUSR1", partial(send, signal.SIGUSR1, False)),
    Fault("Ctrl-C", partial(send, signal.SIGINT, True)),
    Fault("SIGSTOP of a rank", stop_rank, training=True, ends=False),
    Fault("disk full", fill_disk, checkpoints=1, training=True),
    Fault("store killed and back", kill_store, checkpoints=1, ends=False),
    Fault("store refuses (503, no answer)", partial(misbehave, "refused"), checkpoints=1, ends=False),
    Fault("store resets connections", partial(misbehave, "reset"), checkpoints=1, ends=False),
    Fault("store truncates answers", partial(misbehave, "truncated"), checkpoints=1, ends=False),
    Fault("store is silent", partial(misbehave, "slow"), checkpoints=1, ends=False),
    Fault("store throttles", partial(misbehave, "throttled"), checkpoints=1, ends=False),
    Fault("bit turned in a checkpoint, down", partial(damage_while_down, SHARDS), checkpoints=2),
    Fault("bit turned in a manifest, down", partial(damage_while_down, MANIFEST), checkpoints=2),
    Fault("bit turned in a checkpoint, up", partial(damage, SHARDS), checkpoints=2, ends=False),
    Fault("bit turned in a manifest, up", partial(damage, MANIFEST), checkpoints=2, ends=False),
)


def drawn(number: int, moments: random.Random, left_out: Sequence[str] = ()) -> list[Fault]:
    """So many faults in random order, each kind as often as another, give or take one."""
    kinds = [fault for fault in FAULTS if fault.name not in left_out]
    found: list[Fault] = []
    while len(found) < number:
        found += moments.sample(kinds, len(kinds))
    return found[:number]


def _turn_a_bit(path: Path, moments: random.Random) -> None:
    place = moments.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << moments.randrange(8)]))
        file.flush()
        os.fsync(file.fileno())
