"""Looking at a model while it trains: when it is measured, by what, and that training doesn't notice."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from data.sources import HELD_OUT
from data.sources.openmoji import OpenMoji
from evaluation.compare import differences
from evaluation.features import FeatureNetwork
from evaluation.gallery import read_final_samples, read_step_samples
from evaluation.metrics.psnr import psnr
from evaluation.metrics.ssim import ssim
from evaluation.pictures import to_uint8
from evaluation.results import read_results
from models.interop.compvis_checkpoint import below
from tests.training.conftest import OnRanks
from tests.training.runs import composed
from training.checkpoint_files import Reader, read_weights
from training.dataset import held_out_samples
from training.distributed import Distributed
from training.fit import train_and_report
from training.monitors import in_turns

MEASURED = ("monitor.protocol=openmoji", "monitor.measure_every=2", "monitor.every=3")
FRECHET = "eval/efficientnet_lite0_frechet"


def work(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains three steps; returns the random state afterwards and how many networks of features are left."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    train_and_report(composed([*overrides, "steps=3", f"run.folder={folder}", "run.name=test"]), ranks)
    gc.collect()
    networks = sum(isinstance(thing, FeatureNetwork) for thing in gc.get_objects())
    return {"random": torch.get_rng_state(), "networks": networks}


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_logged_of_a_first_stage_is_how_it_reconstructs_all_held_out_pictures(
    world: int, tiny_autoencoder: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    """Shared over the ranks, at a size that it wasn't trained on; by the averaged weights of the run's checkpoint."""
    settings = [*tiny_autoencoder, "monitor.image_size=48", "monitor.every=3"]
    on_ranks(world, work, settings, tmp_path)
    config = composed(settings)
    images = held_out_samples(config, instantiate(config.data.storage)).images
    assert images.shape == (8, 3, 48, 48)
    stored = read_weights(tmp_path / "checkpoints" / "step-00000003", "model", "ema")
    autoencoder = instantiate(config.model).eval()
    autoencoder.load_state_dict(below("autoencoder.", stored))
    with torch.no_grad():
        latents = autoencoder.latents(images.float() / 127.5 - 1, torch.zeros(1, 1, 1, 1))
        made = to_uint8(autoencoder.decode(latents).clamp(-1, 1))
    [row] = [row for row in rows_of(tmp_path) if "eval/psnr" in row]
    assert row["step"] == 3
    assert row["eval/psnr"] == pytest.approx(psnr(made, images).mean().item(), abs=1e-3)
    assert row["eval/ssim"] == pytest.approx(ssim(made, images).mean().item(), abs=1e-4)


def test_captions_with_words_come_first_in_turn_and_all_of_them_once() -> None:
    captions = ["hook", "Old man", "flag of chad", "surface", "flag of mali", "a man, a face", "mouse face", "woman"]
    shown = [captions[i] for i in in_turns(captions, ["face", "man", "flag of"])]
    assert shown[:4] == ["a man, a face", "Old man", "flag of chad", "mouse face"]
    assert shown[4:] == ["flag of mali", "hook", "surface", "woman"]
    assert in_turns(captions, []) == list(range(len(captions)))
    assert in_turns(["", ""], ["face"]) == [0, 1]  # a model without captions


def test_prompts_are_looked_at_beside_held_out_captions(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    """In every look and at the end, each with noise of its own."""
    prompts = ["red heart", "grinning face"]
    on_ranks(1, work, [*tiny_diffusion, "monitor.every=3", f"monitor.prompts=[{','.join(prompts)}]"], tmp_path)
    gallery = read_final_samples(tmp_path)
    assert gallery is not None and (list(gallery.prompts), gallery.prompts_scale) == (prompts, 3.0)
    drawn = [*gallery.prompts.values(), *(row.generated[3.0] for row in gallery.rows)]
    assert len({path.read_bytes() for path in drawn}) == len(prompts) + 2
    columns = [*prompts, *(row.caption for row in gallery.rows)]
    assert [(look.step, look.captions) for look in read_step_samples(tmp_path)] == [(0, columns), (3, columns)]


def test_the_demo_looks_at_people_faces_flags_hearts_and_colours() -> None:
    """Of its held-out set and in its prompts; OpenMoji's held-out captions name no colour and no single heart."""
    settings = composed(["experiment=demo"]).monitor
    source = OpenMoji(size=8)
    held_out = [named.caption for key, (_, named) in source._drawings.items() if source.split(key) == HELD_OUT]
    shown = [held_out[i] for i in in_turns(held_out, settings.captions_with)[: settings.final_captions]]
    for word in ("face", "man", "woman", "flag of"):
        assert sum(re.search(rf"\b{word}\b", caption) is not None for caption in shown) >= 2, (word, shown)
        assert any(re.search(rf"\b{word}\b", caption) for caption in shown[: settings.captions])
    asked = re.findall(r"\w+", " ".join(settings.prompts))
    assert {"heart", "face", "flag", "woman", "man"} <= set(asked)
    assert {"red", "green", "yellow", "blue"} <= set(asked)
    train = {named.caption for key, (_, named) in source._drawings.items() if source.split(key) != HELD_OUT}
    assert set(settings.prompts) <= train  # words that the demo can know


@pytest.mark.slow  # the network of features looks five times
def test_training_does_not_notice_that_it_is_measured(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    """Every loss and every weight is equal to the last bit; nothing stays in memory."""
    settings = [setting for setting in tiny_diffusion if not setting.startswith(("monitor.protocol", "monitor.every"))]
    left = on_ranks(1, work, [*settings, *MEASURED], tmp_path / "measured")
    alone = on_ranks(1, work, [*settings, "monitor.protocol=null", "monitor.every=1000"], tmp_path / "alone")
    measured, unmeasured = rows_of(tmp_path / "measured"), rows_of(tmp_path / "alone")
    losses = [[row["train/loss"] for row in rows if row["step"]] for rows in (measured, unmeasured)]
    assert losses[0] == losses[1]
    assert torch.equal(left["random"], alone["random"])
    assert left["networks"] == 0
    one, other = (Reader(tmp_path / name / "checkpoints" / "step-00000003") for name in ("measured", "alone"))
    for name in one.manifest.engines["model"].parameters:
        assert torch.equal(one.tensor("model", "ema", name), other.tensor("model", "ema", name)), name

    assert [row["step"] for row in measured if FRECHET in row] == [0, 2, 3]
    assert not any(FRECHET in row for row in unmeasured)
    pictures = sorted(path.name for path in (tmp_path / "measured" / "samples").glob("step-*.png"))
    assert pictures == [f"step-{step:08d}.png" for step in (0, 3)]

    results = read_results(tmp_path / "measured")
    assert [result.step for result in results] == [0, 2, 3]
    first, last = results[0], results[-1]
    assert list(differences(first, last)) == []
    # Eight are held out, of 32 x 32: the card tells what was done, not what was asked for.
    assert (last.protocol["captions"], last.protocol["splits"], last.protocol["image_size"]) == (8, 1, 32)
    assert last.data.keys() == {"samples"}
    logged = next(row for row in measured if row["step"] == 3)
    assert logged[FRECHET] == last.measured["frechet"] > 0
