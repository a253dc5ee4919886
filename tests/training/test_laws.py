"""Laws of training: ranks, ZeRO stages and restarts change nothing that they shouldn't."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import OnRanks
from tests.training.ranks import Work
from tests.training.runs import train
from training.checkpoint_files import Reader
from training.distributed import Distributed

STAGES = (0, 1, 2, 3)


def on_one_and_two(on_ranks: OnRanks, work: Work, overrides: list[list[str]], folder: Path) -> dict[int, Any]:
    """What `work` returned on one rank and on two; both at the same time, each in a folder of its own."""
    with ThreadPoolExecutor() as pool:
        begun = {world: pool.submit(on_ranks, world, work, *overrides, folder / f"{world}") for world in (1, 2)}
        return {world: future.result() for world, future in begun.items()}


def losses_of_all_stages(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """Losses of 20 steps for each ZeRO stage, and the samples seen."""
    found = {}
    for stage in STAGES:
        place = folder / f"stage{stage}"
        _, rows = train(ranks, [*overrides, f"engine=zero{stage}", "checkpoint.every=1000"], place, 20)
        found[f"zero{stage}"] = torch.tensor([row["train/loss"] for row in rows if row["step"]], dtype=torch.float64)
    return found


def test_one_rank_and_two_ranks_train_alike_at_every_stage(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    found = on_one_and_two(on_ranks, losses_of_all_stages, [tiny_diffusion], tmp_path)
    reference = found[1]["zero0"]
    assert len(reference) == 20
    assert reference[0] != reference[-1]
    for world in (1, 2):
        for stage, losses in found[world].items():
            difference = ((losses - reference) / reference).abs().max().item()
            assert difference < 1e-4, f"{world} ranks, {stage}: losses differ by {difference:.1e} relative"


def losses_of_a_vq_first_stage(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """The metrics of 5 steps with an adversary by name, and how many entries of the codebook no gradient reached."""
    task, rows = train(ranks, [*overrides, "checkpoint.every=1000"], folder, 6)
    names = [name for name in rows[-1] if name.startswith("train/")]
    found = {name: torch.tensor([row[name] for row in rows if row["step"] > 1]) for name in names}
    squares = dict(task.engines["model"].gather("exp_avg_sq"))["autoencoder.codebook.entries.weight"]
    return found | {"unused": (squares == 0).all(1).sum()}


@pytest.mark.slow
def test_one_rank_and_two_ranks_train_a_vq_first_stage_alike(
    tiny_vq: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    """With an adversary that plays, and with entries of the codebook that no latent is near to."""
    found = on_one_and_two(on_ranks, losses_of_a_vq_first_stage, [tiny_vq], tmp_path)
    assert found[1].keys() == found[2].keys()
    assert {"train/adversary", "train/codebook_loss"} <= found[1].keys()
    assert 0 < found[1]["unused"] < 512
    for name, values in found[1].items():
        torch.testing.assert_close(found[2][name], values, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


ENGINES = {"whole": ["engine=zero0"], "sharded": ["engine=zero3"], "bf16": ["engine=zero2", "engine.precision=bf16"]}


def losses_of_first_stages(
    ranks: Distributed, kl: list[str], vq: list[str], folder: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """By kind and engine, the metrics of 3 steps with an adversary."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for kind, overrides in (("kl", kl), ("vq", vq)):
        for engine, settings in ENGINES.items():
            place = folder / f"{kind} {engine}"
            _, rows = train(ranks, [*overrides, *settings, "checkpoint.every=1000"], place, 5)
            names = [name for name in rows[-1] if name.startswith("train/")]
            found[f"{kind} {engine}"] = {n: torch.tensor([row[n] for row in rows if row["step"] > 2]) for n in names}
    return found


@pytest.mark.slow
def test_first_stages_train_alike_with_sharded_weights_and_nearly_so_in_bf16(
    tiny_autoencoder: list[str], tiny_vq: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    found = on_ranks(2, losses_of_first_stages, tiny_autoencoder, tiny_vq, tmp_path)
    for kind in ("kl", "vq"):
        whole, sharded, bf16 = (found[f"{kind} {engine}"] for engine in ENGINES)
        assert whole.keys() >= {"train/adversary", "train/adversary_weight", "train/discriminator_loss"}
        for name in whole.keys() - {"train/gradient_norm"}:  # ZeRO 0 has none
            torch.testing.assert_close(sharded[name], whole[name], rtol=1e-4, atol=1e-5, msg=f"{kind} {name}")
        for name in ("train/loss", "train/adversary_weight", "train/discriminator_loss"):
            torch.testing.assert_close(bf16[name], whole[name], rtol=0.05, atol=0, msg=f"{kind} {name}")
            assert not torch.equal(bf16[name], whole[name])


def straight_and_interrupted(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """Largest differences between four steps and two + restart + two, by what is compared.

    The run that is interrupted is the one that isn't, with what it left after two steps.
    """
    overrides = [*overrides, "checkpoint.every=2"]
    _, straight = train(ranks, overrides, folder / "straight", 4)
    if ranks.is_main:
        shutil.copytree(folder / "straight", folder / "interrupted")
        shutil.rmtree(folder / "interrupted" / "checkpoints" / "step-00000004")
    ranks.barrier()
    _, interrupted = train(ranks, overrides, folder / "interrupted", 4)
    assert [new["time"] > old["time"] for old, new in zip(straight, interrupted, strict=True)] == [False] * 3 + [
        True
    ] * 2
    differences = {"rows": torch.tensor(float(len(straight) - len(interrupted)))}
    for row, other in zip(straight, interrupted, strict=True):
        for key in row:
            if key.startswith("train/") or key in ("step", "images_seen"):
                differences[f"step {row['step']} {key}"] = torch.tensor(abs(row[key] - other[key]))
    a, b = (Reader(folder / run / "checkpoints" / "step-00000004") for run in ("straight", "interrupted"))
    assert a.manifest.extra == b.manifest.extra
    for engine, entry in a.manifest.engines.items():
        assert entry.updates == b.manifest.engines[engine].updates
        for kind in a.manifest.kinds:
            differences[f"{engine} {kind}"] = torch.stack(
                [(a.tensor(engine, kind, n) - b.tensor(engine, kind, n)).abs().max() for n in entry.parameters]
            ).max()
    names = a.manifest.engines["model"].parameters
    moved = max((a.tensor("model", "param", n) - a.tensor("model", "ema", n)).abs().max() for n in names)
    assert moved > 0, "the average must differ from the weights, else equality shows nothing"
    return differences


def diffusion_at_every_stage(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """The differences at every ZeRO stage."""
    found = {}
    for stage in STAGES:
        differences = straight_and_interrupted(ranks, [*overrides, f"engine=zero{stage}"], folder / f"zero{stage}")
        found |= {f"zero{stage} {key}": value for key, value in differences.items()}
    return found


def other_tasks(
    ranks: Distributed, kl: list[str], vq: list[str], classifier: list[str], folder: Path
) -> dict[str, torch.Tensor]:
    """The differences of both kinds of first stages, and of a classifier."""
    found = {}
    for name, overrides in (
        ("kl", kl),
        ("vq", [*vq, "engine=zero3", "task.revive_codes_every=3"]),
        ("classifier", classifier),
    ):
        differences = straight_and_interrupted(ranks, overrides, folder / name)
        found |= {f"{name} {key}": value for key, value in differences.items()}
    return found


def test_four_steps_equal_two_restart_two_bit_for_bit(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    found = on_one_and_two(on_ranks, diffusion_at_every_stage, [tiny_diffusion], tmp_path)
    for world, differences in found.items():
        assert unequal(differences) == {}, f"{world} ranks"
        assert any("ema" in key for key in differences)


@pytest.mark.slow
def test_so_they_do_for_first_stages_and_a_classifier(
    tiny_autoencoder: list[str], tiny_vq: list[str], tiny_classifier: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    found = on_one_and_two(on_ranks, other_tasks, [tiny_autoencoder, tiny_vq, tiny_classifier], tmp_path)
    for world, differences in found.items():
        assert unequal(differences) == {}, f"{world} ranks"
        assert any("kl discriminator exp_avg_sq" in key for key in differences)
        assert any("vq step 4 train/codebook_perplexity" in key for key in differences)
        assert any("vq step 3 train/codes_revived" in key for key in differences)
        assert any("classifier step 4 train/accuracy_decile_" in key for key in differences)


def unequal(differences: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: value.item() for key, value in differences.items() if value.item() != 0}
