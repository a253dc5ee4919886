"""Wrong settings of what a run keeps and tells, and checkpoints of another run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import composed
from tests.training.wrong_input.refusals import Refused, Wrong, check
from training.checkpoint_files import EngineEntry, Manifest, ParameterEntry, folder_name
from training.modules import parameter_shapes

RECORDS = {
    "unknown tracker": Wrong(("tracker.mode=onlin",), "tracker.mode=onlin", "auto, online, offline, disabled"),
    "unknown protocol": Wrong(("monitor.protocol=emoji",), "monitor.protocol=emoji", "openmoji"),
    "the best by nothing": Wrong(("checkpoint.keep_best=psnr",), "checkpoint.keep_best=psnr", "such as {metric"),
    "the best by what isn't known": Wrong(
        ("checkpoint.keep_best={metric:eval/fid,mode:min}",), "checkpoint.keep_best.metric=eval/fid", "docs/metrics.md"
    ),
    "the best by what isn't measured": Wrong(
        ("checkpoint.keep_best={metric:eval/inception_frechet,mode:min}",),
        "checkpoint.keep_best.metric=eval/inception_frechet",
        "unless by monitor.measure_every",
    ),
    "the best by what is measured at other steps": Wrong(
        (
            "checkpoint.keep_best={metric:eval/efficientnet_lite0_frechet,mode:min}",
            "checkpoint.every=100",
            "monitor.protocol=openmoji",
            "monitor.measure_every=30",
        ),
        "checkpoint.every=100",
        "a multiple of monitor.measure_every=30",
    ),
    "a prompt twice": Wrong(
        ("monitor.prompts=[red heart,red heart]",), "monitor.prompts=['red heart', 'red heart']", "none of them twice"
    ),
    "a prompt that is no text": Wrong(("monitor.prompts=[7]",), "monitor.prompts=[7]", "a list of texts"),
    "a prompt for a model without captions": Wrong(
        ("monitor.prompts=[sun]", "~inputs.caption"), "monitor.prompts=['sun']", "the model's inputs are []"
    ),
    "captions with nothing": Wrong(("monitor.captions_with=['']",), "monitor.captions_with=['']", "a list of texts"),
    "looks at no caption": Wrong(("monitor.captions=0",), "monitor.captions=0", "at least 1"),
    "measured by nothing": Wrong(("monitor.measure_every=5",), "monitor.protocol=null", "needs one of conf/protocol"),
    "measured never": Wrong(
        ("monitor.protocol=openmoji", "monitor.measure_every=0"), "monitor.measure_every=0", "at least 1"
    ),
    "measured by a network without weights": Wrong(
        ("monitor.protocol=coco30k_256",), "monitor.feature_weights=null", "weights-inception-2015-12-05"
    ),
    "measured by a network that isn't there": Wrong(
        ("monitor.protocol=coco30k_256", "monitor.feature_weights=/no/inception.pth"),
        "monitor.feature_weights=/no/inception.pth",
        "no such file",
    ),
    "measured against what training doesn't know": Wrong(
        ("monitor.protocol=unconditional50k",), "monitor.protocol=unconditional50k", "its reference is file"
    ),
    "neither least nor most": Wrong(
        ("checkpoint.keep_best={metric:train/loss,mode:less}",), "checkpoint.keep_best.mode=less", "min, max"
    ),
    "checkpoints where they are": Wrong(
        ("checkpoint.upload=${run.folder}",), "checkpoint.upload=", "give a folder in a store, or null"
    ),
    "unknown protocol of the store": Wrong(
        ("checkpoint.upload=s4://a/b",), "checkpoint.upload=s4://a/b", "Check the URL's protocol"
    ),
    "no patience": Wrong(
        ("checkpoint.storage.patience_seconds=-1",), "checkpoint.storage.patience_seconds=-1", "at least 0"
    ),
}


@pytest.mark.parametrize("wrong", RECORDS.values(), ids=RECORDS.keys())
def test_wrong_setting(wrong: Wrong, base: list[str], refused: Refused) -> None:
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)


def write_checkpoint(overrides: list[str], folder: Path) -> None:
    """A checkpoint of this configuration's model, as far as one looks before training."""
    shapes = parameter_shapes(composed(overrides))
    engines = {
        engine: EngineEntry(4, {name: ParameterEntry(shape, []) for name, shape in parameters.items()})
        for engine, parameters in shapes.items()
    }
    place = folder / "checkpoints" / folder_name(4)
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(Manifest(4, 32, 2, engines, {}).to_json())


def test_checkpoint_of_another_model(
    base: list[str], tiny_autoencoder: list[str], refused: Refused, tmp_path: Path
) -> None:
    write_checkpoint(base, tmp_path / "run")
    for other in ([*base, "model.unet.channels=64"], [*tiny_autoencoder, "run.ranks=2", *base[-2:]]):
        message = refused([*other, "run.name=mine"])
        check(message, "run.name=mine", "choose another run.name")
        assert folder_name(4) in message and "of another model: parameter " in message
    with pytest.raises(pytest.fail.Exception, match="ranks were started"):
        refused([*base, "run.name=mine"])


def test_checkpoint_of_another_batch(base: list[str], refused: Refused, tmp_path: Path) -> None:
    """Its position in the samples is counted in batches."""
    write_checkpoint(base, tmp_path / "run")
    message = refused([*base, "run.name=mine", "batch.global_size=16"])
    check(message, "run.name=mine", "continue with batch.global_size=8, or choose another run.name")
    assert folder_name(4) in message and "32 images in 4 steps" in message


def test_checkpoint_of_another_optimizer(base: list[str], refused: Refused, tmp_path: Path) -> None:
    write_checkpoint(base, tmp_path / "run")
    message = refused([*base, "run.name=mine", "optimizer=lion"])
    check(message, "run.name=mine", "continue with the optimizer it was made with, or choose another run.name")
    assert folder_name(4) in message and "it keeps param, exp_avg, exp_avg_sq of each" in message
    with pytest.raises(pytest.fail.Exception, match="ranks were started"):
        refused([*base, "run.name=mine", "optimizer=adamw_8bit"])
