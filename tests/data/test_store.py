import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.errors import DataError
from data.store import EmbeddedStore
from data.stream import Storage
from tests.store import needs_store

pytestmark = needs_store


def use(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return Storage(patience_seconds=0)


@pytest.mark.slow
def test_objects_outlive_the_store_and_keys_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(tmp_path / "store") as first:
        old = first.environment
        storage = use(first, monkeypatch)
        storage.write(f"{first.url}/a/b.txt", b"kept")
        written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
        assert old["AWS_SECRET_ACCESS_KEY"].encode() not in written
        sockets = list(Path("/tmp").glob(f"seaweedfs-s3-{first.endpoint_url.rsplit(':', 1)[-1]}.sock"))
        assert len(sockets) == 1
    assert not sockets[0].exists()
    with EmbeddedStore(tmp_path / "store") as second:
        assert use(second, monkeypatch).read(f"{second.url}/a/b.txt") == b"kept"
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", old["AWS_ACCESS_KEY_ID"])
        with pytest.raises(DataError, match="refused the credentials"):
            Storage().check(second.url)


def test_one_store_for_a_folder_any_number_beside_it(running_store: EmbeddedStore, tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "another") as another:
        assert another.endpoint_url != running_store.endpoint_url
    with pytest.raises(DataError, match="another process serves"), EmbeddedStore(running_store.folder):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys, time; from pathlib import Path; from data.store import EmbeddedStore\n"
        f"with EmbeddedStore(Path({str(tmp_path / 'store')!r})) as store:\n"
        "    print('up', flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
    assert parent.stdout is not None and parent.stdout.readline() == "up\n"
    [server] = psutil.Process(parent.pid).children()
    os.kill(parent.pid, number)
    parent.wait()
    assert not list((tmp_path / "store").rglob("identities.json"))
    deadline = time.monotonic() + 5
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    ports = json.loads((tmp_path / "store" / "run" / "ports.json").read_text())
    left_behind = Path(f"/tmp/seaweedfs-s3-{ports['s3.port']}.sock")
    assert left_behind.exists()
    EmbeddedStore(tmp_path / "store")._remove_sockets()  # as the next start does
    assert not left_behind.exists()


def test_a_foreign_host_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"host='192.0.2.1'"), EmbeddedStore(tmp_path, host="192.0.2.1"):
        pass


def test_a_store_that_is_not_up_has_no_endpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not up"):
        _ = EmbeddedStore(tmp_path).environment
