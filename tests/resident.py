"""Resident memory of this process, as the kernel counts it for this program alone.

`resource.getrusage` would not do: its peak is inherited from the process that started this one, before `exec`.
"""

from pathlib import Path


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
