"""Clients of stores: one fsspec file system a protocol, with our time limits and nobody else's retries; and what they
are asked for in more than one word."""

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from data.diagnosis import kinds

log = logging.getLogger(__name__)
_STAMPS = ("ETag", "etag", "mtime", "Last-Modified", "LastModified", "last_modified", "updated")
_STAMP_BYTES = 1 << 12


def open_filesystem(
    protocol: str,
    endpoint_url: str | None,
    profile: str | None,
    anonymous: bool,
    timeout_seconds: float,
    connections: int,
) -> Any:
    """A new client, shared with nobody. timeout_seconds: to connect, and between two pieces of an answer.

    connections: requests at the same time that it should be ready for. Endpoint, profile and anonymous are s3's.
    """
    import fsspec

    if protocol in ("s3", "s3a"):
        filesystem = fsspec.filesystem(
            "s3",
            endpoint_url=endpoint_url,
            profile=profile,
            anon=anonymous,
            skip_instance_cache=True,
            use_listings_cache=False,  # another process may write what this one has found missing
            config_kwargs={
                "connect_timeout": timeout_seconds,
                "read_timeout": timeout_seconds,
                "retries": {"mode": "standard", "total_max_attempts": 1},
                "max_pool_connections": connections + 2,
            },
        )
        filesystem.retries = 1  # one layer of retries, ours: nested ones multiply to minutes before an error
        return filesystem
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout_seconds, sock_read=timeout_seconds)
        options["client_kwargs"] = {"timeout": limits}
    return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)


def read_range(fs: Any, path: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of an object, fewer where it ends earlier."""
    try:
        data = bytes(fs.cat_file(path, start=start, end=stop))
    except Exception as error:
        if kinds(error) & {"InvalidRange", "416"}:  # the object ends before `start`
            return b""
        raise
    if len(data) <= stop - start:
        return data
    _tell_of_no_ranges("/".join(path.split("/")[:3]))
    return data[start:stop]


@cache  # once a process and server
def _tell_of_no_ranges(server: str) -> None:
    log.warning(
        "%s sends the whole file whenever a part of it is asked for: each sample takes a whole shard. Have the shards "
        "served by one that answers ranges, as nginx and Apache do, or copy them to this machine",
        server,
    )


def version_of(fs: Any, path: str) -> str:
    """What tells an object from another one that is written in its place: its bytes with its ETag or time of change;
    where a store tells neither, with a checksum of its first bytes."""
    info = fs.info(path)
    stamp = next((info[name] for name in _STAMPS if info.get(name)), None)
    return f"{info.get('size')} {stamp or zlib.crc32(read_range(fs, path, 0, _STAMP_BYTES))}"


def files_in(fs: Any, folder: str, below: bool) -> Iterator[str]:
    """Paths of the files directly in a folder, or of all below it, by a client; on a disk also those that links lead
    to. Raises what the client raises, FileNotFoundError where there is no such folder."""
    if "file" in fs.protocol:
        yield from _files_on_disk(folder, below)
        return
    found = fs.find(folder, detail=True).values() if below else fs.ls(folder, detail=True)
    yield from (entry["name"] for entry in found if entry["type"] == "file")


def _files_on_disk(folder: str, below: bool, above: Sequence[tuple[int, int]] = ()) -> Iterator[str]:
    """above: device and inode of the folders that this one was found in, as a link may lead to one of them."""
    try:
        status, entries = os.stat(folder), list(os.scandir(folder))
    except (FileNotFoundError, PermissionError) as error:
        if not above:
            raise
        if isinstance(error, PermissionError):  # the other was removed meanwhile
            log.warning("left out: %s", error)
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        linked = entry.is_symlink()  # asked for alone, as the kind of all others is known without a look at them
        if os.path.isfile(entry.path) if linked else entry.is_file():
            yield entry.path
        elif below and (os.path.isdir(entry.path) if linked else entry.is_dir()):
            yield from _files_on_disk(entry.path, below, (*above, here))
