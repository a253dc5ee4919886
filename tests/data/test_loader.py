import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from faulty import WebServer
from made_files import make_png, make_tar
from PIL import Image

from data import members
from data.batch import Batch
from data.errors import DataError
from data.handover import Receiver
from data.index import Index
from data.inputs.caption import Caption
from data.loader import Loader
from data.mixture import IndexedSource
from data.sources import HELD_OUT, TRAIN, Sample
from data.store import EmbeddedStore
from data.stream import Storage
from data.transforms import decode_image
from data.workers import _tell_unless_abandoned

SIZES = (5, 9, 2, 7)


def tokenize(captions: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[int(caption.split()[-1])] for caption in captions])


INPUTS = {"caption": Caption(tokenize)}


def make_loader(folder: str, storage: Storage | None = None, **options: Any) -> Loader:
    storage = storage or Storage()
    arguments: dict[str, Any] = {
        "seed": 7,
        "image_size": 8,
        "inputs": INPUTS,
        "global_batch": 8,
        "micro_batch": 2,
        "group_shards": 2,
        "flip": True,
    }
    return Loader([IndexedSource(Index.load(folder, storage))], storage, **(arguments | options))


def take(loader: Loader, count: int, start_step: int = 0) -> list[Batch]:
    stream = loader.batches(start_step)
    try:
        return list(islice(stream, count))
    finally:
        stream.close()


def rows(batches: list[Batch]) -> dict[int, tuple[str, int, bytes]]:
    """What was seen under each global sample number."""
    return {
        int(number): (caption, int(tokens[0]), image.numpy().tobytes())
        for batch in batches
        for number, caption, tokens, image in zip(
            batch.numbers, batch.captions, batch.inputs["caption"], batch.images, strict=True
        )
    }


@pytest.fixture
def folder(shards: Callable[..., str]) -> str:
    return shards(*SIZES)


def test_a_batch_is_what_its_type_says(folder: str) -> None:
    [batch] = take(make_loader(folder), 1)
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (2, 3, 8, 8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.inputs["caption"].dtype == torch.int64 and batch.inputs["caption"].shape == (2, 1)
    assert batch.numbers.dtype == torch.int64 and batch.numbers.tolist() == [0, 1]
    assert len(batch) == 2 and batch.faults == []


def test_images_are_the_pictures_of_their_captions(folder: str) -> None:
    for caption, number, image in rows(take(make_loader(folder, flip=False), 12)).values():
        assert caption == f"picture {number}"
        pixels = torch.from_numpy(decode_image(make_png(number)))  # [H, W, 3]
        assert image == pixels.permute(2, 0, 1).contiguous().numpy().tobytes()


def test_every_sample_once_per_epoch(folder: str) -> None:
    epoch = sum(SIZES)
    seen = rows(take(make_loader(folder, global_batch=1, micro_batch=1), 2 * epoch))
    for first in (0, epoch):
        captions = [seen[number][0] for number in range(first, first + epoch)]
        assert sorted(captions) == sorted(f"picture {number}" for number in range(epoch))


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 8), (2, 2), (2, 4), (4, 2), (8, 1)])
def test_ranks_and_micro_batches_do_not_change_a_step(folder: str, world: int, micro_batch: int) -> None:
    one = rows(take(make_loader(folder), 4 * 6))
    ranks = [make_loader(folder, micro_batch=micro_batch, rank=rank, world=world) for rank in range(world)]
    assert {loader.accumulation for loader in ranks} == {8 // (micro_batch * world)}
    for step in range(6):
        together: dict[int, tuple[str, int, bytes]] = {}
        for loader in ranks:
            together |= rows(take(loader, loader.accumulation, step))
        assert together == {number: one[number] for number in range(8 * step, 8 * step + 8)}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_anything(folder: str, workers: int) -> None:
    alone, many = take(make_loader(folder), 10), take(make_loader(folder, workers=workers), 10)
    assert [batch.numbers.tolist() for batch in many] == [batch.numbers.tolist() for batch in alone]
    assert rows(many) == rows(alone)


@pytest.mark.parametrize(("workers", "batches_ahead"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_a_batch_stays_what_it_was_when_others_follow(
    folder: str, workers: int, batches_ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images that are too many to go by value: workers write to the same memory again and again, as far ahead as
    they may, while the training process is slow to copy."""
    own = Receiver.own

    def slowly(receiver: Receiver, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return own(receiver, images)

    monkeypatch.setattr(Receiver, "own", slowly)
    options = {"image_size": 128, "batches_ahead": batches_ahead}
    many = take(make_loader(folder, workers=workers, **options), 24)
    assert not any(batch.images.is_shared() for batch in many)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in many)
    assert rows(many) == rows(take(make_loader(folder, **options), 24))


def test_small_tensors_go_to_another_process_by_value(folder: str) -> None:
    [batch] = take(make_loader(folder), 1)
    again = pickle.loads(ForkingPickler.dumps(batch))
    assert not again.images.is_shared() and not again.numbers.is_shared() and batch.images.is_contiguous() is False
    assert rows([again]) == rows([batch]) and again.images.stride() == batch.images.stride()
    assert again.numbers.dtype == torch.int64 and again.sources.tolist() == batch.sources.tolist()
    again.images.zero_()
    assert batch.images.any(), "memory of its own"


def test_a_restart_goes_on_where_it_stopped(folder: str) -> None:
    whole = take(make_loader(folder), 40)
    for step in (1, 7):
        assert rows(take(make_loader(folder), 8, step)) == rows(whole[4 * step : 4 * step + 8])


def test_a_late_start_costs_no_more_than_the_first(folder: str) -> None:
    began = time.monotonic()
    assert take(make_loader(folder), 1, 10**9)[0].numbers.tolist() == [8 * 10**9, 8 * 10**9 + 1]
    assert time.monotonic() - began < 2


def test_loading_leaves_the_global_generator_alone(folder: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    take(make_loader(folder, workers=1), 3)
    assert torch.equal(torch.rand(3), expected)


def test_from_object_storage_it_is_the_same(folder: str, store: EmbeddedStore) -> None:
    storage = Storage(block_bytes=4096)
    for path in Path(folder).iterdir():
        storage.write(f"{store.url}/loader/{path.name}", path.read_bytes())
    local = rows(take(make_loader(folder), 12))
    for workers in (0, 2):
        assert rows(take(make_loader(f"{store.url}/loader", storage, workers=workers), 12)) == local


GOOD = {"png": make_png(1), "txt": b"picture 1"}
BAD: dict[str, dict[str, bytes]] = {
    "truncated": {"png": make_png(1, 64)[:3000], "txt": b"picture 1"},
    "undecodable": {"png": b"nothing", "txt": b"picture 1"},
    "not_utf8": {"png": make_png(1), "txt": b"\xff\xff"},
    "no_caption": {"png": make_png(1)},
    "no_image": {"txt": b"picture 1"},
    "too_many_pixels": {"png": make_png(1, 80), "txt": b"picture 1"},
    "too_small": {"png": make_png(1, 3), "txt": b"picture 1"},
}


def write_shard(folder: Path, name: str, samples: list[dict[str, bytes]]) -> None:
    folder.mkdir(exist_ok=True)
    members = {f"{n:03d}.{kind}": content for n, sample in enumerate(samples) for kind, content in sample.items()}
    (folder / name).write_bytes(make_tar(members))


@pytest.mark.parametrize(("reason", "workers"), [*((reason, 0) for reason in BAD), ("animated", 0), ("undecodable", 1)])
def test_a_bad_sample_is_replaced_and_reported(
    tmp_path: Path, reason: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = BAD.get(reason) or {"jpg": _animation(), "txt": b"picture 1"}
    write_shard(tmp_path / "x", "0.tar", [GOOD, GOOD, bad, GOOD])
    options: dict[str, Any] = {
        "max_pixels": 5000,
        "smallest_side": 4,
        "max_bad_share": 1.0,
        "workers": workers,
    }
    quarantine = tmp_path / "bad" / "here.jsonl"
    batches = take(make_loader(str(tmp_path / "x"), quarantine=quarantine, **options), 16)
    faults = [fault for batch in batches for fault in batch.faults]
    told = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert told == [asdict(fault) for fault in faults]
    assert {(fault.reason, fault.url, fault.key) for fault in faults} == {
        (reason, str(tmp_path / "x" / "0.tar"), "002")
    }
    assert len({fault.number for fault in faults}) == 8  # once in each of 8 epochs
    assert len(rows(batches)) == 32
    assert f"bad sample ({reason}): 002" in caplog.text and faults[0].detail in caplog.text
    assert {fault.detail for fault in faults} == {told[0]["detail"]}  # the same in every process
    assert ("cannot identify" in told[0]["detail"]) == (reason == "undecodable")
    again = take(make_loader(str(tmp_path / "x"), **options, rank=1, world=2), 2, 1)
    assert {fault.detail for batch in again for fault in batch.faults} <= {told[0]["detail"]}
    assert rows(again).items() <= rows(batches).items()


def _animation() -> bytes:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_a_shard_that_ends_early_and_one_that_is_gone(shards: Callable[..., str]) -> None:
    folder = Path(shards(4, 4, 4))
    index = Index.load(str(folder), Storage())
    loader = Loader([IndexedSource(index)], Storage(), 7, 8, INPUTS, 8, 2, max_bad_share=1.0)
    (folder / "00001.tar").unlink()
    data = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(data[: len(data) // 2])
    reasons = {(fault.reason, Path(fault.url).name) for batch in take(loader, 12) for fault in batch.faults}
    assert reasons == {("missing", "00001.tar"), ("truncated", "00002.tar")}


def test_a_refused_shard_is_a_bad_one_unless_all_are(shards: Callable[..., str]) -> None:
    """S3 says 403 of what isn't there to those who may not list."""
    folder = shards(4, 4, 4)
    with WebServer(folder, True) as server:
        names = [f"/0000{n}.tar" for n in range(3)]
        index = Index.load([f"{server.url}{name}" for name in names], Storage())
        server.statuses[names[1]] = 403

        def loader(**options: Any) -> Loader:
            return Loader([IndexedSource(index)], Storage(), 7, 8, INPUTS, 8, 2, max_bad_share=1.0, **options)

        faults = [fault for batch in take(loader(), 6) for fault in batch.faults]
        assert {(fault.reason, fault.url) for fault in faults} == {("refused", f"{server.url}{names[1]}")}
        with pytest.raises(DataError, match=r"00001\.tar is not what was indexed \(refused"):
            take(loader(replace_bad_shards=False), 6)
        server.statuses |= dict.fromkeys(names, 403)
        with pytest.raises(DataError, match=r"20 others in its place are bad, .*: 403"):
            take(loader(), 1)


class Repeated:
    """A source of good samples, for `prepare`."""

    name, attribution = "test", "nobody"
    settings: dict[str, object] = {}  # noqa: RUF012
    dropped: dict[str, int] = {}  # noqa: RUF012
    splits = (TRAIN, HELD_OUT)

    def __len__(self) -> int:
        return 12

    def key(self, n: int) -> str:
        return f"{n:03d}"

    def __getitem__(self, n: int) -> Sample:
        return Sample(self.key(n), make_png(n), "png", f"picture {n}")


def test_a_corrupted_byte_is_noticed_and_a_passing_one_mended(tmp_path: Path) -> None:
    from data.prepare import prepare

    class Corrupting(Storage):
        remaining = 0

        def read(self, url: str, start: int = 0, stop: int | None = None) -> bytes:
            data = super().read(url, start, stop)
            if url.endswith(".tar") and stop is not None and self.remaining > 0:
                Corrupting.remaining -= 1
                picture = data.index(b"PNG")
                data = data[:picture] + b"png" + data[picture + 3 :]
            return data

    prepare(Repeated(), str(tmp_path), Storage(), 4)
    clean = take(make_loader(f"{tmp_path}/train"), 8)
    Corrupting.remaining = 1
    assert rows(take(make_loader(f"{tmp_path}/train", Corrupting()), 8)) == rows(clean)
    assert Corrupting.remaining == 0
    Corrupting.remaining = 2  # the second reading is damaged too
    faults = [fault for batch in take(make_loader(f"{tmp_path}/train", Corrupting()), 8) for fault in batch.faults]
    assert {fault.reason for fault in faults} == {"corrupt"}


def test_a_shard_that_is_gone_or_written_anew_is_told_apart_and_named(shards: Callable[..., str]) -> None:
    folder, others = Path(shards(4, 4, 4)), Path(shards(4, 4, 4, name="others"))
    index = Index.load(str(folder), Storage())
    (folder / "00001.tar").unlink()
    changed = (others / "00002.tar").read_bytes().replace(b"000008", b"000088")
    (folder / "00002.tar").write_bytes(changed)  # as many bytes, other headers
    loader = Loader([IndexedSource(index)], Storage(), 7, 8, INPUTS, 8, 2, max_bad_share=1.0)
    batches = take(loader, 12)
    faults = [fault for batch in batches for fault in batch.faults]
    assert {(fault.reason, Path(fault.url).name, fault.key) for fault in faults} == {
        *(("missing", "00001.tar", f"{n:06d}") for n in (4, 5, 6, 7)),
        ("changed", "00002.tar", "000008"),
    }
    again = Loader([IndexedSource(index)], Storage(), 7, 8, INPUTS, 8, 4, rank=1, world=2, max_bad_share=1.0)
    assert rows(take(again, 2)).items() <= rows(batches).items()
    strict = Loader([IndexedSource(index)], Storage(), 7, 8, INPUTS, 8, 2, replace_bad_shards=False)
    with pytest.raises(
        DataError, match=r"0000[12]\.tar is not what was indexed .* sample 00000[4-8]: .*bad_shards=replace"
    ):
        take(strict, 12)


def test_a_sample_that_claims_to_be_huge_is_left(shards: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_LARGEST_SAMPLE_BYTES", 3000)
    folder = shards(4)
    write_shard(Path(folder), "huge.tar", [{"png": bytes(5000), "txt": b"picture 1"}])
    faults = [fault for batch in take(make_loader(folder, max_bad_share=1.0), 10) for fault in batch.faults]
    assert {(fault.reason, Path(fault.url).name) for fault in faults} == {("too_many_bytes", "huge.tar")}


def test_too_many_bad_samples_are_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", "0.tar", [GOOD, GOOD, BAD["undecodable"], GOOD])
    with pytest.raises(DataError, match=r"of 64 samples are bad \(\{'undecodable': \d+\}\), above max_bad_share=0.1"):
        take(make_loader(str(tmp_path / "x"), workers=1), 100)
    write_shard(tmp_path / "y", "0.tar", [BAD["undecodable"]])
    for workers in (0, 1):
        with pytest.raises(DataError, match="sample number 0 and 20 others in its place are bad"):
            take(make_loader(str(tmp_path / "y"), workers=workers), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"global_batch": 6, "micro_batch": 4},
            "global_batch=6 is no multiple of micro_batch x world = 4 x 1",
        ),
        ({"rank": 2, "world": 2}, "rank=2"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"max_bad_share": 2.0}, "max_bad_share=2.0"),
    ],
)
def test_bad_arguments_are_named(folder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_loader(folder, **options)


def test_closing_ends_the_workers(folder: str) -> None:
    others = set(multiprocessing.active_children())  # which other tests keep
    stream = make_loader(folder, workers=2).batches()
    next(stream)
    assert len(set(multiprocessing.active_children()) - others) == 2
    stream.close()
    assert set(multiprocessing.active_children()) <= others


def test_a_signal_to_every_process_leaves_the_workers_to_the_trainer(folder: str) -> None:
    others = set(multiprocessing.active_children())  # which other tests keep
    stream = make_loader(folder, workers=1).batches()
    before = next(stream)
    [worker] = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(worker.pid, number)
    after = list(islice(stream, 10))
    assert len(rows([before, *after])) == 22
    stream.close()
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(0)"])
def test_a_program_that_never_closes_ends_with_its_workers(folder: str, ending: str) -> None:
    program = (
        "import os, sys, multiprocessing, torch\n"
        "from data.index import Index; from data.loader import Loader; from data.stream import Storage\n"
        "from data.mixture import IndexedSource\n"
        "storage = Storage()\n"
        f"index = Index.load({folder!r}, storage)\n"
        "stream = Loader([IndexedSource(index)], storage, 0, 8, {}, 2, 2, workers=2).batches()\n"
        "next(stream)\n"
        "print([child.pid for child in multiprocessing.active_children()], flush=True)\n"
        f"{ending}\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    began = time.monotonic()
    workers = json.loads(ended.stdout)
    assert len(workers) == 2
    while any(map(psutil.pid_exists, workers)) and time.monotonic() - began < 25:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, workers))


def test_a_worker_is_silent_about_a_training_process_that_was_killed_and_about_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error, told in ((ConnectionResetError(104, "reset"), False), (EOFError(), False), (ValueError("x"), True)):
        _tell_unless_abandoned(type(error), error, None)
        assert bool(capsys.readouterr().err) == told


def test_a_batch_knows_what_was_read_for_it(folder: str) -> None:
    """With the second pass over the samples, nothing: they are in the cache."""
    loader = make_loader(folder)
    batches = take(loader, 40)
    sizes = sum(os.path.getsize(path) for path in Path(folder).glob("*.tar"))
    read = [batch.traffic.bytes_read for batch in batches]
    assert read[0] > 0 and read[-1] == 0
    assert sum(read) <= sizes
    assert all(batch.traffic.retries == 0 for batch in batches)


def test_a_batch_knows_how_many_were_ready(folder: str) -> None:
    stream = make_loader(folder, workers=1, batches_ahead=3).batches()
    next(stream)
    time.sleep(1.0)  # the worker has three more by then
    assert next(stream).ready >= 1
    stream.close()
    assert [batch.ready for batch in take(make_loader(folder), 3)] == [0, 0, 0]


def test_images_lie_in_memory_in_one_way_whatever_they_were(tmp_path: Path) -> None:
    """Kernels choose by it: batches of untouched pictures and of scaled ones, mirrored too, are trained on alike."""
    for side in (8, 11):
        write_shard(tmp_path / str(side), "0.tar", [{"png": make_png(n, side), "txt": b"picture 1"} for n in range(4)])
        for workers in (0, 1):
            loader = make_loader(str(tmp_path / str(side)), workers=workers, reducing_gap=1.5)
            assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in take(loader, 2))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_next_batch_is_read_while_one_is_made(folder: str, workers: int) -> None:
    """What is read ahead is what is read next: every batch but a process's first finds its bytes in memory."""
    loader = make_loader(folder, workers=workers)
    samples = loader._samples
    assert samples.stride == loader.micro_batch * loader.world * max(workers, 1)
    first = next(loader.numbers(0))
    samples.__getitems__(first)
    samples._ahead.wait()
    following = [number + samples.stride for number in first]
    assert following == next(islice(loader.numbers(0), max(workers, 1), None))
    assert samples._following == (following, [samples.numbered.sample(number) for number in following])
