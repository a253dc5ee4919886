"""Laws of the model of communication, and its bytes beside those that real ranks exchange."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from tests.benchmarks.plan import exchanging
from tests.training.conftest import OnRanks
from tests.training.runs import composed
from training.build import build_engine
from training.distributed import Distributed
from training.engine_settings import EngineSettings
from training.modules import build_modules
from training.planning.cluster import Cluster, Gpu
from training.planning.communication import Traffic, seconds_of, step_of, traffic
from training.planning.memory import LIVE_ELEMENTS, Trained

GPU = Gpu("a GPU", 300e12, 150e12, 80e9, 2e12, 300e9, 25e9, 2.0)
MODEL = Trained(10**9, 10**6)
STAGES = (0, 1, 2, 3)


def engine(stage: int, overlap: bool = True) -> EngineSettings:
    return EngineSettings(stage, "bf16" if stage else "fp32", overlap_communication=overlap)


def test_a_ring_all_reduces_by_scattering_and_gathering() -> None:
    for ranks in (2, 8, 1024):
        reduced, scattered, gathered = (
            Traffic(kind, 1e9, 1, "backward").sent(ranks)  # type: ignore[arg-type]
            for kind in ("all_reduce", "reduce_scatter", "all_gather")
        )
        assert reduced == pytest.approx(scattered + gathered)
        assert gathered == pytest.approx(1e9 * (ranks - 1) / ranks)


def test_gradients_of_every_micro_batch_are_exchanged_from_stage_2_on() -> None:
    def gradients(stage: int, accumulation: int) -> float:
        found = traffic(MODEL, engine(stage), accumulation)
        return sum(t.size for t in found if t.collective in ("all_reduce", "reduce_scatter"))

    for stage in STAGES:
        assert gradients(stage, 4) == (4 if stage >= 2 else 1) * gradients(stage, 1)


def test_weights_beyond_those_kept_are_gathered_for_the_backward_pass_again() -> None:
    def gathered(elements: int) -> float:
        return traffic(Trained(elements, 0), engine(3), 1)[0].size

    assert gathered(LIVE_ELEMENTS) == 2 * LIVE_ELEMENTS
    assert gathered(LIVE_ELEMENTS + 10) == 2 * (LIVE_ELEMENTS + 20)


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_exchanges_nothing_and_more_nodes_are_never_faster(stage: int) -> None:
    def exposed(nodes: int, gpus: int) -> float:
        return step_of(MODEL, engine(stage), 1, 0.1, 0.1, Cluster(GPU, nodes, gpus)).exposed

    assert exposed(1, 1) == 0
    waiting = [exposed(nodes, 8) for nodes in (1, 2, 16, 128)]
    assert waiting[0] > 0 and waiting == sorted(waiting)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_overlapped_is_waited_for(stage: int) -> None:
    cluster = Cluster(GPU, 4, 8)
    apart = step_of(MODEL, engine(stage, overlap=False), 1, 0.1, 0.1, cluster)
    beside = step_of(MODEL, engine(stage), 1, 0.1, 0.1, cluster)
    assert apart.exposed == apart.communication == beside.communication
    assert (beside.exposed < apart.exposed) == (stage > 0)  # DeepSpeed overlaps nothing without ZeRO
    assert apart.seconds == pytest.approx(0.1 + sum(seconds_of(t, cluster) for t in traffic(MODEL, engine(stage), 1)))


def counted(ranks: Distributed, overrides: list[str]) -> dict[str, dict[str, float]]:
    """By ZeRO stage, what two steps of two micro-batches each exchange, and what the model says, by collective."""
    found: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        config = composed([*overrides, f"engine=zero{stage}", "engine.overlap_communication=true"])
        module = build_modules(config)["model"]
        sizes = [p.numel() for p in module.parameters()]
        built = build_engine(config, module, ranks)
        size = config.data.image_size // 4
        for _ in range(2):  # ZeRO 3 knows in the second two steps what it needs next, and gathers it once
            with exchanging() as exchanged:
                for _ in range(4):
                    z_t, t = torch.randn(2, 4, size, size), torch.tensor([3, 700])
                    loss = built(z_t, t, {"caption": torch.zeros(2, 20, dtype=torch.int64)}).square().mean()
                    built.backward(loss)
                    built.step(1e-4)
        told: Counter[str] = Counter()
        for exchange in traffic(Trained.of(sizes), instantiate(config.engine), 2):
            told[exchange.collective] += 2 * exchange.size
        found |= {f"counted {stage}": dict(exchanged), f"told {stage}": dict(told)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_real_ranks_exchange_what_the_model_says(world: int, tiny_diffusion: list[str], on_ranks: OnRanks) -> None:
    overrides = [*tiny_diffusion, "batch.micro_size=2", f"batch.global_size={4 * world}", "model.unet.channels=64"]
    found: dict[str, Any] = on_ranks(world, counted, overrides)
    for stage in STAGES:
        told, real = found[f"told {stage}"], found[f"counted {stage}"]
        for collective in {*told, *real}:
            assert real.get(collective, 0) == pytest.approx(told.get(collective, 0), rel=0.01, abs=10_000), (
                f"ZeRO {stage}: {collective}"
            )
