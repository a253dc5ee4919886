"""A checkpoint is complete or absent in a store, too, and any machine goes on from it."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
import torch
from omegaconf import OmegaConf

from data.errors import StoreUnavailable
from data.store import EmbeddedStore
from data.transfer import Transfers
from evaluation.errors import EvaluationError
from evaluation.run import load_run
from evaluation.source import load_source
from tests.data.faulty import FaultyProxy
from tests.training.conftest import OnRanks
from tests.training.ranks import Work
from tests.training.runs import composed
from tests.training.runs import train as train_run
from tests.training.test_checkpoint import names
from tests.training.test_doctor import doctor
from tests.training.test_elastic import build, train
from training.checkpoint import Checkpoints
from training.checkpoint_files import DAMAGED, MANIFEST, Manifest, Reader, folder_name
from training.checkpoint_store import CheckpointStore, run_and_checkpoint
from training.checkpoint_upload import Uploads
from training.distributed import Distributed
from training.errors import ConfigurationError
from training.fit import write_config
from training.retention import Retention
from training.upload_checks import check_upload, check_upload_settings

Environment = dict[str, str]


@pytest.fixture
def proxy(store: EmbeddedStore) -> Iterator[FaultyProxy]:
    address = urlsplit(store.endpoint_url)
    with FaultyProxy((str(address.hostname), int(address.port or 0)), {}, slow_seconds=0) as proxy:
        yield proxy


def with_keys(work: Work) -> Work:
    """A store's environment is the last argument, and holds while `work` goes on."""

    @functools.wraps(work)
    def run(*arguments: Any) -> Any:
        with mock.patch.dict(os.environ, arguments[-1]):
            return work(*arguments)

    return run


def checkpoints_of(
    ranks: Distributed, folder: Path, url: str, retention: Retention, patience: float = 60
) -> Checkpoints:
    """Those below `folder`, uploaded to `url`."""
    store = CheckpointStore(url, Transfers(patience_seconds=patience, timeout_seconds=5))
    return Checkpoints(folder / "checkpoints", ranks, retention, Uploads(store, ranks, retention))


@with_keys
def trained(ranks: Distributed, folder: Path, url: str, last: int, environment: Environment) -> dict[str, Any]:
    """A checkpoint of each step from the newest one on: the step that it was of, the losses, and what was said."""
    engine = build(2, ranks.world, seed=1)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("training")
    logger.addHandler(handler)
    checkpoints = checkpoints_of(ranks, folder, url, Retention(keep=2, keep_every=3))
    manifest = checkpoints.restore_newest({"model": engine})
    first = 0 if manifest is None else manifest.step
    losses = []
    for step in range(first, last):
        losses += train(engine, ranks, step, step + 1)
        checkpoints.save({"model": engine}, step + 1, (step + 1) * 8, {})
        checkpoints.finish()
    logger.removeHandler(handler)
    return {"first": first, "losses": losses, "lines": lines, "newest": checkpoints.newest}


def files(folder: Path) -> dict[str, bytes]:
    """All below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_store_has_what_the_disk_has_and_gives_it_back_to_any_number_of_ranks(
    tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks
) -> None:
    url = f"{store.url}/whole"
    straight = on_ranks(2, trained, tmp_path / "straight", f"{store.url}/straight", 7, store.environment)
    begun = on_ranks(2, trained, tmp_path / "run", url, 5, store.environment)
    assert begun["losses"] == straight["losses"][:5]
    assert begun["newest"]["checkpoint/uploaded"] == begun["newest"]["checkpoint/last_complete_step"] == 5
    assert begun["newest"]["checkpoint/upload_seconds"] > 0
    there = CheckpointStore(url, Transfers())
    assert there.complete() == [folder_name(step) for step in (5, 4, 3)], "retention is that of the disk"
    uploaded = {
        found.removeprefix(f"{url}/"): there.storage.read(found) for found in there.storage.list(url, below=True)
    }
    assert uploaded == files(tmp_path / "run")
    for world in (2, 1):
        shutil.rmtree(tmp_path / "run")
        again = on_ranks(world, trained, tmp_path / "run", url, 5, store.environment)
        assert (again["first"], again["losses"]) == (5, []) and again["newest"]["checkpoint/uploaded"] == 5
        assert names(tmp_path / "run" / "checkpoints") == [folder_name(5)]
    again = on_ranks(2, trained, tmp_path / "run", url, 7, store.environment)
    assert again["losses"] == straight["losses"][5:], "bit for bit"
    assert there.complete()[0] == folder_name(7)


@pytest.mark.slow
def test_the_newest_is_taken_wherever_it_is_and_the_store_gets_what_it_lacks(
    tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks
) -> None:
    url, run = f"{store.url}/newest", tmp_path / "run"
    there = CheckpointStore(url, Transfers())
    on_ranks(2, trained, run, url, 3, store.environment)
    shutil.copytree(run, tmp_path / "older")
    on_ranks(2, trained, run, url, 4, store.environment)
    here = on_ranks(2, trained, run, f"{store.url}/elsewhere", 4, store.environment)
    assert here["first"] == 4, "the disk's, as the store has none"
    assert CheckpointStore(f"{store.url}/elsewhere", Transfers()).complete() == [], "before anybody waits for it"
    of_older = on_ranks(2, trained, tmp_path / "older", url, 5, store.environment)
    assert of_older["first"] == 4, "the store's, as the disk's is older"
    assert there.complete()[0] == folder_name(5)
    there.remove(folder_name(5))
    of_older = on_ranks(2, trained, tmp_path / "older", url, 6, store.environment)
    assert of_older["first"] == 5
    assert there.complete()[:2] == [folder_name(6), folder_name(5)], "what was lost there is brought there again"


@pytest.mark.slow
@pytest.mark.parametrize("file", ["rank-00001-of-00002.safetensors", MANIFEST])
def test_a_flipped_byte_in_the_store_sends_the_run_back_to_the_checkpoint_before(
    file: str, tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks, capsys: pytest.CaptureFixture[str]
) -> None:
    url, run = f"{store.url}/flipped-{file}", tmp_path / "run"
    there = CheckpointStore(url, Transfers())
    straight = on_ranks(2, trained, run, url, 5, store.environment)
    damaged = there.place(folder_name(5), file)
    data = bytearray(there.storage.read(damaged))
    data[len(data) // 2] ^= 1
    there.storage.write(damaged, bytes(data))
    assert doctor(run=url) == doctor(checkpoint=there.place(folder_name(5))) == 1
    assert doctor(checkpoint=there.place(folder_name(4))) == 0
    said = capsys.readouterr().out
    assert f"{there.place(folder_name(5))}: DAMAGED" in said and f"{there.place(folder_name(4))}: whole" in said
    shutil.rmtree(run)
    again = on_ranks(2, trained, run, url, 4, store.environment)
    assert again["first"] == 4
    [line] = again["lines"]
    assert there.place(folder_name(5)) in line and f"going back to {folder_name(4)}" in line
    assert file in line
    assert DAMAGED in there.contents()[folder_name(5)], "it isn't fetched again"
    again = on_ranks(2, trained, run, url, 5, store.environment)
    assert (again["first"], again["losses"], again["lines"]) == (4, straight["losses"][4:], [])
    assert doctor(run=url) == 0


@pytest.mark.slow
def test_without_any_whole_checkpoint_nothing_begins_anew(
    tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks
) -> None:
    url, run = f"{store.url}/all-damaged", tmp_path / "run"
    on_ranks(1, trained, run, url, 1, store.environment)
    there = CheckpointStore(url, Transfers())
    there.storage.write(there.place(folder_name(1), "rank-00000-of-00001.safetensors"), b"")
    shutil.rmtree(run)
    with pytest.raises(RuntimeError, match=r"all checkpoints in .* are damaged"):
        on_ranks(1, trained, run, url, 2, store.environment)
    assert there.complete() == [folder_name(1)]


@with_keys
def through_an_outage(ranks: Distributed, folder: Path, url: str, environment: Environment) -> list[Any]:
    """What is raised when the second upload finds a store that refuses everything on one rank, and what is there."""
    engine = build(1, ranks.world)
    checkpoints = checkpoints_of(ranks, folder, url, Retention(keep=2), patience=0.5)
    checkpoints.save({"model": engine}, 1, 8, {})
    checkpoints.finish()
    if ranks.rank == 1:
        os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
        assert checkpoints.uploads is not None
        checkpoints.uploads.store.storage = Transfers(patience_seconds=0.5)
    checkpoints.save({"model": engine}, 2, 16, {})
    with pytest.raises(StoreUnavailable) as raised:
        while True:
            checkpoints.check()
    said = ranks.gather_objects(str(raised.value))
    os.environ.update(environment)
    again = checkpoints_of(ranks, folder, url, Retention(keep=2))
    manifest = again.restore_newest({"model": engine})
    there = again.uploads.store.complete() if again.uploads is not None and ranks.is_main else []
    again.finish()
    return [said, names(folder / "checkpoints"), there, manifest is not None and manifest.step]


def test_a_store_that_stays_down_is_raised_on_every_rank_and_the_disk_keeps_all(
    tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks
) -> None:
    url = f"{store.url}/outage"
    (mine, other), local, remote, step = on_ranks(2, through_an_outage, tmp_path, url, store.environment)
    assert mine == other
    file = f"{url}/checkpoints/{folder_name(2)}/rank-00001-of-00002.safetensors"
    for part in (folder_name(2), "rank 1: StoreUnavailable", file, "gave up after ", " attempts in ", "is whole"):
        assert part in mine
    assert local == [folder_name(1), folder_name(2)] and remote == [folder_name(1)] and step == 2
    assert CheckpointStore(url, Transfers()).complete() == [folder_name(2), folder_name(1)], "brought there after it"


@pytest.mark.slow
def test_refused_requests_are_made_again(
    tmp_path: Path, store: EmbeddedStore, proxy: FaultyProxy, on_ranks: OnRanks
) -> None:
    proxy.shares = {"refused": 0.3, "reset": 0.1}
    url = f"{store.url}/refusing"
    environment = store.environment | {"AWS_ENDPOINT_URL": proxy.url}
    on_ranks(2, trained, tmp_path / "run", url, 2, environment)
    shutil.rmtree(tmp_path / "run")
    assert on_ranks(2, trained, tmp_path / "run", url, 2, environment)["first"] == 2
    assert proxy.met["refused"] > 3


@with_keys
def while_the_store_is_slow(ranks: Distributed, folder: Path, url: str, environment: Environment) -> list[Any]:
    """What the disk and the store have while the first upload takes as long as six saves, and afterwards."""
    engine = build(1, ranks.world)
    checkpoints = checkpoints_of(ranks, folder, url, Retention(keep=1, keep_every=4))
    may_upload = threading.Event()
    put = CheckpointStore.put_files

    def slow(store: CheckpointStore, checkpoint: Path, files: list[str]) -> None:
        assert may_upload.wait(60)
        put(store, checkpoint, files)

    assert checkpoints.uploads is not None
    with mock.patch.object(CheckpointStore, "put_files", slow):
        for step in range(1, 7):
            checkpoints.save({"model": engine}, step, step * 8, {})
        checkpoints._finish_saving()
        here = names(folder / "checkpoints")
        there = checkpoints.uploads.store.complete() if ranks.is_main else []
        may_upload.set()
        checkpoints.finish()
    return [here, there]


def test_a_slow_store_does_not_hold_training_up_and_gets_the_newest(
    tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks
) -> None:
    url = f"{store.url}/slow"
    here, there = on_ranks(2, while_the_store_is_slow, tmp_path, url, store.environment)
    # 1 is under way, 4 stays for ever, 5 waited until 6 was complete.
    assert here == [folder_name(step) for step in (1, 4, 5, 6)] and there == []
    assert CheckpointStore(url, Transfers()).complete() == [folder_name(6), folder_name(4)]


@with_keys
def straight_and_from_the_store(
    ranks: Distributed, overrides: list[str], folder: Path, url: str, environment: Environment
) -> list[dict[str, float]]:
    """Rows of four steps, and of two, the loss of the machine, and two."""
    overrides = [*overrides, "checkpoint.every=2"]
    _, straight = train_run(ranks, overrides, folder / "straight", 4)
    remote = [*overrides, f"checkpoint.upload={url}"]
    train_run(ranks, remote, folder / "run", 2)
    ranks.barrier()  # all of them have read the rows
    if ranks.is_main:
        shutil.rmtree(folder / "run")
    ranks.barrier()
    _, rows = train_run(ranks, remote, folder / "run", 4)
    return straight + rows


@pytest.mark.slow
def test_four_steps_equal_two_another_machine_two_bit_for_bit(
    tiny_diffusion: list[str], tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks
) -> None:
    url = f"{store.url}/law"
    rows = on_ranks(2, straight_and_from_the_store, tiny_diffusion, tmp_path, url, store.environment)
    straight, other = rows[:5], rows[5:]
    told = ("step", "images_seen", "train/loss", "train/gradient_norm")
    assert [[row.get(key) for key in told] for row in straight] == [[row.get(key) for key in told] for row in other]
    one, two = (Reader(tmp_path / run / "checkpoints" / folder_name(4)) for run in ("straight", "run"))
    for kind in one.manifest.kinds:
        for name in one.engine("model").parameters:
            assert torch.equal(one.tensor("model", kind, name), two.tensor("model", kind, name)), f"{kind} of {name}"
    settings = [*tiny_diffusion, f"run.folder={tmp_path / 'run'}", "steps=4", "run.name=law"]
    write_config(composed(settings), tmp_path / "run")
    there = CheckpointStore(url, Transfers())
    there.put_manifest(tmp_path / "run" / "checkpoints" / folder_name(4))
    local = load_run(tmp_path / "run", "cpu").image_model.model.state_dict()
    for place in (url, there.place(folder_name(4))):
        chosen = OmegaConf.create({"run": place, "from": None, "model_weights": "ema"})
        loaded = load_source(chosen, "cpu")
        assert loaded.origin["run"] == place and loaded.origin["training_step"] == 4
        assert all(torch.equal(value, local[name]) for name, value in loaded.image_model.model.state_dict().items())
    with pytest.raises(EvaluationError, match="nothing: no whole checkpoint"):
        load_source(OmegaConf.create({"run": f"{store.url}/nothing", "from": None, "model_weights": "ema"}), "cpu")


@pytest.mark.slow
def test_another_run_s_place_is_refused(
    tiny_diffusion: list[str], tmp_path: Path, store: EmbeddedStore, on_ranks: OnRanks
) -> None:
    url = f"{store.url}/mine"
    settings = [*tiny_diffusion, f"run.folder={tmp_path}", f"checkpoint.upload={url}", "steps=4"]
    check_upload(composed([*settings, "run.name=mine"]), 0)
    there = CheckpointStore(url, Transfers())
    (tmp_path / "checkpoints" / folder_name(3)).mkdir(parents=True)
    (tmp_path / "checkpoints" / folder_name(3) / MANIFEST).write_text(Manifest(3, 24, 1, {}, {}).to_json())
    write_config(composed([*settings, "run.name=mine"]), tmp_path)
    there.put_manifest(tmp_path / "checkpoints" / folder_name(3))
    with pytest.raises(ConfigurationError, match=rf"^checkpoint.upload={url}: the run mine is there, this is other"):
        check_upload(composed([*settings, "run.name=other"]), 0)
    with pytest.raises(ConfigurationError, match=rf"^checkpoint.upload={url}: .*step-00000003 is of another task"):
        check_upload(composed([*settings, "run.name=mine"]), 2)
    check_upload(composed([*settings, "run.name=mine"]), 3)


@pytest.mark.parametrize("url", ["{folder}", "file://{folder}/../run", "https://host/x", "3"])
def test_places_that_cannot_be(url: str, tiny_diffusion: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*tiny_diffusion, f"run.folder={folder}", "steps=4", "run.name=x"]
    with pytest.raises(ConfigurationError, match=r"^checkpoint.upload="):
        check_upload_settings(composed([*settings, f"checkpoint.upload={url.format(folder=folder)}"]))
    check_upload_settings(composed([*settings, f"checkpoint.upload=file://{tmp_path}/other"]))


def test_a_run_is_told_from_its_checkpoints() -> None:
    assert run_and_checkpoint("s3://b/runs/a/") == ("s3://b/runs/a", None)
    assert run_and_checkpoint("s3://b/runs/a/checkpoints/step-00000003") == ("s3://b/runs/a", "step-00000003")
