"""`ldm evaluate` from a run folder to its result, on the samples of shards."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.inputs.caption import Caption
from data.stream import Storage
from data.tokenizer import BertTokenizer
from evaluation import evaluate, real_images
from evaluation.data_folder import with_data_of_folder
from evaluation.errors import EvaluationError
from evaluation.heldout import HeldOut
from evaluation.protocol import Protocol
from evaluation.results import read_results
from training.compose import composed
from training.distributed import Distributed

SAMPLES = 11

INPUTS = {"caption": Caption(BertTokenizer(8))}


def protocol(captions: int = 10) -> Protocol:
    return Protocol("small", "colours", "efficientnet_lite0", captions, 0, 16, 1, 2.0, splits=2)


def held_out(colours: Path, captions: int, batch_size: int) -> HeldOut:
    return HeldOut(f"{colours}/heldout", Storage(), INPUTS, protocol(captions), batch_size, 0)


@pytest.mark.parametrize(("world", "batch_size"), [(1, 3), (2, 2), (3, 4)])
def test_a_number_means_the_same_sample_for_any_ranks_and_batches(colours: Path, world: int, batch_size: int) -> None:
    whole = next(held_out(colours, 10, 10).batches(0, 1))
    assert whole.numbers.tolist() == list(range(10))
    assert len(set(whole.captions)) == 10
    seen = []
    for rank in range(world):
        for batch in held_out(colours, 10, batch_size).batches(rank, world):
            seen += batch.numbers.tolist()
            for number, caption, image in zip(batch.numbers.tolist(), batch.captions, batch.images, strict=True):
                assert caption == whole.captions[number]
                assert torch.equal(image, whole.images[number])
    assert sorted(seen) == list(range(10))


def test_too_few_samples_are_named(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"protocol\.captions=12: .* holds 11 samples"):
        held_out(colours, 12, 4)
    with pytest.raises(DataError):
        HeldOut(str(tmp_path / "absent"), Storage(), INPUTS, protocol(), 4, 0)


def test_the_fingerprint_is_of_what_the_shards_hold(colours: Path, tmp_path: Path) -> None:
    known = held_out(colours, 10, 4).fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(colours, moved)
    assert held_out(moved, 10, 4).fingerprint == known
    tar = sorted((moved / "heldout").glob("*.tar"))[-1]
    content = tar.read_bytes()
    assert content.count(b"colour number") > 1
    tar.write_bytes(content.replace(b"colour number", b"colour NUMBER", 1))
    assert held_out(moved, 10, 4).fingerprint != known


def test_a_bad_sample_ends_a_measurement(colours: Path, tmp_path: Path) -> None:
    """Training puts another in its place; here that would be a number that looks right."""
    moved = tmp_path / "damaged"
    shutil.copytree(colours, moved)
    for tar in (moved / "heldout").glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"IHDR", b"XXXX", 1))
    with pytest.raises(EvaluationError, match=r"sample \d+ is bad \(corrupt\), and a measurement is of all"):
        list(held_out(moved, 10, 4).batches(0, 1))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm evaluate", *arguments])
    evaluate.main()
    assert not logging.getLogger("data.loader").disabled  # a command leaves the loggers of others as they are


SMALL = (
    "protocol=openmoji", "protocol.captions=4", "protocol.splits=2", "protocol.sampler_steps=1",
    "protocol.image_size=16", "batch_size=2", "data.workers=0",
)  # fmt: skip


def test_command_writes_a_result_and_the_report(
    writable_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, f"run={writable_run}", *SMALL, f"data.shards={colours}")
    (result,) = read_results(writable_run)
    assert (result.step, result.weights, result.protocol["captions"]) == (70, "ema", 4)
    assert (result.measured["generated_images"], result.measured["reference_images"]) == (4, 4)
    assert result.measured["frechet"] > 0
    output = capsys.readouterr().out
    assert f"Fréchet distance (EfficientNet-Lite0): {result.measured['frechet']:.4f}" in output
    assert (writable_run / "report.html").exists()
    content = json.loads((writable_run / "evaluation" / "openmoji-step00000070.json").read_text())
    assert content["protocol_hash"] == result.protocol_hash


def test_a_metric_is_measured_where_it_is_named(
    writable_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("psnr", "precision_recall")
    metrics = [f"+metric@protocol.metrics.{name}={name}" for name in names]
    settings = ["protocol.metrics.precision_recall.resamples=20", "+protocol.picture_file=jpeg95"]
    command(monkeypatch, f"run={writable_run}", *SMALL, f"data.shards={colours}", *metrics, *settings)
    (result,) = read_results(writable_run)
    assert list(result.measured["others"]) == ["PSNR", "Precision", "Recall"]
    assert 0 < result.measured["others"]["PSNR"]["value"] < 50
    assert set(result.protocol["metrics"]) == set(names)
    assert set(result.data) == {"samples"}
    assert "PSNR" in capsys.readouterr().out


def test_first_stage_and_kept_reference(writable_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real images are read once; the second run, without them, measures the same."""
    file, images = writable_run / "real.safetensors", writable_run / "images"
    images.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (18, 17, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{i}.png")
    settings = ["+protocol.draws=reconstructions", "+protocol.reference=file", f"reference.file={file}"]
    found = []
    for more in ([f"reference.images={images}"], []):
        command(monkeypatch, f"run={writable_run}", *SMALL, f"data.shards={colours}", *settings, *more)
        (result,) = read_results(writable_run)
        found.append(result.measured)
        assert set(result.data) == {"samples", "reference"}
    assert found[0] == found[1]
    assert (found[0]["generated_images"], found[0]["reference_images"]) == (4, 6)
    shards = [f"reference.file={writable_run / 'shards.safetensors'}", f"reference.images={colours / 'heldout'}"]
    command(monkeypatch, f"run={writable_run}", *SMALL, f"data.shards={colours}", *settings[:2], *shards)
    (result,) = read_results(writable_run)
    assert result.measured["reference_images"] == SAMPLES
    assert result.data["reference"] == result.data["samples"]  # what the shards hold is the same


def test_coco_files_are_prepared_once(tmp_path: Path) -> None:
    images = tmp_path / "val2014"
    images.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{i}.jpg")
    annotations = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
        "annotations": [{"id": i, "image_id": i, "caption": f"picture {i}"} for i in range(4)],
    }
    captions = tmp_path / "captions_val2014.json"
    captions.write_text(json.dumps(annotations))
    settings = with_data_of_folder(composed("evaluate", ["run=.", f"data.folder={tmp_path}"])).data
    alone = Distributed(0, 1, 0, torch.device("cpu"))
    url = real_images.shards(settings, Storage(), alone)
    (batch,) = HeldOut(url, Storage(), INPUTS, protocol(4), 4, 0).batches(0, 1)
    assert sorted(batch.captions) == [f"picture {i}" for i in range(4)]
    captions.unlink()
    assert real_images.shards(settings, Storage(), alone) == url


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["protocol.sampler_steps=0"], "sampler_steps is 0"),
        (["protocol=coco30k_256"], "feature_weights=None: features 'inception' need weights"),
        (["protocol=coco31k"], "choose one of coco30k_256, coco30k_512"),
        (["+protocol.reference=file"], "reference.file=null"),
        (["reference.file=x.safetensors"], "compares images with their own originals"),
        (
            ["+protocol.reference=file", "reference.file=x.safetensors"],
            "reference.file=x.safetensors: there is no such",
        ),
        (["+protocol.reference=file", "reference.file=x", "reference.images=."], "no image file"),
        (["+metric@protocol.metrics.kid=kid"], "4 real images are fewer than subset_size=1000"),
        (["+metric@protocol.metrics.lpips=lpips"], "perceptual_weights=null"),
        (["+metric@protocol.metrics.clip_score=clip_score"], "clip_weights=null"),
        (["data.captions=x.json"], "data.shards=null"),
        (["data.shards=absent"], "absent"),
    ],
)
def test_command_names_what_cannot_work(
    writable_run: Path,
    overrides: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, f"run={writable_run}", *SMALL[1:], "protocol=openmoji", *overrides)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (writable_run / "evaluation").exists()


def test_a_protocol_of_other_data_is_not_measured(
    writable_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, f"run={writable_run}", *SMALL, f"data.shards={colours}", "+protocol.data_sha256=ab")
    assert stopped.value.code == 2
    assert "and protocol openmoji is of ab; give those" in capsys.readouterr().err
    assert not (writable_run / "evaluation").exists()


def test_commands_answer_without_heavy_imports() -> None:
    program = (
        "import sys; import evaluation.evaluate, evaluation.sample, evaluation.report; "
        "print([m for m in ('torch', 'transformers', 'webdataset') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
