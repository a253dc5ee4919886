"""The C library's allocator, told to keep the memory that tensors leave.

glibc maps each large tensor by itself, and unmaps it when it goes: the kernel then clears the same pages again and
again, which takes a tenth of a training step on CPUs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
NEVER = -1
MAPPED_FROM = 2**30
"""Bytes: tensors as large as whole copies of the weights still go back at once."""
MAPPED_FROM_IN_OLD = 2**25
"""The most that glibc took when its heaps had a bound."""
OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "glibc.malloc.")


def keep_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """From now on this process, and those forked from it, reuse freed memory rather than give it back to the kernel.

    False where nothing is changed: with another C library, or where variables of the environment say how glibc shall
    allocate (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES).
    """
    told = [*environment, environment.get("GLIBC_TUNABLES", "")]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in text for name in OF_THE_USER for text in told):
        return False
    mapped = mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) or mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_IN_OLD)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, NEVER))
