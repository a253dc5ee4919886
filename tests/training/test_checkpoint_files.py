"""A checkpoint is whole or absent."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training import checkpoint_files
from training.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    EngineEntry,
    FileEntry,
    Fragment,
    Manifest,
    ParameterEntry,
    Reader,
    check_same_parameters,
    folder_name,
    load_manifest,
    newest_complete,
    newest_readable,
    problems,
    sha256_of,
    tensor_key,
)


def write(folder: Path, step: int, values: torch.Tensor, cut: int) -> Path:
    """A checkpoint of one parameter of shape [2, 3] in two files, cut at `cut`."""
    checkpoint = folder / folder_name(step)
    checkpoint.mkdir(parents=True)
    files = {}
    fragments = []
    for number, (start, stop) in enumerate([(0, cut), (cut, 6)]):
        name = f"rank-{number}.safetensors"
        save_file({tensor_key("model", "param", "w"): values[start:stop].clone()}, checkpoint / name)
        files[name] = FileEntry((checkpoint / name).stat().st_size, sha256_of(checkpoint / name))
        fragments.append(Fragment(name, start, stop))
    engines = {"model": EngineEntry(step, {"w": ParameterEntry([2, 3], fragments)})}
    manifest = Manifest(step, step * 8, 2, engines, files, {"latent_scale": 0.5})
    (checkpoint / MANIFEST).write_text(manifest.to_json())
    return checkpoint


@pytest.mark.parametrize("cut", range(7))
def test_fragments_join_wherever_they_are_cut(tmp_path: Path, cut: int) -> None:
    values = torch.arange(6.0)
    reader = Reader(write(tmp_path, 3, values, cut))
    assert torch.equal(reader.tensor("model", "param", "w"), values.reshape(2, 3))
    assert torch.equal(reader.interval("model", "param", "w", 1, 5), values[1:5])


def test_manifest_survives_its_text(tmp_path: Path) -> None:
    manifest = Reader(write(tmp_path, 3, torch.arange(6.0), 2)).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    first = write(tmp_path, 1, torch.zeros(6), 3)
    second = write(tmp_path, 2, torch.ones(6), 3)
    assert newest_complete(tmp_path) == second
    third = write(tmp_path, 3, torch.ones(6), 3)
    (third / MANIFEST).unlink()
    assert newest_complete(tmp_path) == second, "without a manifest there is no checkpoint"
    shard = second / "rank-1.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "sha256" in problems(second)[0]
    assert newest_complete(tmp_path) == first, "a flipped bit is found"
    (first / MANIFEST).write_text("{")
    assert newest_complete(tmp_path) is None


def test_another_model_is_named(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1, torch.zeros(6), 3)
    manifest = Reader(checkpoint).manifest
    check_same_parameters(manifest, {"model": {"w": [2, 3]}}, checkpoint)
    for shapes in ({"model": {"w": [3, 2]}}, {"model": {"v": [2, 3]}}, {"model": {}}, {"other": {}}):
        with pytest.raises(CheckpointError, match="another"):
            check_same_parameters(manifest, shapes, checkpoint)


def test_a_missing_interval_is_an_error(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1, torch.zeros(6), 3)
    manifest = load_manifest(checkpoint)
    fragments = manifest.engines["model"].parameters["w"].fragments
    fragments[1] = dataclasses.replace(fragments[1], stop=5)
    (checkpoint / MANIFEST).write_text(manifest.to_json())
    with pytest.raises(CheckpointError, match="only 5 elements"):
        Reader(checkpoint).tensor("model", "param", "w")


def test_no_byte_of_a_manifest_may_change(tmp_path: Path) -> None:
    write(tmp_path, 1, torch.zeros(6), 3)
    whole = load_manifest(write(tmp_path, 2, torch.zeros(6), 3))
    path = tmp_path / folder_name(2) / MANIFEST
    data = path.read_bytes()
    for place, byte in enumerate(data):
        path.write_bytes(data[:place] + bytes([byte ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="can't be read"):
            load_manifest(path.parent)
        found = newest_readable(tmp_path)
        assert found is not None and found[0].name == folder_name(1)
    path.write_bytes(data)
    assert newest_readable(tmp_path) == (path.parent, whole)


def test_manifests_without_a_checksum_of_their_own_are_still_read(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, 1, torch.zeros(6), 3))
    raw = json.loads(manifest.to_json()) | {"format": 1}
    del raw["sha256"]
    assert dataclasses.replace(manifest, format=1) == dataclasses.replace(Manifest.from_json(json.dumps(raw)), format=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_checking_is_shown_on_a_terminal_by_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "BAR_AFTER_SECONDS", 0)
    checkpoint = write(tmp_path, 3, torch.arange(6.0), 2)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    for parts, stderr, shown in ((1, Terminal(), True), (2, Terminal(), True), (2, io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert not [problem for part in range(parts) for problem in problems(checkpoint, part, parts)]
        assert ("checking step-00000003: 100%" in stderr.getvalue()) == shown
        assert stderr.getvalue().count("checking step-00000003: 100%") <= 1
        assert (f"{size}/{size}" in stderr.getvalue()) == (shown and parts == 1)


def test_a_checksum_tells_the_bytes_that_it_has_seen(tmp_path: Path) -> None:
    content = bytes(3 * checkpoint_files.DIGEST_BYTES + 5)
    (tmp_path / "file").write_bytes(content)
    seen: list[int] = []
    assert sha256_of(tmp_path / "file", seen.append) == hashlib.sha256(content).hexdigest()
    assert len(seen) == 4 and sum(seen) == len(content)
