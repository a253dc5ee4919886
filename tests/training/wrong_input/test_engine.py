"""Wrong settings of the engine, its optimizer and its ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT
from tests.training.wrong_input.refusals import Refused, Wrong, check

ENGINES = {
    "unknown engine": Wrong(("engine=zero5",), "engine=zero5", "choose one of zero0, zero1, zero2, zero3"),
    "unknown stage": Wrong(("engine.zero_stage=7",), "engine.zero_stage=7", "choose one of 0, 1, 2, 3"),
    "unknown precision": Wrong(("engine.precision=int8",), "engine.precision=int8", "one of fp32, bf16, fp16"),
    "precision without masters": Wrong(
        ("engine=zero0", "engine.precision=bf16"), "engine.precision=bf16", "choose engine=zero1"
    ),
    "unknown offload": Wrong(
        ("engine=zero3", "engine.offload_optimizer=disk"), "engine.offload_optimizer=disk", "one of null, cpu, nvme"
    ),
    "offload of another stage": Wrong(
        ("engine=zero2", "engine.offload_optimizer=nvme"), "engine.offload_optimizer=nvme", "choose engine=zero3"
    ),
    "offload to nowhere": Wrong(
        ("engine=zero3", "engine.offload_optimizer=nvme"), "engine.offload_folder=null", "a folder of a local disk"
    ),
    "offload to no folder": Wrong(
        ("engine=zero3", "engine.offload_optimizer=nvme", "engine.offload_folder=/no/folder"),
        "engine.offload_folder=/no/folder",
        "make it",
    ),
    "weights away and their moments not": Wrong(
        ("engine=zero3", "engine.offload_param=cpu"), "engine.offload_optimizer=null", "choose cpu or nvme"
    ),
    "unknown way to compile": Wrong(("engine.compile=fast",), "engine.compile=fast", "null, default, reduce-overhead"),
    "compiled shards": Wrong(
        ("engine=zero3", "engine.compile=default"), "engine.compile=default", "choose engine=zero2 or null"
    ),
    "momenta": Wrong(("optimizer.betas=[0.9,1.5]",), "optimizer.betas=[0.9, 1.5]", "[0.9,0.999]"),
    "unknown optimizer": Wrong(("optimizer=adam",), "optimizer=adam", "choose one of adamw, adamw_8bit, lion"),
    "an optimizer of torch's": Wrong(("optimizer._target_=torch.optim.SGD",), "optimizer=torch.optim.SGD: ", "betas"),
    "growing weights": Wrong(("optimizer.weight_decay=-1",), "optimizer.weight_decay=-1", "at least 0"),
    "no list of kinds": Wrong(("optimizer.no_decay=bias",), "optimizer.no_decay=bias", "a list of bias, norm"),
    "no kind": Wrong(
        ("optimizer.no_decay=[biases]",), "optimizer.no_decay=biases", "bias, norm, embedding, or patterns"
    ),
    "no rank": Wrong(("run.ranks=0",), "run.ranks=0", "at least 1"),
    "batch": Wrong(("batch.global_size=9",), "batch.global_size=9", "2 ranks x batch.micro_size=4 = 8; choose 8 or 16"),
}


@pytest.mark.parametrize("wrong", ENGINES.values(), ids=ENGINES.keys())
def test_wrong_setting(wrong: Wrong, base: list[str], refused: Refused) -> None:
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="this machine computes in float16"
)
def test_a_precision_that_the_processor_lacks(base: list[str], refused: Refused) -> None:
    check(refused([*base, "engine.precision=fp16"]), "engine.precision=fp16", "choose bf16 or fp32")


def test_an_offload_folder_without_room(base: list[str], refused: Refused, small_disk: Path) -> None:
    message = refused([*base, "engine=zero3", "engine.offload_optimizer=nvme", f"engine.offload_folder={small_disk}"])
    check(message, f"engine.offload_folder={small_disk}", "name a folder with more room")
    assert "GB are needed there and 0.00105 GB are free" in message


def test_compiling_without_a_compiler(base: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CC", "CXX"):  # of which a machine without a GPU needs the second
        monkeypatch.setenv(variable, "no-such-compiler")
    message = refused([*base, "engine.compile=default"])
    check(message, "engine.compile=default", "torch.compile needs no-such-compiler, and there is none; install it")


def test_a_rank_of_a_cluster_checks_before_it_joins(
    base: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    check(refused(base), "batch.global_size=8", "3 ranks x batch.micro_size=4")


@pytest.mark.slow
def test_of_a_cluster_s_ranks_one_tells(base: list[str], tmp_path: Path) -> None:
    """Under torch's own launcher, whose report on its ranks' ends comes besides."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "training.train"]
    for overrides, says in (
        (["batch.global_size=9"], "batch.global_size=9"),
        (["data.train=/no/x"], "data.train=/no/x"),
    ):
        command = [*torchrun, *base, *overrides]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=180)
        assert done.returncode != 0
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {says}: ")
        assert "training/" not in done.stderr, "a rank printed a traceback"
