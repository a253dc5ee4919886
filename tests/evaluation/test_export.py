"""What is exported draws the same pictures elsewhere, and is read back bit for bit."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from evaluation import export
from evaluation.diffusers_folder import PipelineParts, read_pipeline
from evaluation.first_stage import save_first_stage
from evaluation.generate import generate
from evaluation.run import LoadedRun, load_run
from evaluation.weights_file import write_run_weights
from models.interop import compvis
from models.samplers.ddim import ddim

PROMPTS, SEEDS, STEPS, GUIDANCE_SCALE = ["Red apple, ripe!", "flag of Japan"], [5, 6], 10, 3.0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are so small that a second thread costs more than it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm export", *arguments])
    export.main()


def export_to(output: Path, run: Path, format: str, *arguments: str) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_command(monkeypatch, f"run={run}", f"format={format}", f"output={output}", *arguments)
    return output


PIPELINES: dict[str, Any] = {
    "captions": diffusers.LDMTextToImagePipeline,
    "clip": diffusers.StableDiffusionPipeline,
    "class tokens": diffusers.LDMTextToImagePipeline,
    "embedded classes": diffusers.DiTPipeline,
    "unconditional": diffusers.LDMPipeline,
    "unconditional KL": diffusers.LDMPipeline,
    "pixels": diffusers.DDIMPipeline,
}
CONDITIONED = ["captions", "clip", "class tokens", "embedded classes"]
Opened = Callable[[str], tuple[LoadedRun, Path]]


@pytest.fixture(scope="module")
def opened(kinds: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A run of a kind, and its export."""

    @cache
    def made(kind: str) -> tuple[LoadedRun, Path]:
        # The last step's weights, twice the average's in this run: by these, words show.
        folder = export_to(
            tmp_path_factory.mktemp("export") / "pipeline", kinds(kind), "diffusers", "model_weights=raw"
        )
        return load_run(kinds(kind), "cpu", "raw"), folder

    return made


@pytest.fixture(scope="module")
def folder(opened: Opened) -> Path:
    return opened("captions")[1]


def inputs_of(loaded: LoadedRun, values: Sequence[Any]) -> dict[str, Tensor]:
    return {name: torch.stack([given.parse(value) for value in values]) for name, given in loaded.inputs.items()}


def drawn_here(kind: str, loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch, guidance_scale: float) -> Tensor:
    """Pictures in [0, 1], before they are rounded to bytes."""
    monkeypatch.setattr("evaluation.generate.to_uint8", lambda images: images)
    inputs = inputs_of(loaded, [3, 7] if "class" in kind else PROMPTS)
    shape = loaded.image_model.first_stage.latent_shape(loaded.image_size, loaded.image_size)
    images = generate(loaded.image_model, ddim, inputs, SEEDS, shape, STEPS, guidance_scale, 2)
    return (images + 1) / 2


def drawn_there(kind: str, pipeline: Any, loaded: LoadedRun, guidance_scale: float) -> Tensor:
    """The same by the library's pipeline, told nothing that it knows itself, from the same noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    given = {"num_inference_steps": STEPS, "generator": generators, "output_type": "np"}
    if kind == "embedded classes":
        images = pipeline([3, 7], guidance_scale=guidance_scale, **given).images
    elif loaded.inputs:
        prompts = ["3", "7"] if kind == "class tokens" else PROMPTS
        images = pipeline(prompts, guidance_scale=guidance_scale, **given).images
    else:
        images = pipeline(len(SEEDS), **given).images
    return torch.from_numpy(images).movedim(-1, 1)


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("kind", "guidance_scale"),
    [(kind, scale) for kind in PIPELINES for scale in (1.0, GUIDANCE_SCALE) if scale == 1.0 or kind in CONDITIONED],
)
def test_the_pipeline_draws_the_same_picture(
    kind: str, guidance_scale: float, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, folder = opened(kind)
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is PIPELINES[kind]
    pipeline.set_progress_bar_config(disable=True)
    theirs = drawn_there(kind, pipeline, loaded, guidance_scale)
    ours = drawn_here(kind, loaded, monkeypatch, guidance_scale)
    assert ours.std() > 0.05
    if loaded.inputs:
        other = drawn_here(kind, loaded, monkeypatch, guidance_scale - 1)
        assert (ours - other).abs().max() > 0.02  # what it is conditioned on matters
    torch.testing.assert_close(theirs, ours, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_folder_needs_none_of_our_code_and_no_network(
    kind: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no network here")

    _, folder = opened(kind)
    monkeypatch.setattr("socket.socket.connect", refuse)
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert not any(type(part).__module__.split(".")[0] in ("models", "data") for part in pipeline.components.values())
    for part in pipeline.components.values():
        assert not isinstance(part, nn.Module) or not part.training
    if kind == "captions":
        bert, missing = type(pipeline.bert).from_pretrained(folder / "bert", output_loading_info=True)
        assert not any(missing[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert not bert.to_logits.weight.any()


@pytest.mark.parametrize(("kind", "tokenizer"), [("captions", BertTokenizer), ("clip", CLIPTokenizer)])
def test_their_tokenizer_gives_our_tokens(kind: str, tokenizer: Any, opened: Opened) -> None:
    captions = ["", "Red apple, ripe!", "naïve Café — 日本の旗 \U0001f600", "a b " * 60, "[SEP] [unused1] \t\u00ad x"]
    loaded, folder = opened(kind)
    theirs = tokenizer.from_pretrained(folder / "tokenizer")(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(theirs, inputs_of(loaded, captions)["caption"])


def test_a_prompt_that_is_no_class_is_an_error(opened: Opened) -> None:
    _, folder = opened("class tokens")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    with pytest.raises(Exception, match="UNK"):
        tokenizer(["10"])


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_folder_is_read_back_bit_for_bit(kind: str, opened: Opened) -> None:
    loaded, folder = opened(kind)
    check_same(read_pipeline(folder), loaded)


@pytest.mark.parametrize("kind", PIPELINES)
def test_what_diffusers_saves_is_read_back_bit_for_bit(kind: str, opened: Opened, tmp_path: Path) -> None:
    loaded, folder = opened(kind)
    diffusers.DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    check_same(read_pipeline(tmp_path / "theirs"), loaded)


def check_same(parts: PipelineParts, loaded: LoadedRun) -> None:
    """Every weight and number, and what prompts mean."""
    assert equal(parts.model, loaded.image_model.model)
    assert equal(parts.frozen, loaded.image_model.frozen)
    assert equal(parts.first_stage, loaded.image_model.first_stage)
    assert torch.equal(parts.schedule.alpha_bar, loaded.image_model.schedule.alpha_bar)
    assert parts.image_size == loaded.image_size
    assert parts.inputs.keys() == loaded.inputs.keys()
    values = PROMPTS if "caption" in loaded.inputs else [0, 9]
    for name, given in parts.inputs.items():
        assert torch.equal(given.nothing(), loaded.inputs[name].nothing())
        assert all(torch.equal(given.parse(value), loaded.inputs[name].parse(value)) for value in values)


def test_a_file_under_published_names_is_read_back_bit_for_bit(pipeline_run: Path, tmp_path: Path) -> None:
    for weights, arguments in (("ema", []), ("raw", ["model_weights=raw"])):
        loaded = load_run(pipeline_run, "cpu", weights)
        output = export_to(tmp_path / weights, pipeline_run, "safetensors", *arguments)
        checkpoint = compvis.load(output / "model.safetensors")
        unet = {
            "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1],
            "attention_resolutions": [2], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 16,
        }  # fmt: skip
        network = {"z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 8, "num_res_blocks": 1}
        first_stage = {"embed_dim": 4, "ddconfig": {**network, "ch_mult": [1, 1, 1, 1]}}
        text = {"num_tokens": 30522, "max_seq_len": 77, "dim": 16, "depth": 1, "heads": 2, "dim_head": 8}
        transformer = compvis.below("transformer.", checkpoint.conditioner)
        assert equal(compvis.unet(unet, checkpoint.unet), loaded.image_model.model.unet)
        autoencoder = compvis.first_stage(first_stage, checkpoint.first_stage)
        assert equal(autoencoder, loaded.image_model.first_stage.autoencoder)
        assert equal(compvis.text_transformer(text, transformer), loaded.image_model.model.conditioners["caption"])
        assert checkpoint.scale_factor == loaded.image_model.first_stage.scale
        assert torch.equal(checkpoint.schedule["betas"], loaded.image_model.schedule.betas.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs.caption.tokenizer.length": 24}, "inputs.caption has 24 tokens"),
        ({"first_stage.autoencoder.patch_size": 2}, "patch_size=2"),
    ],
)
def test_what_the_pipeline_would_run_otherwise_is_named(
    pipeline_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    config = OmegaConf.load(pipeline_run / "config.yaml")
    for key, value in change.items():
        OmegaConf.update(config, key, value, force_add=True)
    config.first_stage.weights = str(tmp_path / "first_stage.safetensors")
    run = tmp_path / "run"
    shutil.copytree(pipeline_run, run)
    OmegaConf.save(config, run / "config.yaml")
    save_first_stage(instantiate(config.first_stage.autoencoder).state_dict(), tmp_path / "first_stage.safetensors")
    with pytest.raises(SystemExit) as stopped:
        run_command(monkeypatch, f"run={run}", "format=diffusers", f"output={tmp_path / 'out'}")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out*"))


def test_nothing_is_left_of_an_export_that_fails(
    pipeline_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("evaluation.diffusers_folder.save_file", fail)
    with pytest.raises(SystemExit):
        run_command(monkeypatch, f"run={pipeline_run}", "format=diffusers", f"output={tmp_path / 'out'}")
    assert "no space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wrong_format_and_a_taken_output_are_named(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["format=onnx", f"output={tmp_path / 'new'}"], "format=onnx: choose one of diffusers, safetensors"),
        (["format=safetensors", f"output={tmp_path}"], "it exists"),
    ):
        with pytest.raises(SystemExit):
            run_command(monkeypatch, f"run={tiny_run}", *arguments)
        assert message in capsys.readouterr().err


def test_a_folder_of_something_else_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json: not a readable"):
        read_pipeline(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: not a readable"):
        read_pipeline(other)
    (other / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="holds a FluxPipeline; only LDMTextToImagePipeline, StableDiffusionPipeline"):
        read_pipeline(other)


def test_the_command_writes_a_run_s_weights_alone(tiny_run: Path, tmp_path: Path) -> None:
    written = export_to(tmp_path / "out", tiny_run, "weights") / "weights.safetensors"
    write_run_weights(str(tiny_run), "ema", tmp_path / "weights.safetensors")
    assert list(written.parent.iterdir()) == [written]
    assert written.read_bytes() == (tmp_path / "weights.safetensors").read_bytes()
