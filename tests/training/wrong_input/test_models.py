"""Wrong settings of models, first stages, and what conditions them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.wrong_input.refusals import Refused, Wrong, check

IDENTITY = "{_target_: models.autoencoder.IdentityAutoencoder}"
IN_PIXELS = ("model.unet.in_channels=3", "model.unet.out_channels=3")

MODELS = {
    "unknown block": Wrong(
        ("model.unet.activation_checkpointing=[down.9]",),
        "model.unet=models.unet.UNet: activation_checkpointing has down.9",
        "middle.0",
    ),
    "no list of blocks": Wrong(
        ("model.unet.activation_checkpointing=down",), "model.unet=models.unet.UNet: ", "a list of names such as [down]"
    ),
    "image size": Wrong(("data.image_size=30",), "data.image_size=30", "first stage's f=4 x the UNet's stride 2"),
    "heads": Wrong(("model.unet.heads=5",), "model.unet=models.unet.UNet: heads=5", "choose a divisor"),
    "latent channels": Wrong(("model.unet.in_channels=3",), "model.unet.in_channels=3", "must be 4"),
    "context width": Wrong(
        ("model.unet.context_width=48",), "model.unet.context_width=48", "model.conditioners.caption"
    ),
    "no context": Wrong(
        ("~model.conditioners.caption",), "model.unet.context_width=32", "it must be null, or a conditioner"
    ),
    "tokens": Wrong(
        ("inputs.caption.tokenizer.length=12",), "inputs.caption=12 tokens", "model.conditioners.caption reads 20"
    ),
    "no input": Wrong(
        ("~inputs.caption", "~task.dropout.caption"), "model.conditioners.caption=caption", "add it there"
    ),
    "dropout of nothing": Wrong(("+task.dropout.label=0.1",), "task.dropout.label=0.1", "inputs has ['caption']"),
    "a share of dropout": Wrong(("task.dropout.caption=2",), "task.dropout.caption=2", "from 0 to 1"),
    "labels": Wrong(("+model.unet.classes=10",), "model.unet.classes=10", "no conditioner gives any"),
    "unknown first stage": Wrong(
        ("+autoencoder@first_stage.autoencoder=kl_f9",), "autoencoder@first_stage.autoencoder=kl_f9", "kl_f8"
    ),
    "an identity with weights": Wrong(
        ("~first_stage.autoencoder", f"+first_stage.autoencoder={IDENTITY}", *IN_PIXELS),
        "first_stage.weights=",
        "set it to null",
    ),
    "no first stage": Wrong(("first_stage.weights=null",), "first_stage.weights=null", "give the path"),
    "first stage elsewhere": Wrong(("first_stage.weights=/no/f.st",), "first_stage.weights=/no/f.st", "give the path"),
}


@pytest.mark.parametrize("wrong", MODELS.values(), ids=MODELS.keys())
def test_wrong_setting(wrong: Wrong, base: list[str], refused: Refused) -> None:
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)


def test_first_stage_of_another_model(base: list[str], refused: Refused, tmp_path: Path) -> None:
    message = refused([*base, "first_stage.autoencoder.channels=32"])
    check(message, "first_stage.weights=", "make the two agree")
    assert "(48, 16, 3, 3)" in message and "(48, 32, 3, 3)" in message
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors here")
    check(refused([*base, f"first_stage.weights={text}"]), f"first_stage.weights={text}", "give the path")


FIRST_STAGES = {
    "unknown reconstruction": Wrong(
        ("task.reconstruction=l2",), "task.reconstruction=l2", "choose one of likelihood, mean"
    ),
    "a negative weight": Wrong(("task.regulariser_weight=-1",), "task.regulariser_weight=-1", "at least 0"),
    "an adversary before the start": Wrong(("task.adversary_start=-1",), "task.adversary_start=-1", "at least 0"),
    "no perceptual weights": Wrong(
        ("task.perceptual_weights=/no/vgg16.pth",), "task.perceptual_weights=/no/vgg16.pth", "or null"
    ),
    "larger pictures to look at": Wrong(
        ("monitor.image_size=50",), "monitor.image_size=50", "first stage's f = 4, or null for data.image_size"
    ),
    "codes of nothing": Wrong(
        ("+task.revive_codes_every=5",), "task.revive_codes_every=5", "the model has no codebook; set it to null"
    ),
    "half an update": Wrong(("loss_spike.action=skip",), "loss_spike.action=skip", "set it to null"),
    "the best by what isn't measured then": Wrong(
        ("checkpoint.keep_best={metric:eval/psnr,mode:max}", "checkpoint.every=1500"),
        "checkpoint.every=1500",
        "a multiple of monitor.every=1000",
    ),
    "nothing to train": Wrong(
        ("~model", f"+model={IDENTITY}"), "model=models.autoencoder.IdentityAutoencoder", "AutoencoderVQ"
    ),
}


@pytest.mark.parametrize("wrong", FIRST_STAGES.values(), ids=FIRST_STAGES.keys())
def test_wrong_setting_of_a_first_stage(
    wrong: Wrong, tiny_autoencoder: list[str], refused: Refused, tmp_path: Path
) -> None:
    base = [*tiny_autoencoder, "run.ranks=2", "steps=4", f"run.folder={tmp_path / 'run'}"]
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)


CLASSIFIERS = {
    "no label": Wrong(("~inputs.label",), "inputs.label=null", "add it there"),
    "other classes": Wrong(("model.classes=5",), "model.classes=5", "it must be 4: the classes of inputs.label"),
    "other channels": Wrong(("model.in_channels=3",), "model.in_channels=3", "it must be 4: the channels of"),
    "image size": Wrong(("data.image_size=36",), "data.image_size=36", "f=4 x the classifier's stride 2 = 8"),
    "unknown pool": Wrong(("model.pool=max",), "model=models.noisy_classifier.NoisyClassifier: ", "mean, attention"),
}


@pytest.mark.parametrize("wrong", CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def test_wrong_setting_of_a_classifier(
    wrong: Wrong, tiny_classifier: list[str], refused: Refused, tmp_path: Path
) -> None:
    base = [*tiny_classifier, "run.ranks=2", "steps=4", f"run.folder={tmp_path / 'run'}"]
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)
