"""Whole files to a store and back, in parts that are retried one by one; and the removal of what was written."""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from data.diagnosis import kinds
from data.errors import DataError, NotFound
from data.stream import Storage, join

Item = TypeVar("Item")
Result = TypeVar("Result")
PART_BYTES = 16 << 20
"""Of a file, in one request; S3 wants at least 5 MiB."""
MOST_PARTS = 10_000
"""Of one object of S3; those of larger files have more bytes each."""
PROBE = ".writable"
"""What is written, and removed, to see whether one may."""


class Transfers(Storage):
    """Brings files to a store and back, by URL, with the settings and the retries of `Storage`.

    A part that fails is sent again alone, `connections` of them go at the same time, and an object is there whole or
    not at all. What is transferred passes the caches by. Threads end with the process, finished or not.
    """

    def upload(self, path: Path, url: str) -> None:
        """Bring a file there. Raises OSError when it can't be read."""
        size = path.stat().st_size
        in_parts, is_local = self._retried(url, lambda fs, place: (hasattr(fs, "call_s3"), _is_local(url)))
        if is_local:
            self._retried(url, lambda fs, place: _copy(path, place))
        elif not in_parts:
            self._retried(url, lambda fs, place: fs.put_file(str(path), place))
        elif size <= PART_BYTES:
            self.write(url, path.read_bytes())
        else:
            self._upload_in_parts(path, size, url)

    def download(self, url: str, path: Path, size: int) -> None:
        """Bring an object of `size` bytes here, and return when it is on the disk.

        Raises DataError when it is shorter, NotFound when it isn't there, OSError when it can't be written here.
        """
        with path.open("wb") as file:

            def bring(start: int) -> None:
                stop = min(start + PART_BYTES, size)
                data = self._range(url, start, stop)
                if len(data) < stop - start:
                    raise DataError(f"{url} has {start + len(data):,} bytes, there should be {size:,}")
                os.pwrite(file.fileno(), data, start)

            side_by_side(bring, range(0, size, PART_BYTES), self.connections)
            os.fsync(file.fileno())

    def remove(self, url: str) -> None:
        """Remove an object, if there is one."""
        with suppress(NotFound):
            self._retried(url, lambda fs, place: fs.rm_file(place))
        self.forget(url)

    def remove_below(self, url: str) -> None:
        """Remove all objects in a folder and below it."""
        if _is_local(url):  # links are removed, and not what they lead to
            self._retried(url, lambda fs, place: shutil.rmtree(place, ignore_errors=True))
            return
        for found in self.list(url, below=True):
            self.remove(found)

    def remove_unfinished(self, url: str) -> None:
        """Remove the parts below a folder that uploads left which were killed; one that goes on would fail."""

        def abort(fs: Any, place: str) -> None:
            if not hasattr(fs, "call_s3"):
                return
            bucket, key, _ = fs.split_path(place)
            found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/")
            for upload in found.get("Uploads") or []:
                with suppress(FileNotFoundError):
                    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

        self._retried(url, abort)

    def check_writable(self, url: str) -> None:
        """Write and remove an empty object below `url`; a few seconds at most.

        Raises DataError with a remedy when the store can't be reached, refuses the credentials, or has no such bucket.
        """
        self.check_writable_place(url)
        probe = join(url, PROBE)
        try:
            self._probed(url, lambda storage: storage.write(probe, b""))
        except DataError as error:
            raise type(error)(f"nothing can be written there: {error}") from error
        self.remove(probe)

    def _upload_in_parts(self, path: Path, size: int, url: str) -> None:
        def ask(method: str, **settings: Any) -> Any:
            return self._retried(url, lambda fs, place: _of_object(fs, place, method, **settings))

        upload = ask("create_multipart_upload")["UploadId"]
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            answer = ask("upload_part", UploadId=upload, PartNumber=number, Body=data)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        def complete(fs: Any, place: str) -> None:
            try:
                _of_object(fs, place, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
            except Exception as error:
                # An earlier request may have done it, whose answer was lost.
                if "NoSuchUpload" not in kinds(error) or fs.size(place) != size:
                    raise

        try:
            parts = side_by_side(send, range(1, -(-size // part_bytes) + 1), self.connections)
            self._retried(url, complete)
        except BaseException:
            with suppress(Exception):  # once, as the store may be down; else `remove_unfinished` does it
                filesystem = self._filesystem(url)
                place = filesystem._strip_protocol(url)
                _of_object(filesystem, place, "abort_multipart_upload", UploadId=upload)
            raise
        self.forget(url)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """What `work` returns of each item, by so many threads. Raises the first error, when all threads have ended."""
    waiting = deque(enumerate(items))
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run() -> None:
        with suppress(IndexError):
            while not errors:
                number, item = waiting.popleft()
                try:
                    results[number] = work(item)
                except BaseException as error:
                    errors.append(error)

    # Not of a pool, whose threads would keep a process from ending.
    running = [Thread(target=run, daemon=True, name="transfer") for _ in range(min(threads, len(waiting)))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(results))]


def _of_object(fs: Any, place: str, method: str, **settings: Any) -> Any:
    """A request of S3's own about an object."""
    bucket, key, _ = fs.split_path(place)
    return fs.call_s3(method, Bucket=bucket, Key=key, **settings)


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def _copy(path: Path, place: str) -> None:
    """A file beside others of this machine, whole or not at all."""
    os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
    part = f"{place}.{os.getpid()}.part"
    with path.open("rb") as source, open(part, "wb") as copy:
        shutil.copyfileobj(source, copy, PART_BYTES)
        copy.flush()
        os.fsync(copy.fileno())
    os.replace(part, place)
