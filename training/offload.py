"""Optimizer state and weights whose memory is files: of a local disk (NVMe), for models that host memory doesn't hold.

Tensors are mappings of files, so whoever reads or writes them needs to know nothing of it: the kernel brings pages in
and writes them back (Rajbhandari et al. 2021, "ZeRO-Infinity", has the idea). DeepSpeed's own way to NVMe takes state
away between steps and needs libaio and a compiler on every node; this works with any optimizer, with fragments that are
live views, and on any disk.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from training.engine_settings import EngineSettings
from training.optimizers import Optimizer

BLOCK_BYTES = 2**21
"""Room of files is given back in blocks of so many."""


class MappedFiles:
    """Tensors on the CPU that lie in files below `folder`; None where none are wanted.

    The files have no names: their room is free again when the process ends, however it ends. Zeros that nobody has
    written yet take no room. Raises OSError when the folder can't be written to. A disk that others fill up ends the
    process by SIGBUS, as it is with mapped memory.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self._mappings: dict[int, mmap.mmap] = {}

    def zeros(self, elements: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A new tensor [elements] in a file of its own."""
        size = max(1, elements) * dtype.itemsize
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(size)
            mapping = mmap.mmap(file.fileno(), size)
        tensor = torch.frombuffer(mapping, dtype=dtype)[:elements]
        self._mappings[tensor.untyped_storage().data_ptr()] = mapping
        return tensor

    def holding(self, values: Tensor) -> Tensor:
        """A new flat tensor with these values in it."""
        tensor = self.zeros(values.numel(), values.dtype)
        tensor.copy_(values.detach().view(-1))
        self.release([tensor])
        return tensor

    def release(self, written: Iterable[Tensor] = ()) -> None:
        """Says that nothing needs to be in memory now. What was `written`, views too, gives the room of blocks that are
        all zero back: moments of weights that no gradient has reached."""
        for tensor in written:
            if (mapping := self._mappings.get(tensor.untyped_storage().data_ptr())) is not None:
                for first, last in _blocks(tensor):
                    start = tensor.storage_offset()
                    block = tensor[first // tensor.itemsize - start : last // tensor.itemsize - start]
                    if not block[0] and not block.any():
                        _give_back(mapping, first, last - first)
        for mapping in self._mappings.values():
            mapping.madvise(mmap.MADV_DONTNEED)

    def forget(self, tensor: Tensor) -> None:
        """Gives the room of a whole tensor back; it is zeros then, where the file system can do that."""
        mapping = self._mappings[tensor.untyped_storage().data_ptr()]
        _give_back(mapping, 0, len(mapping))


def _blocks(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Bytes [first, last) within its file of the blocks that a flat tensor covers wholly."""
    start = tensor.storage_offset() * tensor.itemsize
    first = -(-start // BLOCK_BYTES) * BLOCK_BYTES
    for place in range(first, start + tensor.nbytes - BLOCK_BYTES + 1, BLOCK_BYTES):
        yield place, place + BLOCK_BYTES


def _give_back(mapping: mmap.mmap, start: int, length: int) -> None:
    with contextlib.suppress(OSError):  # not every file system has files with holes
        mapping.madvise(mmap.MADV_REMOVE, start, length)


@contextlib.contextmanager
def made_in_files(zero_3: type, files: MappedFiles, settings: EngineSettings) -> Iterator[None]:
    """Within it DeepSpeed's optimizer class of ZeRO 3 makes what `settings` want on a disk in files: fp32 weights and
    gradients, the weights that are computed with. By its own methods for state on CPUs they'd be in memory first.
    """

    def make_state(zero: Any) -> None:
        for master in zero.fp32_partitioned_groups_flat:
            master.data = files.holding(master.data)
            master.grad = files.zeros(master.numel())

    def make_weights(zero: Any) -> None:
        for group in zero.trainable_param_groups:
            elements = sum(parameter.partition_numel() for parameter in group["params"])
            zero.param_groups_fp16_flat_cpu_memory.append(files.zeros(elements, zero.dtype))

    with contextlib.ExitStack() as stack:
        if settings.state_in_files:
            stack.enter_context(mock.patch.object(zero_3, "initialize_optimizer_states", make_state))
        if settings.offload_param == "nvme":
            stack.enter_context(mock.patch.object(zero_3, "_create_param_groups_fp16_flat_cpu_memory", make_weights))
        yield


@torch.no_grad()
def initialise_in_files(optimizer: Optimizer, parameters: Iterable[Tensor], files: MappedFiles) -> None:
    """Creates the optimizer's state in files, but for moments of eight bits.

    It leaves memory, and gradients their files, after each update.
    """

    def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    for parameter in parameters:
        optimizer.initialise([parameter])
        state = optimizer.state[parameter]
        state.update({name: files.holding(tensor) for name, tensor in tensors_of(state).items() if tensor.ndim})

    def updated(of: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        for group in of.param_groups:
            for parameter in group["params"]:
                files.forget(parameter.grad)
                files.release(tensors_of(of.state[parameter]).values())

    optimizer.register_step_post_hook(updated)
