"""What a step frees, the next one reuses."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from training.allocator import keep_memory

BYTES = 40 * 2**20  # more than glibc keeps by itself
STEPS = """
import resource, sys
from training.allocator import keep_memory

print(keep_memory())
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [bytearray(int(sys.argv[1])) for _ in range(2)]
    del tensors
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[str, int, int]:
    """What `keep_memory` says, and the page faults of two equal steps, in a process of its own."""
    command = [sys.executable, "-c", STEPS, str(BYTES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    kept, first, second = done.stdout.split()
    return kept, int(first), int(second)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc's allocator alone")
def test_a_second_step_makes_no_page_faults() -> None:
    kept, first, second = faults()
    assert kept == "True"
    assert first > 100 and second < first / 10


def test_what_the_environment_says_holds() -> None:
    kept, first, second = faults(MALLOC_MMAP_THRESHOLD_="65536")
    assert kept == "False"
    assert second > first / 2
    assert not keep_memory({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"})
