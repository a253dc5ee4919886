import errno
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty import FaultyProxy, WebServer

from data import stream
from data.errors import DataError, NotFound, Refused, StoreUnavailable
from data.store import EmbeddedStore
from data.stream import Storage
from data.traffic import Traffic


class Flaky:
    """A file system whose first `failures` reads fail."""

    def __init__(self, failures: int, error: Exception, content: bytes = bytes(range(200))) -> None:
        self.failures = failures
        self.error = error
        self.content = content
        self.reads = 0

    def _strip_protocol(self, url: str) -> str:
        return url

    def cat_file(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        self.reads += 1
        if self.reads <= self.failures:
            raise self.error
        return self.content[start:end]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Flaky]:
    def install(failures: int, error: Exception) -> Flaky:
        filesystem = Flaky(failures, error)
        monkeypatch.setattr(Storage, "_open", lambda self, protocol: filesystem)
        monkeypatch.setattr(stream, "_FIRST_PAUSE_SECONDS", 0.001)
        return filesystem

    return install


def test_a_read_is_a_slice_whatever_the_blocks(tmp_path: Path) -> None:
    content = os.urandom(1000)
    (tmp_path / "file").write_bytes(content)
    for block_bytes in (1, 7, 64, 4096):
        storage = Storage(block_bytes=block_bytes, cache_bytes=max(block_bytes, 128))
        for start, stop in [(0, 1000), (0, 1), (63, 65), (990, 1100), (1000, 1010), (5000, 5001), (5, 5)]:
            assert storage.read(str(tmp_path / "file"), start, stop) == content[start:stop]
    assert Storage().read(str(tmp_path / "file")) == content
    assert Storage().read(f"file://{tmp_path}/file", 900) == content[900:]


def test_memory_of_the_cache_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    storage = Storage(block_bytes=100, cache_bytes=1000)
    for start in range(0, 100_000, 50):
        storage.read(str(tmp_path / "file"), start, start + 120)
        assert storage._blocks.held_bytes <= 1000


def test_a_block_is_fetched_once_until_forgotten(flaky: Callable[..., Flaky]) -> None:
    filesystem = flaky(0, OSError())
    storage = Storage(block_bytes=10, cache_bytes=1000)
    storage.prefetch([("x://a", 0, 35), ("x://a", 20, 25)])
    assert filesystem.reads == 0  # one run: the read itself will ask for it
    storage.prefetch([("x://a", 0, 35), ("x://a", 20, 45), ("x://a", 100, 101), ("x://b", 0, 5)])
    assert filesystem.reads == 3
    assert storage.read("x://a", 5, 50) == bytes(range(5, 50))
    assert filesystem.reads == 3
    assert storage.read("x://a", 40, 70) == bytes(range(40, 70))
    assert filesystem.reads == 4  # both missing blocks in one request
    storage.forget("x://a")
    storage.read("x://a", 0, 10)
    assert filesystem.reads == 5


def test_what_is_brought_ahead_fits_into_the_cache(flaky: Callable[..., Flaky]) -> None:
    filesystem = flaky(0, OSError())
    storage = Storage(block_bytes=10, cache_bytes=100)
    storage.prefetch([("x://a", 0, 200), *((f"x://{n}", 0, 20) for n in range(9))])
    assert filesystem.reads == 2, "of 400 bytes, 50 may come: the first two of twenty"
    assert all(storage.read(f"x://{n}", 0, 20) == bytes(range(20)) for n in range(9))
    assert filesystem.reads == 9


def test_failures_are_ridden_out(flaky: Callable[..., Flaky]) -> None:
    filesystem = flaky(3, TimeoutError("slow"))
    storage = Storage()
    assert storage.read("x://a", 3, 5) == bytes([3, 4])
    assert filesystem.reads == 4
    assert storage.traffic.take().retries == 3
    assert storage.traffic.take() == Traffic()


def test_the_last_error_names_url_error_and_attempts(flaky: Callable[..., Flaky]) -> None:
    flaky(100, OSError("503 Slow Down"))
    with pytest.raises(DataError, match=r"x://a: OSError: 503 .*; gave up after \d+ attempts in 0\.\d s\. Check"):
        Storage(patience_seconds=0.3).read("x://a")


def test_what_does_not_come_ahead_is_left_for_the_read_that_needs_it(
    flaky: Callable[..., Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process whose store has gone stayed up at its end for as long as its patience, for these threads."""
    filesystem = flaky(10**6, OSError("503 Slow Down"))
    monkeypatch.setattr(stream, "_AHEAD_SECONDS", 0.3)
    storage = Storage(block_bytes=10, cache_bytes=100)
    began = time.monotonic()
    storage.prefetch([("x://a", 0, 30), ("x://b", 0, 3)])
    assert time.monotonic() - began < 5
    filesystem.failures = filesystem.reads
    assert storage.read("x://a", 0, 30) == bytes(range(30))


def test_pauses_double_up_to_twenty_seconds_and_differ_between_readers(
    flaky: Callable[..., Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    waited: list[list[float]] = []

    def sleep(seconds: float) -> None:
        waited[-1].append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    flaky(10**6, TimeoutError("slow"))
    monkeypatch.setattr(stream, "_FIRST_PAUSE_SECONDS", 0.2)
    for reader in range(2):
        waited.append([])
        with pytest.raises(StoreUnavailable, match=rf"x://{reader}: TimeoutError: slow; gave up after \d+ attempts"):
            Storage(patience_seconds=300).read(f"x://{reader}")
        assert 250 < sum(waited[-1]) <= 300
        for n, pause in enumerate(waited[-1]):
            assert 0.5 <= pause / min(0.2 * 2**n, 20) <= 1.5
    assert not set(waited[0]) & set(waited[1])


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no")])
def test_what_cannot_change_is_not_retried(flaky: Callable[..., Flaky], error: Exception) -> None:
    filesystem = flaky(100, error)
    with pytest.raises(NotFound if isinstance(error, FileNotFoundError) else DataError, match="x://a"):
        Storage().read("x://a")
    assert filesystem.reads == 1


def test_a_written_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "file"
    Storage().write(str(target), b"first")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("crash")))
    with pytest.raises(DataError, match="crash"):
        Storage(patience_seconds=0).write(str(target), b"second")
    assert target.read_bytes() == b"first"


def test_expand(tmp_path: Path) -> None:
    for name in ("b1.tar", "a1.tar", "a2.tar", "a1.txt"):
        (tmp_path / name).touch()
    expand, folder = Storage().expand, str(tmp_path)
    assert expand(f"{folder}/x{{01..03}}.tar") == [f"{folder}/x0{n}.tar" for n in (1, 2, 3)]
    assert expand(f"{folder}/a*.tar") == [f"{folder}/a1.tar", f"{folder}/a2.tar"]
    assert expand([f"{folder}/b?.tar", f"{folder}/{{a1,a2}}.tar"]) == [f"{folder}/{n}.tar" for n in ("b1", "a1", "a2")]
    assert expand(folder) == [f"{folder}/{name}.tar" for name in ("a1", "a2", "b1")]
    assert expand(f"{folder}/none") == []
    (tmp_path / "list.txt").write_text(f"a2.tar  # the second\n\n# none\n{folder}/x{{1..2}}.tar\nb?.tar\nsub/c.tar\n")
    assert expand(f"{folder}/list.txt") == [f"{folder}/{name}.tar" for name in ("a2", "x1", "x2", "b1", "sub/c")]


def test_a_query_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"0123456789")
    (tmp_path / "list.txt").write_text("0.tar?download=true")
    with WebServer(str(tmp_path), True) as server:
        for url in (f"{server.url}/{{0..0}}.tar?download=true", f"{server.url}/list.txt?download=a/b"):
            assert Storage().check(url) == [f"{server.url}/0.tar?download=true"]
        assert Storage(block_bytes=4).read(f"{server.url}/0.tar?download=true", 2, 4) == b"23"


def test_patterns_of_folders_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("*/0.tar")
    for url in (f"{tmp_path}/*/0.tar", "s3://bucket/a?/*.tar", f"{tmp_path}/list.txt"):
        with pytest.raises(DataError, match=r"are for the last part of a URL alone"):
            Storage().check(url)


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    real, linked = tmp_path / "real", tmp_path / "linked"
    (real / "inner").mkdir(parents=True)
    linked.mkdir()
    for name in ("a.tar", "inner/b.tar"):
        (real / name).touch()
    (linked / "a.tar").symlink_to(real / "a.tar")
    (linked / "folder").symlink_to(real)
    (linked / "broken.tar").symlink_to(real / "gone.tar")
    (linked / "self.tar").symlink_to(linked / "self.tar")
    (real / "inner" / "loop").symlink_to(linked)
    assert Storage().check(str(linked)) == [f"{linked}/a.tar"]
    names = ("a.tar", "folder/a.tar", "folder/inner/b.tar")
    assert Storage().list(str(linked), below=True) == [f"{linked}/{name}" for name in names]
    assert Storage().list(f"file://{linked}") == [f"file://{linked}/a.tar"]


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENOSPC, StoreUnavailable, "The disk is full: make room"),
        (errno.EEXIST, DataError, "is there a file in place of a folder"),
        (errno.EISDIR, DataError, "is there a file in place of a folder"),
        (errno.EACCES, Refused, "Permission denied"),
    ],
)
def test_what_a_disk_says_is_not_asked_again(
    number: int, kind: type[DataError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(stream, "write_atomically", lambda *_: (_ for _ in ()).throw(error))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(kind, match=says):
        Storage().write(str(tmp_path / "file"), b"")


def test_a_server_without_ranges_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(b"0123456789")
    for ranges in (True, False):
        with WebServer(str(tmp_path), ranges) as server:
            storage = Storage(block_bytes=4, cache_bytes=64)
            assert [storage.read(f"{server.url}/{n % 2}.tar", n, n + 2) for n in range(4)] == [
                b"01",
                b"12",
                b"23",
                b"34",
            ]
            told = [record.getMessage() for record in caplog.records if "answers ranges" in record.getMessage()]
            assert len(told) == (0 if ranges else 1) and all(server.url in message for message in told)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cache_folder=.*file/cache cannot be made: .*Name a folder on a local disk"):
        Storage(cache_folder=str(tmp_path / "file" / "cache")).check_cache_folder()
    Storage(cache_folder=str(tmp_path / "cache")).check_cache_folder()
    assert (tmp_path / "cache").is_dir()


def test_a_copy_for_another_process_starts_afresh(flaky: Callable[..., Flaky]) -> None:
    flaky(0, OSError())
    storage = Storage(block_bytes=10, cache_bytes=1000)
    storage.read("x://a", 0, 50)
    copy: Any = pickle.loads(pickle.dumps(storage))
    assert copy.block_bytes == 10
    assert copy._blocks.held_bytes == 0
    assert copy.read("x://a", 0, 5) == bytes(range(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_bytes": 0}, "block_bytes=0"),
        ({"cache_bytes": 5}, "cache_bytes=5"),
        ({"patience_seconds": -1}, "patience_seconds=-1"),
        ({"cache_folder": "x", "cache_folder_bytes": 5}, "cache_folder_bytes=5"),
        ({"timeout_seconds": 0}, "timeout_seconds=0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Storage(**arguments)


def test_s3(store: EmbeddedStore) -> None:
    storage, url = Storage(block_bytes=64), f"{store.url}/stream/file.bin"
    content = os.urandom(500)
    assert not storage.exists(url)
    storage.write(url, content)
    assert storage.exists(url) and storage.size(url) == 500
    assert storage.read(url) == content
    assert storage.read(url, 60, 200) == content[60:200]
    assert storage.read(url, 490, 600) == content[490:]
    assert storage.read(url, 5000, 5010) == b""
    assert storage.list(f"{store.url}/stream") == [url]
    with pytest.raises(NotFound, match=r"missing\.bin"):
        storage.read(f"{store.url}/stream/missing.bin")


def test_public_objects_are_asked_for_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment are somebody else's business."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thing")
    (tmp_path / "laion").mkdir()
    (tmp_path / "laion" / "0.tar").write_bytes(b"0123456789")
    with WebServer(str(tmp_path), True) as server:
        endpoint = "http://{}:{}".format(*server.address)
        for anonymous in (True, False):
            server.authorizations.clear()
            storage = Storage(endpoint, anonymous=anonymous, block_bytes=4, cache_bytes=64)
            assert storage.read("s3://laion/0.tar", 3, 7) == b"3456"
            assert {bool(given) for given in server.authorizations} == {not anonymous}


def test_https_is_read_from_servers_that_this_machine_trusts(tmp_path: Path) -> None:
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl")
    certificate = tmp_path / "server.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", certificate, "-out", tmp_path / "authority.pem"]
    subprocess.run([openssl, "req", "-x509", "-nodes", *subject, *files], check=True, capture_output=True)
    certificate.write_text(certificate.read_text() + (tmp_path / "authority.pem").read_text())
    (tmp_path / "0.tar").write_bytes(b"0123456789")
    with WebServer(str(tmp_path), True, certificate) as server:
        url = "https://{}:{}/0.tar".format(*server.address)
        with pytest.raises(DataError, match="its authority's certificate in SSL_CERT_FILE"):
            Storage().check(url)
        # of a process of its own, as they are read once
        read = f"from data.stream import Storage; s = Storage(); print(s.check({url!r}), s.read({url!r}, 3, 7))"
        trusting = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "authority.pem")}
        done = subprocess.run([sys.executable, "-c", read], env=trusting, check=True, capture_output=True, text=True)
        assert done.stdout == f"{[url]} b'3456'\n"


def test_what_a_web_server_says_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    """fsspec calls both "not found"; a transient failure must not make a sample, or an index, a missing one."""
    (tmp_path / "0.tar").write_bytes(b"0123456789")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.tar").write_bytes(b"1")
    with WebServer(str(tmp_path), True) as server:
        server.statuses["/0.tar"] = 403
        address = "http://{}:{}".format(*server.address)
        assert Storage().check(f"{address}/folder/{{1..2}}.tar") == [f"{address}/folder/{n}.tar" for n in (1, 2)]
        assert not Storage().exists(f"{address}/2.tar")
        with pytest.raises(DataError, match=r"0\.tar cannot be used: .*403"):
            Storage().exists(f"{address}/0.tar")
        with FaultyProxy(server.address, {"refused": 0.6}, 0) as proxy:
            there = Storage(timeout_seconds=2.0)
            assert all(there.exists(f"{proxy.url}/folder/1.tar") for _ in range(10)) and proxy.met["refused"]
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        Storage().check(f"{address}/0.tar")
    with pytest.raises(StoreUnavailable, match="gave up after"):
        Storage(patience_seconds=0.3).exists(f"{address}/0.tar")


def test_keys_and_endpoint_of_a_profile(store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, keys = f"{store.url}/profile/0.tar", store.environment
    Storage().write(url, b"by profile")
    for name in keys:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu\nendpoint_url = {keys['AWS_ENDPOINT_URL']}\n")
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {keys['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {keys['AWS_SECRET_ACCESS_KEY']}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert Storage(profile="lab").read(url) == b"by profile"
    assert Storage(profile="lab").check(f"{store.url}/profile") == [url]
    with pytest.raises(DataError, match=r"no credentials were found .*\(profile=other\)"):
        Storage(profile="other").check(url)


def test_a_store_whose_package_is_missing_is_told_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url in ("gs://bucket/laion", "gcs://bucket/{00000..00009}.tar"):
        with pytest.raises(DataError, match=r"needs a package .*: Please install gcsfs to access Google Storage$"):
            Storage().check(url)
        with pytest.raises(DataError, match="cannot be used: ImportError: Please install gcsfs"):
            Storage().read(url)


def test_a_forked_process_reads_after_its_parent(store: EmbeddedStore) -> None:
    storage, url = Storage(), f"{store.url}/fork/file.bin"
    storage.write(url, b"forked")
    assert storage.read(url) == b"forked"
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if storage.read(url) == b"forked" else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended == (child, 0)


class TestCheck:
    """Four faults, four errors, each within a few seconds."""

    @pytest.fixture(autouse=True)
    def quick(self) -> Any:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < 8

    def test_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thing")
        for endpoint in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
            with pytest.raises(DataError, match=f"{endpoint} cannot be reached for s3://data/shards"):
                Storage(endpoint_url=endpoint).check("s3://data/shards")

    def test_refused(self, store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(DataError, match="refused anonymous access"):
            Storage(anonymous=True).check(store.url)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(DataError, match="refused the credentials"):
            Storage().check(store.url)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(DataError, match="no credentials were found"):
            Storage().check(store.url)

    def test_missing(self, store: EmbeddedStore, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="s3://no-bucket/x is missing"):
            Storage().check("s3://no-bucket/x")
        with pytest.raises(DataError, match="is missing"):
            Storage().check(str(tmp_path / "no" / "{0..3}.tar"))

    def test_nothing_matches(self, store: EmbeddedStore, tmp_path: Path) -> None:
        for url in (f"{store.url}/empty", f"{store.url}/empty/{{0..3}}.tar", str(tmp_path)):
            with pytest.raises(DataError, match="no shard"):
                Storage().check(url)

    def test_good(self, store: EmbeddedStore) -> None:
        Storage().write(f"{store.url}/check/0.tar", b"")
        assert Storage().check(f"{store.url}/check") == [f"{store.url}/check/0.tar"]


def test_light_modules_leave_torch_out() -> None:
    names = "errors store stream index offsets order prepare transforms sources.openmoji sources.coco"
    program = f"import sys; [__import__('data.' + n) for n in {names!r}.split()]; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
