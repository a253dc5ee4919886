"""Weights of measures' networks come from a path or a URL, whole and with the hash that is asked for."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from evaluation.weights import read_weights_file

STATE = {"weight": torch.arange(6.0)}


class Noted(http.server.SimpleHTTPRequestHandler):
    """Serves files, and notes which were asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server's address and its folder; what is brought from it lies below the test's own folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Noted.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Noted, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_a_url_is_read_once_and_its_hash_checked_every_time(served: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = served
    torch.save(STATE, folder / "w.pth")
    sha256 = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    for _ in range(2):
        found = read_weights_file(f"{address}/w.pth?download=1", sha256)
        assert torch.equal(found.state["weight"], STATE["weight"])
        assert found.sha256 == sha256
    assert len(Noted.asked) == 1
    with pytest.raises(ValueError, match=r"and not 00: .*; remove .*w\.pth to read the URL again"):
        read_weights_file(f"{address}/w.pth?download=1", "00")
    (kept,) = (tmp_path / "cache").rglob("w.pth")
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"and not {sha256}: they are other weights, or were not read to their end"):
        read_weights_file(f"{address}/w.pth?download=1", sha256)
    with pytest.raises(ValueError, match=r"cannot read weights at http.*absent\.pth"):
        read_weights_file(f"{address}/absent.pth", None)
    assert not list((tmp_path / "cache").rglob("absent.pth"))
