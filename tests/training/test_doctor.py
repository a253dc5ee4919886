"""`ldm doctor` tells whole checkpoints from damaged ones, and what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.training.test_checkpoint_files import write
from training.checkpoint_files import MANIFEST
from training.doctor import in_short, run
from training.errors import ConfigurationError


def doctor(**settings: Path | str) -> int | str | None:
    """Its exit status."""
    with pytest.raises(SystemExit) as left:
        run(OmegaConf.create({"run": None, "checkpoint": None} | {k: str(v) for k, v in settings.items()}))
    return left.value.code


def test_a_whole_checkpoint_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write(tmp_path, 3, torch.arange(6.0), 2)
    assert doctor(checkpoint=checkpoint) == 0
    said = capsys.readouterr().out
    for told in ("whole", "step 3", "24 images seen", "2 ranks", "6 elements in 1 parameters after 3 updates"):
        assert told in said
    for name in ("rank-0.safetensors", "rank-1.safetensors"):
        assert f"{name}: {(checkpoint / name).stat().st_size:,} bytes, sha256 " in said
    assert "latent_scale: 0.5" in said


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_byte_is_found_wherever_it_is(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    write(folder, 1, torch.zeros(6), 3)
    file = write(folder, 2, torch.arange(6.0), 2) / "rank-1.safetensors"
    assert doctor(run=tmp_path) == 0
    data = bytearray(file.read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[place]] ^= 16
    file.write_bytes(data)
    capsys.readouterr()
    assert doctor(run=tmp_path) == 1
    said = capsys.readouterr().out
    assert f"{file} doesn't have the sha256 of its manifest" in said
    assert f"{folder / 'step-00000001'}: whole" in said


def test_a_folder_without_manifest_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "checkpoints", 1, torch.zeros(6), 3)
    torn = write(tmp_path / "checkpoints", 2, torch.zeros(6), 3)
    (torn / MANIFEST).unlink()
    assert doctor(run=tmp_path) == 0
    assert doctor(checkpoint=torn) == 1, "but it isn't a checkpoint"
    assert "no checkpoint" in capsys.readouterr().out


def test_nothing_to_examine_is_a_mistake(tmp_path: Path) -> None:
    for settings in ({"run": tmp_path}, {"checkpoint": tmp_path / "no"}, {}):
        with pytest.raises(ConfigurationError):
            run(OmegaConf.create({"run": None, "checkpoint": None} | {k: str(v) for k, v in settings.items()}))


def test_what_a_run_judges_spikes_by_is_told_in_short() -> None:
    made = [{"loss": 0.1 * number, "gradient norm": 1.0} for number in range(100)]
    told = in_short({"left_out": 2, "in_a_row": 0, "made": made})
    assert told == "left_out 2, in_a_row 0, made 100 entries, the last (loss 9.9, gradient norm 1)"
    assert [in_short(value) for value in ({}, [1, 2], 0.1234567891234, "x")] == ["none", "[1; 2]", "0.123456789", "x"]
    assert in_short("0" * 4096) == "4,096 characters"
