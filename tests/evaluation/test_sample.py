"""Laws of sampling, and the command `ldm sample`."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation import sample
from evaluation.errors import EvaluationError
from evaluation.generate import generate
from evaluation.run import LoadedRun, load_run
from models.samplers import Sampler
from models.samplers.ddim import ddim
from models.samplers.ddpm import ddpm
from models.samplers.dpm_solver import dpm_solver
from models.samplers.plms import plms
from models.unet import UNet


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run, "cpu", "raw")


PROMPTS = ["red apple", "flag of Japan", "a cat"]


def draw(
    loaded: LoadedRun,
    prompts: list[str],
    seeds: list[int],
    batch_size: int = 8,
    guidance_scale: float = 2.0,
    sampler: Sampler = ddim,
    steps: int = 3,
) -> Tensor:
    inputs = {"caption": torch.stack([loaded.inputs["caption"].parse(prompt) for prompt in prompts])}
    shape = loaded.image_model.first_stage.latent_shape(16, 16)
    return generate(loaded.image_model, sampler, inputs, seeds, shape, steps, guidance_scale, batch_size)


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding: a batch of another size may sum in another order."""
    return int((a.int() - b.int()).abs().max()) <= 1


def test_pictures_are_bytes_and_depend_on_words_and_seed(loaded: LoadedRun) -> None:
    images = draw(loaded, ["red apple", "red apple", "a cat"], [5, 6, 5])
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert not close(images[0], images[1])
    assert not close(images[0], images[2])


@pytest.mark.parametrize("sampler", [ddim, ddpm, dpm_solver, plms])
def test_a_picture_is_the_same_in_any_batch(loaded: LoadedRun, sampler: Sampler) -> None:
    together = draw(loaded, PROMPTS, [1, 2, 3], sampler=sampler)
    for batch_size in (1, 2):
        assert close(together, draw(loaded, PROMPTS, [1, 2, 3], batch_size, sampler=sampler))
    assert close(together[2:], draw(loaded, PROMPTS[2:], [3], sampler=sampler))
    if sampler is not ddim:
        assert not close(together, draw(loaded, PROMPTS, [1, 2, 3]))


def test_guidance_scale_1_is_the_conditional_model_and_0_forgets_the_words(loaded: LoadedRun) -> None:
    conditional = draw(loaded, PROMPTS[:2], [1, 1], guidance_scale=1.0)
    assert close(conditional, draw(loaded, PROMPTS[:2], [1, 1], guidance_scale=1.0 + 1e-6))
    forgetful = draw(loaded, PROMPTS[:2], [1, 1], guidance_scale=0.0)
    assert close(forgetful[0], forgetful[1])
    assert not close(conditional[0], conditional[1])


def test_the_models_mode_and_torchs_generator_are_left_alone(loaded: LoadedRun) -> None:
    loaded.image_model.model.train()
    state = torch.random.get_rng_state()
    draw(loaded, PROMPTS[:1], [0])
    assert loaded.image_model.model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    loaded.image_model.model.eval()


def test_unusable_requests_are_named(loaded: LoadedRun) -> None:
    with pytest.raises(ValueError, match=r"rows of inputs: \{'caption': 2\}, and 1 seeds"):
        draw(loaded, PROMPTS[:2], [1])
    with pytest.raises(ValueError, match="batch_size is 0"):
        draw(loaded, PROMPTS[:1], [1], 0)
    with pytest.raises(ValueError, match="steps=2000"):
        draw(loaded, PROMPTS[:1], [1], steps=2000)


@pytest.mark.parametrize("sampler", [ddim, ddpm, dpm_solver, plms])
def test_numbers_that_leave_the_finite_are_named_with_sampler_step_and_seed(
    loaded: LoadedRun, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two samples breaks in the third evaluation of the denoiser."""
    calls = []
    forward = UNet.forward

    def breaking(unet: UNet, z_t: Tensor, t: Tensor, context: Tensor, labels: None) -> Tensor:
        calls.append(int(t[0]))
        output = forward(unet, z_t, t, context, labels)
        if len(calls) == 3:
            output[1, 0, 0, 0] = float("inf")
        return output

    monkeypatch.setattr(UNet, "forward", breaking)
    with pytest.raises(EvaluationError) as caught:
        draw(loaded, PROMPTS[:2], [7, 9], guidance_scale=1.0, sampler=sampler, steps=5)
    message = str(caught.value)
    assert message.startswith(f"sampler {sampler.__name__}: infinite numbers, or none at all (NaN), in evaluation 3 of")  # type: ignore[attr-defined]
    assert f"at timestep {calls[2]}, for seeds [9]; " in message


def test_a_guidance_scale_that_is_no_number_is_named(loaded: LoadedRun) -> None:
    with pytest.raises(EvaluationError, match=r"in evaluation 1 of 3.*for seeds \[1\]"):
        draw(loaded, PROMPTS[:1], [1], guidance_scale=float("nan"))


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm sample", *arguments])
    sample.main()


def test_command_writes_pictures_that_name_their_settings(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = 'prompts=["Red apple, ripe!", "日本"]'
    run_command(monkeypatch, f"run={tiny_run}", prompts, "images=2", "steps=2", f"output={tmp_path}", "seed=4")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "red-apple-ripe-seed4.png", "red-apple-ripe-seed5.png", "picture-seed4.png", "picture-seed5.png", "grid.png",
    }  # fmt: skip
    assert told(tmp_path / "grid.png")["pictures"][3] == {"caption": "日本", "seed": 5}
    settings = told(tmp_path / "red-apple-ripe-seed5.png")
    assert settings["image_size"] == 16
    assert settings["caption"] == "Red apple, ripe!"
    assert (settings["seed"], settings["steps"], settings["training_step"]) == (5, 2, 70)
    assert (settings["sampler"], settings["eta"]) == ("ddim", 0.0)


def told(path: Path) -> dict[str, Any]:
    """The settings that a picture carries."""
    with Image.open(path) as image:
        settings: dict[str, Any] = json.loads(image.text["Parameters"])  # type: ignore[attr-defined]
    return settings


@pytest.mark.parametrize("standard_input", [False, True])
def test_prompts_are_the_lines_of_a_file_or_of_standard_input(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standard_input: bool
) -> None:
    text = "red apple\n\n  日本 \n中国\n"
    file = tmp_path / "prompts.txt"
    file.write_text(text, encoding="utf-8")
    if standard_input:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    given = "-" if standard_input else str(file)
    run_command(monkeypatch, f"run={tiny_run}", f"prompts_file={given}", "steps=1", f"output={tmp_path / 'out'}")
    found = {path.name: told(path) for path in (tmp_path / "out").iterdir()}
    assert [row["caption"] for row in found.pop("grid.png")["pictures"]] == ["red apple", "日本", "中国"]
    # Words without a letter of Latin are no file name, and no picture takes another's place.
    assert {name: settings["caption"] for name, settings in found.items()} == {
        "red-apple-seed0.png": "red apple", "picture-seed0.png": "日本", "picture-seed0-2.png": "中国",
    }  # fmt: skip


def test_a_negative_prompt_is_what_guidance_leads_away_from(loaded: LoadedRun) -> None:
    shape = loaded.image_model.first_stage.latent_shape(16, 16)
    parse = loaded.inputs["caption"].parse
    inputs = {"caption": parse("a cat")[None]}

    def away_from(words: str | None, scale: float) -> Tensor:
        negative = None if words is None else {"caption": parse(words)}
        return generate(loaded.image_model, ddim, inputs, [1], shape, 3, scale, 1, negative=negative)

    assert torch.equal(away_from("", 2.0), away_from(None, 2.0))
    assert not close(away_from("a red apple", 2.0), away_from(None, 2.0))
    # Led away from its own words, it goes nowhere: eps_u = eps_c at any scale.
    assert close(away_from("a cat", 5.0), away_from(None, 1.0))
    # At scale 0 only what it is led away from is left.
    assert close(away_from("a red apple", 0.0), draw(loaded, ["a red apple"], [1], guidance_scale=1.0))


def test_a_negative_prompt_is_told_in_the_picture(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(
        monkeypatch, f"run={tiny_run}", "prompts=[a]", "negative_prompt=red", "steps=1", f"output={tmp_path}"
    )  # fmt: skip
    assert told(tmp_path / "a-seed0.png")["negative_prompt"] == "red"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts=[]", "at least one"),
        ("inputs.label=[1]", "conditioned on ['caption']"),
        ("image_size=15", "divisible"),
        ("steps=0", "steps=0"),
        ("prompts_file=a.txt", "give one of them"),
        (("prompts=null", "prompts_file=absent.txt"), "absent.txt"),
        (("prompts=null", "prompts_file=/dev/null"), "it has no prompt"),
        (("negative_prompt=red", "guidance_scale=1"), "guidance_scale=1 is without guidance"),
    ],
)
def test_command_names_what_cannot_work(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str | tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        overrides = [override] if isinstance(override, str) else override
        run_command(monkeypatch, f"run={tiny_run}", "prompts=[a]", "steps=1", *overrides)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_pictures_larger_than_those_of_training_are_decoded_in_tiles(loaded: LoadedRun) -> None:
    """Twice as wide and high; the tiles' picture is the whole one but for what group norms see of it."""
    first_stage = loaded.image_model.first_stage
    inputs = {"caption": torch.stack([loaded.inputs["caption"].parse("a cat")])}
    shape = first_stage.latent_shape(64, 64)
    whole, tiled = (generate(loaded.image_model, ddim, inputs, [0], shape, 2, 1.0, 1, tile=tile) for tile in (None, 16))
    assert whole.shape == tiled.shape == (1, 3, 64, 64)
    assert not torch.equal(whole, tiled)
    assert (whole.float() - tiled.float()).abs().mean() < 16
    assert torch.equal(whole, generate(loaded.image_model, ddim, inputs, [0], shape, 2, 1.0, 1, tile=32))


MEMORY = """
import sys
import torch
from hydra import compose, initialize_config_dir
from evaluation.sample import run
from tests.resident import resident
from training.compose import CONFIG_FOLDER

def peak():
    return resident("VmHWM") / 2**20

def draw(*settings):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        run(compose("sample", [*sys.argv[1:], "prompts=[a]", "steps=2", *settings]))

torch.set_num_threads(1)
draw("image_size=64")
start = peak()
draw("image_size=1024", "tile=32")
tiled = peak()
draw("image_size=1024")
print(tiled - start, peak() - start)
"""


@pytest.mark.slow
def test_a_megapixel_takes_the_memory_that_generate_states(pipeline_run: Path, tmp_path: Path) -> None:
    """1024 x 1024 pixels by the whole command: latents of 128 x 128, 4,096 positions in the UNet's attention.

    MiB, all float32: the UNet's 32 channels of two latents, for guidance, are a map of 4. Its last level but one holds
    the stem's and a block's output, what came from below and its concatenation with the latter (2 maps), this
    normalised (2), activated (2) and as the convolution orders it (2), and the output: 12 maps. The decoder's 8
    channels of a tile's 256 x 256 pixels are a map of 2, and as many are held. Attention's weights would take 256.
    """
    denoiser_pass, tile, image = 12 * 4, 12 * 2, 12
    rest = 8  # the result, the picture's file and the grid's
    # Else glibc keeps freed blocks of up to 32 MiB, and what is measured is how they lie.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEMORY, f"run={pipeline_run}", f"output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=environment)
    assert Image.open(tmp_path / "a-seed0.png").size == (1024, 1024)
    tiled, whole = map(float, done.stdout.splitlines()[-1].split())
    assert tiled < max(denoiser_pass, tile + 2 * image) + rest, f"{tiled:.0f} MiB"
    assert whole > 2 * tiled, f"undivided it takes {whole:.0f} MiB: what is measured must see the difference"
    assert whole < 512, f"{whole:.0f} MiB: the decoder's attention weights of 16,384 positions alone would take 1,024"
