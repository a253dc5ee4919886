"""A run's weights in one file: all of them, of any task, within little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evaluation.errors import EvaluationError
from evaluation.run import load_run
from evaluation.weights_file import write_run_weights
from tests.evaluation.conftest import write_checkpoint
from tests.resident import resident

TENSORS, ELEMENTS = 40, 1 << 20
CONSTANT_BYTES = 24 << 20
OPEN_BYTES = 8 << 20


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_file_holds_what_the_run_s_model_has(weights: str, tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_run_weights(str(tiny_run), weights, path)
    loaded = load_run(tiny_run, "cpu", weights)
    wanted, found = loaded.image_model.model.state_dict(), load_file(path)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"step": str(loaded.step), "weights": "param" if weights == "raw" else weights}


def test_what_a_run_lacks_is_named(tiny_run: Path, tmp_path: Path) -> None:
    for run, weights, message in (
        (tmp_path, "ema", "no complete checkpoint"),
        (tiny_run, "long", "has these: raw, ema"),
    ):
        with pytest.raises(EvaluationError, match=message):
            write_run_weights(str(run), weights, tmp_path / "weights.safetensors")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000003"
    write_checkpoint(folder, {"good": torch.ones(2), "bad": torch.tensor([1.0, torch.inf])}, 1.0)
    with pytest.raises(EvaluationError, match="infinite numbers, or NaN, in bad"):
        write_run_weights(str(tmp_path), "ema", tmp_path / "weights.safetensors")


def test_memory_is_that_of_the_largest_tensor_and_a_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 160 MiB in forty tensors. What is read of mapped files stays for a while: a GiB, and here less."""
    monkeypatch.setattr("training.checkpoint_files.OPEN_BYTES", OPEN_BYTES)
    parameters = {f"layer.{number}": torch.full((ELEMENTS,), float(number)) for number in range(TENSORS)}
    write_checkpoint(tmp_path / "checkpoints" / "step-00000003", parameters, 1.0)
    write_checkpoint(tmp_path / "small" / "checkpoints" / "step-00000003", {"layer": torch.ones(2)}, 1.0)
    write_run_weights(str(tmp_path / "small"), "ema", tmp_path / "weights.safetensors")  # brings in what it imports
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    write_run_weights(str(tmp_path), "ema", tmp_path / "weights.safetensors")
    taken, largest = resident("VmHWM") - before, 4 * ELEMENTS
    assert taken < 2 * largest + OPEN_BYTES + CONSTANT_BYTES < TENSORS * largest / 3, f"{taken:,} bytes"
    found = load_file(tmp_path / "weights.safetensors")
    assert len(found) == TENSORS and all(torch.equal(value, parameters[name] / 2) for name, value in found.items())
