"""Local files that are there with all their bytes, or not at all."""

import os


def write_atomically(path: str, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one. Makes its folder."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
