"""Entries of a codebook that nobody uses become latents, at every ZeRO stage and on any number of ranks the same."""

from __future__ import annotations

import pytest
import torch

from models.autoencoder import AutoencoderVQ
from tests.training.conftest import OnRanks
from training.checkpoint_files import BASE_KINDS
from training.codebook_revival import ENTRIES, CodebookRevival
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.modules import ReconstructionModule
from training.optimizers.adamw import AdamW

STAGES = (0, 1, 2, 3)
CODES, WIDTH, SAMPLES, EVERY = 16, 3, 4, 3
FIRST_USED, LAST_USED = 2, 5
Z = torch.randn(SAMPLES, WIDTH, 2, 2, generator=torch.Generator().manual_seed(1))


def revived(ranks: Distributed) -> dict[str, torch.Tensor]:
    """By stage and kind, the codebook after three steps; in each every rank sees its share of the samples, the first
    rank alone uses one entry in the first step, and the last rank another in the last."""
    found = {}
    for stage in STAGES:
        torch.manual_seed(0)
        module = ReconstructionModule(AutoencoderVQ(8, (1,), 1, WIDTH, CODES), learned_variance=False)
        optimizer = AdamW([p for p in module.parameters() if p.requires_grad], 1e-2)
        engine = Engine(module, EngineSettings(zero_stage=stage), optimizer, 1, 1, ranks.world)
        with torch.no_grad():
            for fragment in engine.fragments():
                for kind in engine.kinds[1:]:
                    fragment.tensors[kind].fill_(7.0)
        found[f"{stage} before"] = dict(engine.gather("param"))[ENTRIES].clone()
        revival = CodebookRevival(engine, CODES, EVERY, SAMPLES, ranks, seed=5)
        mine = range(ranks.rank, SAMPLES, ranks.world)
        told = []
        for step in range(3, 3 + EVERY):
            for sample in mine:  # one a micro-batch
                used = LAST_USED if step == 2 + EVERY and ranks.rank == ranks.world - 1 else FIRST_USED
                if step > 3 and used == FIRST_USED:
                    used = 15  # of all ranks
                indices = torch.full((1, 2, 2), used)
                revival.see(torch.tensor([SAMPLES * step + sample]), Z[sample][None], indices)
            if step == 4:  # as after a restart
                state = revival.state()
                revival = CodebookRevival(engine, CODES, EVERY, SAMPLES, ranks, seed=5)
                revival.load_state(state)
                for sample in mine:
                    revival.see(torch.tensor([SAMPLES * step + sample]), Z[sample][None], torch.full((1, 2, 2), 15))
            told.append(revival.end_step(step))
        assert told[:2] == [None, None]
        found[f"{stage} told"] = torch.stack(told[2:])
        for kind in engine.kinds:
            found[f"{stage} {kind}"] = dict(engine.gather(kind))[ENTRIES].clone()
    return found


@pytest.fixture(scope="module")
def found(on_ranks: OnRanks) -> dict[int, dict[str, torch.Tensor]]:
    return {world: on_ranks(world, revived) for world in (1, 2)}


def test_entries_that_nobody_used_become_latents_and_others_stay(found: dict[int, dict[str, torch.Tensor]]) -> None:
    used = [FIRST_USED, LAST_USED, 15]
    dead = [code for code in range(CODES) if code not in used]
    latents = {tuple(latent) for latent in Z.movedim(1, -1).reshape(-1, WIDTH).tolist()}
    for stage in STAGES:
        after = {kind: found[2][f"{stage} {kind}"] for kind in ("param", "exp_avg", "exp_avg_sq", "ema")}
        assert found[2][f"{stage} told"].item() == len(dead)
        assert torch.equal(after["param"][used], found[2][f"{stage} before"][used])
        places = [tuple(entry) for entry in after["param"][dead].tolist()]
        assert latents.issuperset(places) and len(set(places)) > 1
        assert torch.equal(after["ema"][dead], after["param"][dead])
        for kind in BASE_KINDS[1:]:
            assert not after[kind][dead].any() and after[kind][used].eq(7.0).all()


def test_one_rank_and_two_revive_alike(found: dict[int, dict[str, torch.Tensor]]) -> None:
    """But for the entry that, of one rank, is used by the last rank in the last step."""
    for key, one in found[1].items():
        assert torch.equal(one, found[2][key]), key
