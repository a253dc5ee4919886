"""`ldm prepare latents`, and training on what it writes."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from data.index import Index
from data.stream import Storage
from tests.conftest import finish, ldm
from tests.training.conftest import OnRanks
from tests.training.runs import composed as composed_to_train
from tests.training.runs import train
from training import cli, compose, launch, prepare_latents
from training.build import build_loader
from training.dataset import make_ready, note_data, training_sources
from training.distributed import Distributed
from training.metrics import repeats

ALONE = Distributed(0, 1, 0, torch.device("cpu"))
UNIT_ROUNDOFF = {"fp16": 2**-11, "bf16": 2**-8}


@pytest.fixture(scope="module")
def damaged(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The squares with a picture that was changed since it was indexed."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(squares, folder, dirs_exist_ok=True)
    shard = folder / "train" / "00001.tar"
    member = Index.load(str(folder / "train"), Storage()).sample(23)[1].members["png"]
    content = bytearray(shard.read_bytes())
    content[member.offset + member.size // 2] ^= 255
    shard.write_bytes(content)
    return folder


@pytest.fixture
def overrides(tiny_diffusion: list[str], damaged: Path, tmp_path: Path) -> list[str]:
    """Latents of two sources, mirrored ones too."""
    sources = f"{{most:{{url:'{damaged}/train',weight:3}},few:{{url:'{damaged}/heldout',weight:1}}}}"
    return [
        *tiny_diffusion,
        f"data.url={damaged}",
        f"data.train={sources}",
        "data.flip=true",
        "checkpoint.every=1000",
        "steps=3",
        f"run.folder={tmp_path / 'run'}",
        f"data.latents={tmp_path / 'latents'}",
    ]


def encode(ranks: Distributed, overrides: list[str]) -> bool:
    return prepare_latents.encode(compose.composed("prepare_latents", overrides), ranks)


def prepare(on_ranks: OnRanks, world: int, overrides: list[str]) -> None:
    config = compose.composed("prepare_latents", overrides)
    prepare_latents.check(config, world)
    prepare_latents.make_ready(config)
    assert on_ranks(world, encode, overrides)
    assert prepare_latents.finished(config)


def online(overrides: list[str]) -> list[str]:
    return [override for override in overrides if not override.startswith(("data.latents=", "precision="))]


def from_latents(overrides: list[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("precision=")]


def rows_of(ranks: Distributed, overrides: list[str], folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of three steps."""
    kept = [override for override in overrides if not override.startswith(("steps=", "run.folder="))]
    return train(ranks, kept, folder, 3)[1][1:]


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "bf16"])
def test_losses_are_those_of_online_encoding_to_the_precision(
    precision: str, overrides: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    overrides = [*overrides, "task.prediction=v"]  # whose target depends on the latents, as epsilon's doesn't
    prepare(on_ranks, 2, [*overrides, f"precision={precision}"])
    ours = on_ranks(1, rows_of, from_latents(overrides), tmp_path / "ours")
    theirs = on_ranks(1, rows_of, online(overrides), tmp_path / "theirs")
    for row, other in zip(ours, theirs, strict=True):
        differing = 0
        for key, value in other.items():
            if key.startswith("train/loss"):
                assert math.isclose(row[key], value, rel_tol=UNIT_ROUNDOFF[precision]), key
                differing += row[key] != value
            if key.startswith("data/") and repeats(key):
                assert row[key] == value, key
        assert differing, "these are the same numbers: was anything stored?"


def test_batches_are_those_of_the_images(overrides: list[str], on_ranks: OnRanks) -> None:
    prepare(on_ranks, 1, overrides)
    config = composed_to_train(from_latents(overrides))
    first_stage = instantiate(config.first_stage)
    storage = Storage()
    latents = build_loader(config, training_sources(config, storage), storage, ALONE)
    images_config = composed_to_train(online(overrides))
    images = build_loader(images_config, training_sources(images_config, storage), storage, ALONE)
    reasons = []
    for step in range(10):  # an epoch, of which the damaged sample is one
        ours, theirs = latents.step(step), images.step(step)
        assert ours.captions == theirs.captions
        assert torch.equal(ours.inputs["caption"], theirs.inputs["caption"])
        assert torch.equal(ours.numbers, theirs.numbers) and torch.equal(ours.sources, theirs.sources)
        found = [(fault.reason, fault.key.rpartition("/")[2], fault.number) for fault in ours.faults]
        assert found == [(fault.reason, fault.key, fault.number) for fault in theirs.faults]
        reasons += [fault.reason for fault in theirs.faults]
        assert ours.moments is not None and theirs.moments is None
        wanted = first_stage.moments(theirs.images)
        torch.testing.assert_close(ours.moments.float(), wanted, rtol=2**-11, atol=1e-4)
    assert "corrupt" in reasons


def test_a_run_on_images_goes_on_with_their_latents_in_the_same_order_and_says_nothing(
    overrides: list[str], on_ranks: OnRanks, caplog: pytest.LogCaptureFixture
) -> None:
    """Conditions that the latents were written with are met by all of them, the bad ones too, which have no .json."""
    storage = Storage()
    overrides = [*overrides, "data.where={caption:{not_among:[a blue square]}}"]
    prepare(on_ranks, 1, overrides)
    order = []
    for settings in (online(overrides), from_latents(overrides)):
        config = composed_to_train(settings)
        make_ready(config)
        sources = training_sources(config, storage)
        note_data(sources, config, resumed=bool(order))
        loader = build_loader(config, sources, storage, ALONE)
        samples = [loader.numbered.sample(number) for number in range(100)]
        order.append([(source, entry.key.rpartition("/")[2]) for source, _, entry in samples])
    assert order[0] == order[1]
    assert "order of samples" not in caplog.text
    note_data(sources[:1], config, resumed=True)
    assert "order of samples" in caplog.text


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_stays_and_the_rest_is_the_same_on_any_number_of_ranks(
    overrides: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    latents = tmp_path / "latents"
    prepare(on_ranks, 2, overrides)
    whole = files(latents)
    stamps = {path: path.stat().st_mtime_ns for path in latents.rglob("*.tar")}
    assert len(stamps) == 4
    lost = sorted(latents.glob("most/*.tar"))[1]
    lost.unlink()
    lost.with_suffix(".json").unlink()
    (latents / "most" / "index.json").unlink()
    assert not prepare_latents.finished(compose.composed("prepare_latents", overrides))
    prepare(on_ranks, 1, overrides)
    assert files(latents) == whole
    assert {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp} == {lost}


def message_of(
    verb: list[str], overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one message of a command that starts no rank."""

    def no_ranks(*arguments: object) -> NoReturn:
        pytest.fail("ranks were started")

    monkeypatch.setattr(launch, "start_ranks", no_ranks)
    monkeypatch.setattr(sys, "argv", ["ldm", *verb, *overrides])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in err
    return err.splitlines()[-1].removeprefix("error: ")


def test_shares_together_write_what_one_job_does(overrides: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    latents, apart = tmp_path / "latents", tmp_path / "apart"
    prepare(on_ranks, 1, overrides)
    shares = [[*overrides, f"data.latents={apart}", f"share.number={number}", "share.of=2"] for number in (1, 0)]
    prepare(on_ranks, 1, shares[0])
    assert not list(apart.rglob("index.json"))
    prepare(on_ranks, 2, shares[1])
    assert {name: content for name, content in files(apart).items() if name.endswith(".tar")} == {
        name: content for name, content in files(latents).items() if name.endswith(".tar")
    }
    assert files(apart).keys() == files(latents).keys()


@pytest.mark.slow
def test_training_refuses_latents_that_do_not_fit(
    tiny_diffusion: list[str],
    first_stage_weights: Path,
    tmp_path: Path,
    on_ranks: OnRanks,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    latents = tmp_path / "latents"
    base = [*tiny_diffusion, "steps=3", f"run.folder={tmp_path / 'run'}", f"data.latents={latents}"]
    made = [*base, "first_stage.scale=0.5", "data.where={caption:{not_among:[a red square]}}"]

    def refused(verb: list[str], overrides: list[str]) -> str:
        return message_of(verb, overrides, monkeypatch, capsys)

    assert refused(["train"], made).startswith(f"data.latents={latents}: no latents are there; write them with `ldm")
    prepare_latents.make_ready(compose.composed("prepare_latents", made))
    assert "aren't finished; write them with `ldm prepare latents`" in refused(["train"], made)
    prepare(on_ranks, 1, made)

    weights = load_file(first_stage_weights)
    other = tmp_path / "other.safetensors"
    save_file({name: tensor + (name == "to_moments.bias") for name, tensor in weights.items()}, other)
    for verb in (["train"], ["prepare", "latents"]):
        for overrides, says, remedy in (
            ([f"first_stage.weights={other}"], f"first_stage.weights={other}: its weights (sha256 ", "name the file"),
            (["first_stage.scale=0.25"], "first_stage.scale=0.25: ", "made with 0.5; set that"),
            (["first_stage.scale=null"], "first_stage.scale=null: ", "made with 0.5; set that"),
            (["data.image_size=64"], "data.image_size=64: ", "made with 32; set that"),
            (["data.flip=true"], "data.flip=true: ", "made with false; set that"),
            (["data.reducing_gap=null"], "data.reducing_gap=null: ", "made with 1.5; set that"),
            (["data.where=null"], "data.where=null: ", "made with {'caption'"),
            (["data.scaled_side=48"], "data.scaled_side=48: ", "random squares can't be encoded beforehand"),
        ):
            message = refused(verb, [*made, *overrides])
            assert message.startswith(says) and remedy in message, message
    message = refused(["prepare", "latents"], [*made, "precision=bf16"])
    assert message.startswith("precision=bf16: ") and "made with fp16; set that, or have `ldm prepare" in message


def test_what_cannot_be_encoded_beforehand_is_refused(
    tiny_diffusion: list[str],
    tiny_autoencoder: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    latents = f"data.latents={tmp_path}"
    rest = ["steps=1", f"run.folder={tmp_path / 'run'}"]
    small = "+inputs.small={_target_:data.inputs.low_resolution.LowResolution,size:8}"
    identity = "first_stage.autoencoder={_target_:models.autoencoder.IdentityAutoencoder}"
    for overrides, says in (
        ([*tiny_autoencoder, latents], f"{latents}: a first stage trains on images; set it to null"),
        ([*tiny_diffusion, latents, small], f"{latents}: inputs.small is made of the image's pixels; set it to null"),
        (
            [*tiny_diffusion, latents, "~first_stage.autoencoder", f"+{identity}"],
            f"{latents}: images are their own latents; set it to null",
        ),
    ):
        for verb in (["train"], ["prepare", "latents"]):
            assert message_of(verb, [*overrides, *rest], monkeypatch, capsys) == says
    for overrides, says in (
        ([*tiny_diffusion], "data.latents=null: name the folder that the latents are to be written to"),
        ([*tiny_diffusion, latents, "precision=fp32"], "precision=fp32: choose one of fp16, bf16"),
        ([*tiny_diffusion, latents, "share.number=2"], "share.number=2: choose one of 0 ... 0, as share.of=1"),
    ):
        assert message_of(["prepare", "latents"], [*overrides, *rest], monkeypatch, capsys) == says


@pytest.mark.slow
def test_as_a_user_types_it_with_an_interruption(tiny_diffusion: list[str], squares: Path, tmp_path: Path) -> None:
    for copy in range(8):
        shutil.copy(squares / "train" / "00000.tar", tmp_path / f"{copy:03d}.tar")
    latents = tmp_path / "latents"
    settings = [*tiny_diffusion, f"data.train={tmp_path}", f"run.folder={tmp_path / 'run'}", f"data.latents={latents}"]
    settings += ["steps=1", "batch.micro_size=8", "data.workers=1"]
    process = ldm("prepare", "latents", *settings, "run.ranks=2")
    while process.poll() is None and not list(latents.glob("*.tar")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 75 and "Traceback" not in err, err
    written = {path: path.stat().st_mtime_ns for path in latents.glob("*.json") if path.name != "latents.json"}
    assert len(written) < 8
    status, _, err = finish(ldm("prepare", "latents", *settings, "run.ranks=1"))
    assert status == 0 and "160 samples in 8 shards" in err, err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in written.items())
    assert len(json.loads((latents / "index.json").read_text())["shardlist"]) == 8
    status, _, err = finish(ldm("train", *settings, "run.ranks=1"))
    assert status == 0, err
