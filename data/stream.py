"""Bytes from any fsspec URL: ranged reads in cached blocks, retried, with errors that name the URL."""

import io
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar, cast

from data.atomic import write_atomically
from data.blocks import BlockCache, runs_of
from data.diagnosis import ask, cause_of, lasting, remedy
from data.disk_cache import DiskCache
from data.errors import DataError, NotFound, StoreUnavailable
from data.filesystems import files_in, open_filesystem, read_range, version_of
from data.offsets import RangeFile
from data.patterns import expand, folder_of
from data.traffic import TrafficLog

log = logging.getLogger(__name__)
T = TypeVar("T")
Urls = list[str]  # `Storage.list` hides the builtin inside the class
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 20.0
_CHECK_SECONDS, _AHEAD_SECONDS, _SCAN_BYTES = 3.0, 5.0, 1 << 20


class Storage:
    """Reads and writes objects by URL: a local path, file://, s3://, or any other fsspec protocol.

    endpoint_url: of an S3-compatible store; None leaves it to AWS_ENDPOINT_URL or the profile.
    profile: section of the AWS configuration files. Keys come from the environment or the profile, never from
    arguments. anonymous: send unsigned requests, for public buckets.
    patience_seconds: how long it asks again after a failure before it gives up; it waits in between, doubling from
    0.2 s to 20 s, with jitter. timeout_seconds: to connect, and between two pieces of an answer.
    block_bytes: ranged reads are rounded to blocks of this size. Where many ranks and workers read the same
    shards, large blocks bring bytes that others train on. cache_bytes: memory for blocks in each process.
    connections: requests at the same time in `prefetch`. cache_folder: a folder on a local disk for blocks of remote
    objects, which the processes of a machine share; None: no such cache. cache_folder_bytes: its bound.

    A copy in a forked or spawned process opens its own connections. Every read that fails for good raises
    DataError with the URL, the last error and the number of attempts (NotFound when the object is not there).
    """

    def __init__(
        self,
        endpoint_url: str | None = None,
        profile: str | None = None,
        anonymous: bool = False,
        patience_seconds: float = 300.0,
        timeout_seconds: float = 20.0,
        block_bytes: int = 1 << 18,
        cache_bytes: int = 256 << 20,
        connections: int = 8,
        cache_folder: str | None = None,
        cache_folder_bytes: int = 100 << 30,
    ) -> None:
        if not 1 <= block_bytes <= cache_bytes:
            raise DataError(f"block_bytes={block_bytes} must lie in 1 … cache_bytes={cache_bytes}")
        if cache_folder is not None and cache_folder_bytes < block_bytes:
            raise DataError(f"cache_folder_bytes={cache_folder_bytes} must be at least block_bytes={block_bytes}")
        if patience_seconds < 0 or timeout_seconds <= 0 or connections < 1:
            raise DataError(
                f"patience_seconds={patience_seconds} must be 0 or more, timeout_seconds={timeout_seconds} above 0, "
                f"connections={connections} at least 1"
            )
        self.endpoint_url = endpoint_url
        self.profile = profile
        self.anonymous = anonymous
        self.patience_seconds = patience_seconds
        self.timeout_seconds = timeout_seconds
        self.block_bytes = block_bytes
        self.cache_bytes = cache_bytes
        self.connections = connections
        self.cache_folder = cache_folder
        self.cache_folder_bytes = cache_folder_bytes
        self.traffic = TrafficLog()  # what came from a cache isn't part of it
        self._forget_process()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_process()

    def _forget_process(self) -> None:
        self._process = os.getpid()
        self._filesystems: dict[str, Any] = {}
        self._blocks = BlockCache(self.cache_bytes)
        self._disk: DiskCache | None = None
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, url: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object, fewer where it ends earlier; the whole object without `stop`."""
        if stop is None:
            data = self._retried(url, lambda fs, path: fs.cat_file(path))
            return bytes(data[start:])
        first, last = start // self.block_bytes, max(start, stop - 1) // self.block_bytes
        if (last - first + 1) * self.block_bytes > self.cache_bytes // 2:
            return self._range(url, start, stop)  # would push everything else out of the cache
        data = b"".join(self._run(url, first, last))
        return data[start - first * self.block_bytes : stop - first * self.block_bytes]

    def prefetch(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Bring the blocks of these (url, start, stop) into the cache, several requests at a time.

        At most half a cache of them, so that none has left it when it is read. What is beyond that, not there, refused,
        or not here within seconds, is left for the read that needs it: a process doesn't end before its threads do.
        """
        self._check_process()
        missing = self._blocks.lacking(runs_of(ranges, self.block_bytes), self.block_bytes)
        if len(missing) < 2:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.connections, "storage")
        for future in [self._pool.submit(self._run, *run, _AHEAD_SECONDS) for run in missing]:
            with suppress(DataError):
                future.result()

    def forget(self, url: str) -> None:
        """Drop what is cached of `url`, so that the next read asks the store again."""
        self._check_process()
        self._blocks.forget(url)
        if (disk := self._disk_cache(url)) is not None:
            disk.forget(url)

    def size(self, url: str) -> int:
        """Bytes of an object."""
        size = self._retried(url, lambda fs, path: fs.size(path))
        if size is None:
            raise DataError(f"{url}: the server does not tell how large it is; serve it with a Content-Length")
        return int(size)

    def version(self, url: str) -> str:
        """What tells an object from another one that is written in its place, of as many bytes or not."""
        return self._retried(url, version_of)

    def check_cache_folder(self) -> None:
        """Makes the folder on a local disk, where one is named. Raises DataError where that can't be."""
        if self.cache_folder is not None:
            DiskCache(self.cache_folder, self.cache_folder_bytes, self.block_bytes)

    @contextmanager
    def open(self, url: str) -> Iterator[tuple[IO[bytes], int]]:
        """An object as a seekable file, and its bytes. Of a remote one a megabyte is read at a time: members of a tar
        that are smaller lie nearer to one another than a request takes."""
        path = url.removeprefix("file://")
        if "://" not in path and os.path.isfile(path):
            with open(path, "rb") as file:
                yield file, os.fstat(file.fileno()).st_size
            return
        size = self.size(url)
        ranges = RangeFile(lambda start, stop: self._range(url, start, stop) if stop > start else b"", size)
        yield cast(IO[bytes], io.BufferedReader(ranges, _SCAN_BYTES)), size

    def exists(self, url: str) -> bool:
        """Whether there is such an object."""
        try:
            return bool(self._retried(url, lambda fs, path: fs.info(path)["type"] == "file"))
        except NotFound:
            return False

    def write(self, url: str, data: bytes) -> None:
        """Write an object; readers see the whole of it or none. Local folders are made as needed."""

        def put(fs: Any, path: str) -> None:
            if "://" in url and not url.startswith("file://"):
                fs.pipe_file(path, data)
            else:
                write_atomically(path, data)

        self._retried(url, put)
        self.forget(url)

    def list(self, url: str, below: bool = False) -> Urls:
        """URLs of the objects directly in a folder, or of all below it, sorted; empty when there are none."""

        def find(fs: Any, path: str) -> Urls:
            start = len(join(path, ""))
            return sorted(join(url, found[start:]) for found in files_in(fs, path, below))

        try:
            return self._retried(url, find)
        except NotFound:
            return []

    def expand(self, urls: str | Sequence[str]) -> Urls:
        """The URLs of shards that `urls` stand for, see `data.patterns.expand`."""
        return expand(urls, self.list, self.read)

    def check(self, urls: str | Sequence[str]) -> Urls:
        """The shards that `urls` stand for, after asking the store for the first one; a few seconds at most.

        Raises DataError, with a different remedy each: the store cannot be reached; it refuses the
        credentials; the bucket or folder is missing; nothing matches.
        """
        first = urls if isinstance(urls, str) else next(iter(urls), "")
        folder = folder_of(first)

        def find(probe: Storage) -> Urls:
            probe._retried(first, lambda fs, path: ask(fs, folder))
            shards = probe.expand(urls)
            return shards if shards and probe.exists(shards[0]) else []

        shards = self._probed(first, find)
        if not shards:
            found = "the store was reached and the credentials accepted; " if "://" in first else ""
            raise DataError(
                f"no shard (*.tar) matches {urls!r}: {found}check the path, or write shards there with `ldm prepare`"
            )
        return shards

    def check_writable_place(self, url: str) -> None:
        """Ask the store whether objects may come to lie below `url`; a few seconds at most.

        Raises DataError as `check` does when the store cannot be reached, refuses the credentials, or has no
        such bucket. A folder that is missing is no error: writing makes it.
        """
        if "://" in url and not url.startswith("file://"):
            self._probed(url, lambda probe: probe._retried(url, lambda fs, path: ask(fs, url)))

    def _probed(self, url: str, question: Callable[["Storage"], T]) -> T:
        """The answer to a question that is asked without patience; DataError with a remedy where there is none."""
        patience = min(self.timeout_seconds, _CHECK_SECONDS)
        probe = Storage(self.endpoint_url, self.profile, self.anonymous, patience_seconds=0, timeout_seconds=patience)
        try:
            return question(probe)
        except DataError as error:
            raise remedy(url, self.endpoint_url, self.profile, self.anonymous, error) from error

    def _check_process(self) -> None:
        if self._process != os.getpid():  # forked: connections, threads and locks of the parent are of no use
            # kept, not dropped: their finalizers would run on the event loop of the parent
            self._of_parent = self._filesystems
            self._forget_process()

    def _filesystem(self, url: str) -> Any:
        self._check_process()
        protocol = url.split("://", 1)[0] if "://" in url else "file"
        with self._lock:
            if protocol not in self._filesystems:
                self._filesystems[protocol] = self._open(protocol)
            return self._filesystems[protocol]

    def _open(self, protocol: str) -> Any:
        access = self.endpoint_url, self.profile, self.anonymous
        return open_filesystem(protocol, *access, self.timeout_seconds, self.connections)

    def _run(self, url: str, first: int, last: int, patience: float | None = None) -> Sequence[bytes]:
        """Blocks `first` to `last`; those between the first and the last missing one in a single request."""
        self._check_process()
        disk = self._disk_cache(url)
        found = {number: self._held((url, number), disk) for number in range(first, last + 1)}
        missing = [number for number, block in found.items() if block is None]
        if missing:
            begin, size = missing[0], self.block_bytes
            data = self._range(url, begin * size, (missing[-1] + 1) * size, patience)
            for number in range(begin, missing[-1] + 1):
                found[number] = block = data[(number - begin) * size : (number - begin + 1) * size]
                self._blocks.put((url, number), block)
                if disk is not None:
                    disk.put((url, number), block)
        return [block for block in found.values() if block is not None]

    def _held(self, key: tuple[str, int], disk: DiskCache | None) -> bytes | None:
        """A block that is in memory, or on the local disk, from where it comes into memory."""
        block = self._blocks.get(key)
        if block is None and disk is not None and (block := disk.get(key)) is not None:
            self._blocks.put(key, block)
        return block

    def _disk_cache(self, url: str) -> DiskCache | None:
        """The disk's cache, for objects that are not on a disk of this machine themselves."""
        if self.cache_folder is None or "://" not in url or url.startswith("file://"):
            return None
        if self._disk is None:
            self._disk = DiskCache(self.cache_folder, self.cache_folder_bytes, self.block_bytes)
        return self._disk

    def _range(self, url: str, start: int, stop: int, patience: float | None = None) -> bytes:
        return self._retried(url, lambda fs, path: read_range(fs, path, start, stop), patience)

    def _retried(self, url: str, action: Callable[[Any, str], T], patience: float | None = None) -> T:
        patience, began = self.patience_seconds if patience is None else patience, time.monotonic()
        for attempt in itertools.count(1):
            try:
                filesystem = self._filesystem(url)
                return self.traffic.received(action(filesystem, filesystem._strip_protocol(url)))
            except Exception as failure:  # each fsspec protocol raises its own kinds
                error = cause_of(failure)
                if (end := lasting(url, error)) is not None:
                    raise end from error
                pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(attempt - 1, 20), _LONGEST_PAUSE_SECONDS)
                pause *= random.uniform(0.5, 1.5)  # keeps many readers from asking again at the same moment
                spent = time.monotonic() - began
                if spent + pause > patience:
                    raise StoreUnavailable(
                        f"{url}: {type(error).__name__}: {error}; gave up after {attempt} attempts in {spent:.1f} s. "
                        "Check that the store is up, then run again"
                    ) from error
                log.warning("%s: %r; attempt %d, again in %.1f s", url, error, attempt, pause)
                self.traffic.retried()
                time.sleep(pause)
        raise AssertionError("not reached")


def join(folder: str, name: str) -> str:
    """URL of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"
