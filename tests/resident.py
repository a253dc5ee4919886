"""Resident memory of a process, as the kernel counts it for its program alone.

`resource.getrusage` would not do: its peak is inherited from the process that started this one, before `exec`.
"""

from pathlib import Path


def resident(field: str, process: int | None = None) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, or of another, in bytes."""
    lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
