import pickle
import sys
from pathlib import Path

import lmdb
import pytest
from composed import inputs_of, picture, source

from data.errors import DataError
from data.prepare import prepare
from data.stream import Storage


def test_without_lmdb_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(DataError, match="pip install lmdb"):
        source("lsun", folder=tmp_path)


def test_another_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data\.mdb"):
        source("lsun", folder=tmp_path)


def test_pictures_of_an_lmdb_folder(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "church"), map_size=1 << 20) as opened, opened.begin(write=True) as transaction:
        transaction.put(b"0a1b", picture(0, kind="WEBP"))
        transaction.put(b"0c2d", picture(1))
        transaction.put(b"../x", picture(2))
        transaction.put(b"zz", b"no picture")
    found = source("lsun", folder=tmp_path / "church", held_out=0.0)
    assert found[1].extension == "webp" and found[1].key == "0a1b"
    copy = pickle.loads(pickle.dumps(found))  # as another process gets it
    assert copy[2].image == picture(1)
    assert inputs_of("lsun_churches", copy[2]) == {}
    manifest = prepare(found, str(tmp_path / "out"), Storage())
    assert manifest["dropped"] == {"no_image": 1} and manifest["splits"]["train"]["samples"] == 3
