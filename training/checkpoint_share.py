"""One rank's share of a checkpoint: copied to host memory while training waits, written while it goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.checkpoint_files import EngineEntry, FileEntry, Fragment, Manifest, ParameterEntry, tensor_key
from training.engine import Engine
from training.fragments import LocalFragment

CHUNK_BYTES = 8 * 2**20
PAGE_ELEMENTS = 1024
"""Of float32, in the smallest pages that there are."""

Held = dict[str, list[tuple[str, int, int]]]
"""By engine, the intervals that a file holds: parameter, start, stop."""
Written = tuple[str, FileEntry, Held]
"""A file that a rank wrote: its name, size and checksum, and what it holds."""


class Share:
    """A copy in host memory of the fragments that this rank writes, in the order in which they will lie in their file.

    memory: of `elements_copied`, which no earlier share needs any more. State that lies in files isn't copied: `memory`
    is None then, and training must wait until the share is written.
    """

    def __init__(self, engines: dict[str, Engine], memory: torch.Tensor | None) -> None:
        fragments = _written_here(engines)
        self.held: Held = {name: [(f.parameter, f.start, f.stop) for f in own] for name, own in fragments.items()}
        self.kinds = next(iter(engines.values())).kinds
        self._header = self._places(fragments)
        self._parts = [
            (engines[name], fragment, kind)
            for name, own in fragments.items()
            for kind in self.kinds
            for fragment in own
        ]
        self.memory = memory
        if memory is not None:
            self._copy(memory)
            self._parts = []

    @torch.no_grad()
    def _copy(self, memory: torch.Tensor) -> None:
        end = 0
        for _, fragment, kind in self._parts:
            start, end = end, end + fragment.stop - fragment.start
            memory[start:end].copy_(fragment.tensors[kind], non_blocking=True)
        if memory.is_pinned():
            torch.cuda.synchronize()

    def _places(self, fragments: dict[str, list[LocalFragment]]) -> bytes:
        """The header of safetensors that says where each fragment lies."""
        places = {}
        end = 0
        for engine, own in fragments.items():
            for kind in self.kinds:
                for fragment in own:
                    start, end = end, end + fragment.stop - fragment.start
                    places[tensor_key(engine, kind, fragment.parameter)] = {
                        "dtype": "F32",
                        "shape": [end - start],
                        "data_offsets": [start * 4, end * 4],
                    }
        text = json.dumps(places).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def write(self, path: Path) -> FileEntry:
        """Writes the share as a safetensors file, and returns when it is on the disk. Raises OSError.

        The checksum is of the bytes in memory: what the disk makes of them shows when they are read.
        """
        digest = hashlib.sha256()
        written = 0
        with path.open("wb") as file:
            for chunk in self._chunks():
                digest.update(chunk)
                if _is_zero(chunk):  # moments of weights that no gradient has reached: a hole takes no room
                    file.seek(len(chunk), os.SEEK_CUR)
                else:
                    file.write(chunk)
                # Has the kernel begin with these bytes now; else it would put them all off to the end.
                os.posix_fadvise(file.fileno(), written, len(chunk), os.POSIX_FADV_DONTNEED)
                written += len(chunk)
            file.truncate(written)
            file.flush()
            os.fsync(file.fileno())
        return FileEntry(written, digest.hexdigest())

    def _chunks(self) -> Iterator[bytes | memoryview]:
        yield self._header
        if self.memory is not None:
            yield from _pieces(self.memory)
        for engine, fragment, kind in self._parts:
            values = fragment.tensors[kind]
            yield from _pieces(values)
            engine.release([values])


def elements_copied(engines: dict[str, Engine]) -> int | None:
    """Float32 numbers of host memory that this rank's share takes, 4 a parameter with Adam and one average, over the
    number of ranks; None when state lies in files."""
    if any(engine.settings.state_in_files for engine in engines.values()):
        return None
    kinds = len(next(iter(engines.values())).kinds)
    return kinds * sum(f.stop - f.start for own in _written_here(engines).values() for f in own)


def host_memory(elements: int, on_gpu: bool) -> torch.Tensor:
    """Memory for shares, float32 [elements], that is really there: to write to fresh memory for the first time costs
    several times what the copy does. on_gpu: whether what is copied is. Raises RuntimeError when there is no room."""
    # Pinned memory lets a GPU copy at the full rate of its bus.
    memory = torch.empty(elements, dtype=torch.float32, pin_memory=on_gpu)
    memory.numpy()[::PAGE_ELEMENTS] = 0.0  # not by torch, which would start threads for it beside those of training
    return memory


def assemble(
    written: list[Written],
    shapes: dict[str, dict[str, list[int]]],
    updates: dict[str, int],
    step: int,
    images_seen: int,
    extra: dict[str, Any],
    kinds: list[str],
) -> Manifest:
    """The manifest of files that ranks wrote. shapes, updates: of each engine's parameters, and how many it made."""
    entries = {}
    for name, of_engine in shapes.items():
        parameters = {parameter: ParameterEntry(shape, []) for parameter, shape in of_engine.items()}
        for file, _, held in written:
            for parameter, start, stop in held[name]:
                parameters[parameter].fragments.append(Fragment(file, start, stop))
        entries[name] = EngineEntry(updates[name], parameters)
    files = {file: entry for file, entry, _ in written}
    return Manifest(step, images_seen, len(written), entries, files, extra, kinds)


def _written_here(engines: dict[str, Engine]) -> dict[str, list[LocalFragment]]:
    return {name: [f for f in engine.fragments() if f.written_here] for name, engine in engines.items()}


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    values = tensor.view(torch.uint8).numpy().data
    for start in range(0, len(values), CHUNK_BYTES):
        yield values[start : start + CHUNK_BYTES]


def _is_zero(chunk: bytes | memoryview) -> bool:
    """Nearly all that aren't show it by their first bytes."""
    return not any(chunk[:64]) and not np.frombuffer(chunk, np.uint8).any()
