"""A classifier of noisy latents learns, and leads a model's samples to a class: all by the entry points of a user."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import sample
from evaluation.run import load_classifier, load_run
from tests.training.conftest import OnRanks
from tests.training.runs import composed
from training.distributed import Distributed
from training.fit import train_and_report

WANTED = 2  # blue


def work(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains by these overrides in `folder`; returns whether it finished."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"finished": train_and_report(composed([*overrides, f"run.folder={folder}", "run.name=test"]), ranks)}


@pytest.fixture(scope="module")
def trained(
    tiny_classifier: list[str], tiny_diffusion: list[str], on_ranks: OnRanks, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A classifier of the squares' colours, and a diffusion model of the same latents without guidance of its own."""
    folder = tmp_path_factory.mktemp("guided")
    longer = ["steps=80", "batch.global_size=16", "batch.micro_size=16"]
    assert on_ranks(1, work, [*tiny_classifier, *longer], folder / "classifier")["finished"]
    with_demo_s_first_stage = [override for override in tiny_diffusion if not override.startswith("first_stage.")]
    # The first batch is the one that the classifier's latent scale is of.
    short = ["steps=2", "batch.global_size=16", "batch.micro_size=16"]
    assert on_ranks(1, work, [*with_demo_s_first_stage, *short], folder / "diffusion")["finished"]
    return folder / "classifier", folder / "diffusion"


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_learns_colours_better_where_there_is_less_noise(trained: tuple[Path, Path]) -> None:
    rows = rows_of(trained[0])
    first, last = rows[1:11], rows[-15:]
    assert first[0]["train/loss"] == pytest.approx(np.log(4), abs=1e-4), "it begins by holding all for equally likely"
    assert np.mean([row["train/loss"] for row in last]) < 0.9 * np.mean([row["train/loss"] for row in first])
    clean, noisy = (
        np.mean([row[key] for row in rows[-30:] for k in deciles if (key := f"train/accuracy_decile_{k}") in row])
        for deciles in (range(3), range(8, 10))
    )
    assert clean > 0.4 and clean > noisy + 0.1, "a guess is right in a quarter"
    assert {"eval/loss", "eval/accuracy"} <= rows[-1].keys(), "held-out samples are looked at in the end"
    assert (trained[0] / "report.html").exists()


def probabilities(runs: tuple[Path, Path], pictures: Path) -> torch.Tensor:
    """What the classifier holds of drawn pictures at almost no noise: log p of each class, by rows."""
    found = load_classifier(runs[0], "cpu")
    first_stage = load_run(runs[1], "cpu").image_model.first_stage
    images = [np.array(Image.open(path)) for path in sorted(pictures.glob("*-seed*.png"))]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    z_0 = first_stage.encode(batch, torch.zeros(len(batch), *first_stage.latent_shape(32, 32)))
    with torch.no_grad():
        return found.model(z_0, torch.zeros(len(batch), dtype=torch.int64)).log_softmax(1)


@pytest.mark.slow
def test_it_leads_samples_to_the_wanted_class(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["ldm sample", f"run={trained[1]}", "prompts=[a square]", "images=8", "steps=10", "guidance_scale=1"]
    found = []
    for scale in (0, 10, 40):
        guide = ["guide=classifier", f"guide.run={trained[0]}", f"guide.labels={WANTED}", f"guide.scale={scale}"]
        monkeypatch.setattr(sys, "argv", [*common, *guide, f"output={tmp_path / str(scale)}"])
        sample.main()
        found.append(probabilities(trained, tmp_path / str(scale))[:, WANTED].mean().item())
    assert found[0] < found[1] < found[2], found


@pytest.mark.slow
def test_a_classifier_of_other_latents_or_classes_is_named(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier, diffusion = trained
    for guide, message in (
        ([f"guide.run={diffusion}"], "its task is diffusion; give a run of task noisy_classifier"),
        ([f"guide.run={classifier}"], "guide.labels=null: the run has no input label"),
        ([f"guide.run={classifier}", "guide.labels=[4]"], "guide.labels=[4]: label 4: give a whole number from 0 to 3"),
        ([f"guide.run={classifier}", "guide.labels=[0,1]"], "3 images need one label, or one for each share"),
        ([], "guide.run=???: it has no value"),
    ):
        arguments = ["ldm sample", f"run={diffusion}", "prompts=[a]", "images=3", "steps=1", "guide=classifier", *guide]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit):
            sample.main()
        assert message in capsys.readouterr().err
