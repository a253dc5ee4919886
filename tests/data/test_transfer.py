"""A file arrives in a store with all its bytes, or not at all; and so it comes back."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from faulty import FaultyProxy

from data import stream, transfer
from data.errors import DataError, NotFound, StoreUnavailable
from data.store import EmbeddedStore
from data.transfer import PROBE, Transfers, side_by_side

PART = 5 << 20
"""The least that S3 takes for a part but the last."""
SIZE = 2 * PART + 4321


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", PART)
    monkeypatch.setattr(stream, "_FIRST_PAUSE_SECONDS", 0.01)
    caplog.set_level(logging.ERROR)


@pytest.fixture(scope="module")
def only_one() -> Transfers:
    return Transfers()


@pytest.fixture
def storage(store: EmbeddedStore, only_one: Transfers) -> Transfers:
    """The same for all tests, as a client takes long to make."""
    return only_one


@pytest.fixture
def behind(store: EmbeddedStore) -> Callable[..., FaultyProxy]:
    """A proxy before the store, with such shares of faults."""

    def proxy(**shares: float) -> FaultyProxy:
        address = urlsplit(store.endpoint_url)
        return FaultyProxy((str(address.hostname), int(address.port or 0)), shares, slow_seconds=0)

    return proxy


def made(folder: Path, size: int) -> Path:
    path = folder / f"{size}.bin"
    path.write_bytes(os.urandom(size))
    return path


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1])
@pytest.mark.parametrize("place", ["store", "disk"])
def test_bytes_are_the_same_there_and_back(
    size: int, place: str, store: EmbeddedStore, storage: Transfers, tmp_path: Path
) -> None:
    path = made(tmp_path, size)
    url = f"{store.url}/bytes/{size}.bin" if place == "store" else f"file://{tmp_path}/there/{size}.bin"
    storage.upload(path, url)
    assert storage.read(url) == path.read_bytes()
    storage.download(url, tmp_path / "back", size)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    path.write_bytes(b"another")
    storage.upload(path, url)
    assert storage.read(url) == b"another"
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_parts_arrive_through_faults(
    store: EmbeddedStore, storage: Transfers, behind: Callable[..., FaultyProxy], tmp_path: Path
) -> None:
    path, url = made(tmp_path, 2 * SIZE), f"{store.url}/faults/file"
    with behind(refused=0.4, reset=0.1, truncated=0.1) as proxy:
        through = Transfers(proxy.url, timeout_seconds=2)
        through.upload(path, url)
        through.download(url, tmp_path / "back", 2 * SIZE)
        assert proxy.met["refused"] > 3 and proxy.met["reset"]
    assert (tmp_path / "back").read_bytes() == path.read_bytes() == storage.read(url)


def test_a_store_that_stays_down_is_named_with_the_attempts(
    store: EmbeddedStore, storage: Transfers, behind: Callable[..., FaultyProxy], tmp_path: Path
) -> None:
    path, url = made(tmp_path, SIZE), f"{store.url}/down/file"
    with behind(refused=1.0) as proxy:
        through = Transfers(proxy.url, patience_seconds=0.5, timeout_seconds=2)
        with pytest.raises(StoreUnavailable, match=rf"{url}: .*; gave up after \d+ attempts in \d\.\d s"):
            through.upload(path, url)
    assert not storage.exists(url)


def test_what_a_killed_upload_left_is_removed(store: EmbeddedStore, storage: Transfers) -> None:
    url = f"{store.url}/unfinished/folder/file"
    filesystem = storage._filesystem(url)
    place = {"Bucket": store.bucket, "Key": "unfinished/folder/file"}
    upload = filesystem.call_s3("create_multipart_upload", **place)["UploadId"]
    filesystem.call_s3("upload_part", **place, UploadId=upload, PartNumber=1, Body=bytes(9))

    def left() -> list[str]:
        found = filesystem.call_s3("list_multipart_uploads", Bucket=store.bucket, Prefix="unfinished/")
        return [upload["Key"] for upload in found.get("Uploads") or []]

    assert left() == ["unfinished/folder/file"]
    storage.remove_unfinished(f"{store.url}/unfinished/other")
    assert left() == ["unfinished/folder/file"]
    storage.remove_unfinished(f"{store.url}/unfinished")
    assert left() == []


def test_an_upload_that_fails_leaves_nothing(
    store: EmbeddedStore, storage: Transfers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, url = made(tmp_path, SIZE), f"{store.url}/fails/file"
    ask = transfer._of_object

    def once(fs: object, place: str, method: str, **settings: object) -> object:
        if settings.get("PartNumber") == 2:
            raise DataError("no")
        return ask(fs, place, method, **settings)

    monkeypatch.setattr(transfer, "_of_object", once)
    with pytest.raises(DataError, match="no"):
        storage.upload(path, url)
    found = storage._filesystem(url).call_s3("list_multipart_uploads", Bucket=store.bucket, Prefix="fails/")
    assert not found.get("Uploads") and not storage.exists(url)


def test_what_is_shorter_or_missing_is_named(store: EmbeddedStore, storage: Transfers, tmp_path: Path) -> None:
    url = f"{store.url}/short/file"
    storage.upload(made(tmp_path, SIZE), url)
    with pytest.raises(DataError, match=rf"{url} has [\d,]+ bytes, there should be {SIZE + 1:,}"):
        storage.download(url, tmp_path / "back", SIZE + 1)
    with pytest.raises(NotFound, match="/none does not exist"):
        storage.download(f"{store.url}/short/none", tmp_path / "back", SIZE)


@pytest.mark.parametrize("place", ["store", "disk"])
def test_a_folder_goes_with_all_that_is_in_it(
    place: str, store: EmbeddedStore, storage: Transfers, tmp_path: Path
) -> None:
    top = store.url if place == "store" else str(tmp_path)
    for name in ("folder/a", "folder/b/c", "folders/a"):
        storage.write(f"{top}/{name}", b"x")
    storage.remove_below(f"{top}/folder")
    assert [url.removeprefix(top) for url in storage.list(f"{top}/folder", below=True)] == []
    assert storage.exists(f"{top}/folders/a")
    assert place == "store" or not (tmp_path / "folder").exists()


def test_what_links_lead_to_stays(only_one: Transfers, tmp_path: Path) -> None:
    for name in ("kept", "removed"):
        (tmp_path / name).mkdir()
    made(tmp_path / "kept", 10)
    (tmp_path / "removed" / "link").symlink_to(tmp_path / "kept")
    only_one.remove_below(str(tmp_path / "removed"))
    assert not (tmp_path / "removed").exists() and list((tmp_path / "kept").iterdir())


def test_whether_one_may_write_is_tried(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Transfers().check_writable(f"{store.url}/new/place")
    assert not Transfers().exists(f"{store.url}/new/place/{PROBE}")
    with pytest.raises(DataError, match="no-bucket/x is missing: its bucket or folder does not exist"):
        Transfers().check_writable("s3://no-bucket/x")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(DataError, match="nothing can be written there"):
            Transfers().check_writable(f"{tmp_path}/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(DataError, match="refused the credentials"):
        Transfers().check_writable(f"{store.url}/new/place")


def test_work_side_by_side_is_in_order_and_fails_as_one() -> None:
    assert side_by_side(lambda n: n * n, range(20), threads=3) == [n * n for n in range(20)]
    assert side_by_side(lambda n: n, [], threads=3) == []
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda n: 1 / (n - 5), range(20), threads=3)
