"""Faults of a store, and credentials, which appear nowhere."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data.prepare import prepare
from data.store import EmbeddedStore
from data.stream import Storage
from tests.conftest import Squares, finish, ldm
from tests.store import needs_store
from tests.training.wrong_input.refusals import Refused, check

SECONDS = 20.0
"""Longest time that an answer of a store may take, on a busy machine."""

UPLOADS = {
    "missing bucket": ("s3://no-bucket/x", "", "bucket or folder does not exist"),
    "refused": ("s3://data/x", "AWS_SECRET_ACCESS_KEY", "refused the credentials"),
    "unreachable": ("s3://data/x", "endpoint", "Check the endpoint URL, and that the store is up"),
}


@needs_store
class TestStore:
    """Four faults of a store, four messages, each within seconds."""

    @pytest.fixture(scope="class")
    def shards(self, running_store: EmbeddedStore) -> str:
        """The squares, there."""
        url = f"{running_store.url}/squares"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in running_store.environment.items():
                patch.setenv(name, value)
            prepare(Squares(), url, Storage(), samples_per_shard=20)
        return url

    @pytest.fixture
    def remote(self, base: list[str], shards: str, store: EmbeddedStore) -> list[str]:
        return [*base, f"data.url={shards}"]

    @pytest.fixture(autouse=True)
    def quick(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < SECONDS

    def test_right_input_starts_ranks(self, remote: list[str], refused: Refused) -> None:
        with pytest.raises(pytest.fail.Exception, match="ranks were started"):
            refused(remote)

    @pytest.mark.parametrize("preparing", [False, True])
    def test_unreachable(
        self, preparing: bool, remote: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        source = ["data.prepare={_target_: tests.conftest.Squares}"] if preparing else []
        key = "data.url=s3://data/squares" if preparing else "data.train=s3://data/squares/train"
        message = refused([*remote, *source])
        check(message, key, "Check the endpoint URL, and that the store is up")
        assert "http://127.0.0.1:9 cannot be reached" in message

    @pytest.mark.parametrize("preparing", [False, True])
    def test_refused(
        self, preparing: bool, remote: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        source = ["data.prepare={_target_: tests.conftest.Squares}"] if preparing else []
        key = "data.url=s3://data/squares" if preparing else "data.train=s3://data/squares/train"
        message = refused([*remote, *source])
        check(message, key, "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
        assert "refused the credentials" in message
        assert "not-the-secret" not in message

    @pytest.mark.parametrize("preparing", [False, True])
    def test_missing_bucket(self, preparing: bool, remote: list[str], refused: Refused) -> None:
        source = ["data.prepare={_target_: tests.conftest.Squares}"] if preparing else []
        key = "data.url=s3://no-bucket/x" if preparing else "data.train=s3://no-bucket/x/train"
        check(refused([*remote, "data.url=s3://no-bucket/x", *source]), key, "bucket or folder does not exist")

    @pytest.mark.parametrize("case", UPLOADS)
    def test_upload(self, case: str, base: list[str], store: EmbeddedStore, refused: Refused) -> None:
        """With data on a disk."""
        url, wrong, remedy = UPLOADS[case]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in store.environment.items():
                patch.setenv(name, "not-the-secret" if name == wrong else value)
            endpoint = ["checkpoint.storage.endpoint_url=http://127.0.0.1:9"] if wrong == "endpoint" else []
            check(refused([*base, f"checkpoint.upload={url}", *endpoint]), f"checkpoint.upload={url}", remedy)

    def test_nothing_matches(self, remote: list[str], refused: Refused) -> None:
        message = refused([*remote, 'data.train="s3://data/squares/train/9*.tar"'])
        check(message, "data.train=s3://data/squares/train/9*.tar", "check the path")
        assert "no shard" in message


@pytest.mark.parametrize("given", [{}, {"AWS_ACCESS_KEY_ID": "sesame"}, {"AWS_PROFILE": "nobody"}], ids=str)
def test_without_keys_nothing_is_asked(
    given: dict[str, str], base: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    message = refused([*base, "data.url=s3://data/x", "data.storage.endpoint_url=http://127.0.0.1:9"])
    check(message, "data.train=s3://data/x/train: no credentials were found", "Set AWS_ACCESS_KEY_ID and AWS_SECRET")
    assert "refused" not in message and "sesame" not in message


CREDENTIALS = {
    "user of a URL": ("data.url=http://key:sesame@host:9000/x", "data.url=http://***@host:9000/x: "),
    "user of the store": (
        "data.storage.endpoint_url=http://key:sesame@host:9000",
        "data.storage.endpoint_url=http://***@host:9000: ",
    ),
    "signature": ("data.url=https://127.0.0.1:9/x?X-Amz-Signature=sesame", "data.url=https://127.0.0.1:9/x?X-Amz-Sig"),
    "signature in what can't be read": (
        "data.url={https://x/y?Signature=sesame",
        "data.url={https://x/y?Signature=***",
    ),
    "key": ("data.storage.secret_access_key=sesame", "data.storage.secret_access_key=***: "),
    "key that is added": ("+data.storage.secret_access_key=sesame", "data.storage.secret_access_key=***: "),
    "key of a group": ("+data.own={api_key:sesame}", "data.own.api_key=***: "),
    "key in the environment": ("data.url=${oc.env:SIGNED}", "data.url=https://x/y?Signature=***"),
}


@pytest.mark.parametrize("case", CREDENTIALS)
def test_credentials_are_refused_and_not_repeated(
    case: str, base: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGNED", "https://x/y?Signature=sesame")
    override, says = CREDENTIALS[case]
    message = refused([*base, override])
    check(message, says, "set AWS_ACCESS_KEY_ID")
    assert "sesame" not in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]


def test_credentials_are_not_repeated_by_other_messages(base: list[str], refused: Refused) -> None:
    assert "sesame" not in refused([*base, "data.storage={secret_access_key:sesame,nope:1}"])


@needs_store
def test_credentials_appear_nowhere(tiny_diffusion: list[str], tmp_path: Path) -> None:
    """A run with a store of its own and W&B: keys are taken from its rank's environment, then searched for."""
    folder = tmp_path / "run"
    command = ldm(
        *("train", *tiny_diffusion, "data.embedded_store=true", "data.prepare={_target_: tests.conftest.Squares}"),
        *("data.url=s3://data/squares", "tracker.mode=offline", "run.ranks=1", "steps=2", f"run.folder={folder}"),
        environment={"OMP_NUM_THREADS": "1"},
    )
    keys: set[str] = set()
    while command.poll() is None and not keys:
        for child in psutil.Process(command.pid).children():
            try:
                environment = child.environ()
            except psutil.Error:
                continue
            if "AWS_SECRET_ACCESS_KEY" in environment:
                keys = {environment["AWS_SECRET_ACCESS_KEY"], environment["AWS_ACCESS_KEY_ID"]}
        time.sleep(0.05)
    status, out, err = finish(command)
    assert status == 0, err
    assert len(keys) == 2
    kept = [path for path in folder.rglob("*") if path.is_file() and folder / "store" / "objects" not in path.parents]
    assert {"report.html", "config.yaml", "metrics.jsonl", "manifest.json"} <= {path.name for path in kept}
    [dashboard] = [path for path in kept if path.suffix == ".wandb"]
    assert b"micro_size" in dashboard.read_bytes(), "W&B was given no configuration"
    assert any(path.suffix == ".safetensors" for path in kept)
    pattern = re.compile("|".join(keys).encode())
    leaks = [str(path) for path in kept if pattern.search(path.read_bytes())]
    assert not leaks
    assert not pattern.search((out + err).encode())
