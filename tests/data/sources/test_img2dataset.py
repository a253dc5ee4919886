import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from composed import inputs_of, picture, source
from made_files import make_tar
from PIL import Image

from data.errors import DataError
from data.index import Index
from data.prepare import prepare
from data.sources import HELD_OUT, LeftOut
from data.stream import Storage
from data.survey import Criteria


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards as img2dataset writes them: 12 samples; 000000004 is 000000001 again, 000000005 nearly."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(6 * shard, 6 * shard + 6):
            key = f"{number:09d}"
            image = picture(number, 64, 48)
            if number == 4:
                image = members["000000001.jpg"]
            if number == 5:
                with Image.open(io.BytesIO(members["000000001.jpg"])) as opened:
                    anew = io.BytesIO()
                    opened.save(anew, "JPEG", quality=70)
                image = anew.getvalue()
            details = {"key": key, "caption": f"picture {number}", "similarity": number / 10, "NSFW": "UNLIKELY"}
            members |= {f"{key}.jpg": image, f"{key}.txt": f"picture {number}".encode()}
            members[f"{key}.json"] = json.dumps(details).encode()
        (folder / f"{shard:05d}.tar").write_bytes(make_tar(members))
        (folder / f"{shard:05d}.parquet").write_bytes(b"metadata, not ours to read")
    return folder


def test_samples_keep_what_is_known_of_them(shards: Path) -> None:
    found = source("img2dataset", url=shards)
    assert len(found) == 12
    sample = found[7]
    assert (sample.key, sample.extension, sample.caption) == ("000000007", "jpg", "picture 7")
    assert sample.image == picture(7, 64, 48)
    assert sample.metadata == {"similarity": 0.7, "NSFW": "UNLIKELY"}
    assert inputs_of("txt2img_1p45b", sample)["caption"].shape == (77,)


def test_the_same_predicates_as_at_indexing(shards: Path) -> None:
    found = source("img2dataset", url=shards, where="{similarity:{at_least:0.3},NSFW:{among:[UNLIKELY]}}")
    with pytest.raises(LeftOut, match="where_similarity"):
        found[2]
    assert found[3].key == "000000003"
    with pytest.raises(DataError, match=r"source\.where\.similarity\.least"):
        source("img2dataset", url=shards, where="{similarity:{least:1}}")


def test_filtered_without_duplicates_in_full_shards(shards: Path, tmp_path: Path) -> None:
    found = source("img2dataset", url=shards, where="{similarity:{at_most:1.0}}", held_out=0.0)
    manifest = prepare(found, str(tmp_path / "out"), Storage(), 4, Criteria(drop_same=True, drop_similar=4))
    assert manifest["dropped"] == {"duplicate": 1, "near_duplicate": 1, "where_similarity": 1}
    assert manifest["dropped_examples"]["near_duplicate"] == ["000000005"]
    listed = json.loads((tmp_path / "out/train/index.json").read_text())["shardlist"]
    assert [entry["nsamples"] for entry in listed] == [4, 4, 1]
    again = source("img2dataset", url=tmp_path / "out/train", held_out=1.0)
    assert [sample.key for sample in again] == [f"{n:09d}" for n in (0, 1, 2, 3, 6, 7, 8, 9, 10)]
    assert {sample.split for sample in again} == {HELD_OUT}
    assert again[0].image == found[0].image and again[0].metadata == found[0].metadata


def test_a_source_within_its_output_is_refused(shards: Path) -> None:
    inside = shards.rename(shards.parent / "train")
    before = {path.name: path.read_bytes() for path in inside.iterdir()}
    for output in (None, shards.parent):  # with an index in memory, and with one to write
        with pytest.raises(DataError, match=r"train/00000\.tar is there already"):
            prepare(source("img2dataset", url=inside, output=output), str(shards.parent), Storage(), 7)
    assert {path.name: path.read_bytes() for path in inside.iterdir()} == before
    assert list(shards.parent.iterdir()) == [inside]


def test_names_that_lead_out_of_the_archive_are_refused(tmp_path: Path) -> None:
    image = picture(1)
    members = {"../../x.jpg": image, "/abs/y.jpg": image, "a/b.jpg": image, "a\\c.jpg": image}
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    manifest = prepare(source("img2dataset", url=tmp_path, held_out=0.0), str(tmp_path / "out"), Storage())
    assert manifest["dropped"] == {"unsafe_name": 3}
    assert manifest["splits"]["train"]["samples"] == 1
    assert np.array_equal(sorted(path.name for path in tmp_path.iterdir()), ["0.tar", "out"])


def test_names_as_tar_writes_them_are_harmless(tmp_path: Path) -> None:
    """`tar cf x.tar -C dir .`, a folder with a dot, and hidden files."""
    names = ("./0001.jpg", "./v1.0/0002.jpg", "v1.0/0002.jpg", "./a~b.jpg", "./.hidden.jpg", "./../up.jpg")
    (tmp_path / "0.tar").write_bytes(make_tar({name: picture(n) for n, name in enumerate(names)}))
    found = source("img2dataset", url=tmp_path, held_out=0.0)
    assert [found[n].key for n in range(4)] == ["0001", "v1_0_0002", "v1_0_0002", "a_b"]
    for position in (4, 5):
        with pytest.raises(LeftOut, match="unsafe_name"):
            found[position]


@pytest.mark.parametrize("filtered", [False, True])
def test_equal_and_long_keys_of_several_shards_stay_apart(tmp_path: Path, filtered: bool) -> None:
    names = ("1", "2", "ü" * 250)
    for shard in ("a", "b"):
        (tmp_path / shard).mkdir()
        details = b'{"of_b":1}' if shard == "b" else b"{}"
        members = {f"{name}.{kind}": data for name in names for kind, data in (("jpg", picture(1)), ("json", details))}
        (tmp_path / shard / "0.tar").write_bytes(make_tar(members))
    where = "{of_b:{at_least:1}}" if filtered else "{}"
    found = source("img2dataset", url=f"[{tmp_path}/a,{tmp_path}/b]", held_out=0.0, where=where)
    prepare(found, str(tmp_path / "out"), Storage(), 2)
    written = Index.load(str(tmp_path / "out/train"), Storage())
    of_a, of_b = ["1", "2", found.key(2)], ["1~2", "2~2", f"{found.key(2)}~2"]
    assert [written.sample(n)[1].key for n in range(len(written))] == (of_b if filtered else of_a + of_b)


def test_headers_are_read_once_and_stay_out_of_memory(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"url": "shards", "output": "out", "processes": 1}
    found = source("img2dataset", **settings)
    in_memory = source("img2dataset", url=shards)
    assert found.settings == in_memory.settings and list(found) == list(in_memory)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/preparation/index").glob("*.npz")}
    assert len(kept) == 2 and len(pickle.dumps(source("img2dataset", **settings))) < len(pickle.dumps(in_memory))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    prepare(found, str(tmp_path / "out"), Storage())


def test_a_shard_cut_short_loses_its_last_sample_alone(shards: Path, tmp_path: Path) -> None:
    data = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(data[: len(data) - 20 * 512])
    manifest = prepare(source("img2dataset", url=shards), str(tmp_path / "out"), Storage())
    assert sum(manifest["dropped"].values()) == 12 - sum(s["samples"] for s in manifest["splits"].values()) <= 1
