"""The training step that benchmarks compare: of our UNet and of diffusers', in processes of their own.

The UNet has 139.7M parameters: 128 channels, multipliers 1, 2, 4, 4, 8 heads, context of 77 x 512; batch 4 at
32 x 32 x 4.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from models.interop import diffusers as interop
from models.unet import UNet
from tests.resident import resident
from training.allocator import keep_memory

THREADS = 2
WIDTH, TOKENS = 512, 77
KEPT = " kept"
"""Ends the names of steps whose process keeps its memory, as every rank does that trains."""
STEPS = ("ours", "theirs", "checkpointing", f"ours{KEPT}", f"theirs{KEPT}")


def bare_unet(activation_checkpointing: bool = False) -> UNet:
    """The benchmark's UNet, as it begins."""
    return UNet(
        4, 4, 128, (1, 2, 4, 4), 2, (1, 2, 4), heads=8, context_width=WIDTH,
        activation_checkpointing=activation_checkpointing,
    )  # fmt: skip


def unet(activation_checkpointing: bool = False) -> UNet:
    """The benchmark's UNet with weights that leave no branch at zero."""
    torch.manual_seed(0)
    model = bare_unet(activation_checkpointing)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def their_unet(ours: UNet) -> nn.Module:
    """diffusers' UNet with our weights in it."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_config(interop.unet_config(ours))
    model.load_state_dict({name: tensor.clone() for name, tensor in interop.state_dict(ours).items()})
    return model


def step_of(network: Callable[..., torch.Tensor], parameters: list[nn.Parameter]) -> Callable[[], None]:
    """One training step of batch 4: forward, backward, AdamW."""
    generator = torch.Generator().manual_seed(1)
    z_t, eps = (torch.randn(4, 4, 32, 32, generator=generator) for _ in range(2))
    t = torch.tensor([3, 250, 500, 999])
    context = torch.randn(4, TOKENS, WIDTH, generator=generator)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (network(z_t, t, context) - eps).square().mean().backward()
        optimizer.step()

    return step


class StepElsewhere:
    """One of STEPS in a process of its own: how memory is allocated is a setting of the whole process.

    start_up: seconds that the setting and the first step take together.
    """

    def __init__(self, which: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.training_step", "--step-of", which],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.start_up = self._answer()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def __call__(self) -> float:
        """Seconds of a step."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve_steps(which: str) -> None:
    """In the process of `StepElsewhere`: a step at once and one for every line that comes; prints their seconds."""
    network: Callable[..., torch.Tensor]
    started = time.perf_counter()
    if which.endswith(KEPT) and not keep_memory():
        raise RuntimeError("this machine's allocator can't be told to keep memory, or the environment tells it how")
    start_up = time.perf_counter() - started
    ours = unet(activation_checkpointing=which == "checkpointing")
    parameters, network = list(ours.parameters()), ours
    if which.startswith("theirs"):
        theirs = their_unet(ours)
        with torch.no_grad():
            z_t, t, context = torch.randn(2, 4, 32, 32), torch.tensor([3, 700]), torch.randn(2, TOKENS, WIDTH)
            same = torch.allclose(ours(z_t, t, context), theirs(z_t, t, context).sample, atol=1e-4)
        assert same, "the two compute different things"
        parameters, network = list(theirs.parameters()), lambda *inputs: theirs(*inputs).sample
    del ours
    step = step_of(network, parameters)
    for number, _ in enumerate(itertools.chain([""], sys.stdin)):
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started + (start_up if number == 0 else 0.0), flush=True)


def peak_gib(which: str) -> float:
    """Peak memory that two steps take on top of the imports, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.training_step", "--peak-of", which]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return float(json.loads(done.stdout.splitlines()[-1]))


def print_peak(which: str) -> None:
    """In the process of `peak_gib`: GiB of resident memory above what the imports take."""
    network: Callable[..., torch.Tensor]
    if which.endswith(KEPT):
        keep_memory()
    if which.startswith("theirs"):
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            shape = bare_unet()
        before = resident("VmRSS")
        theirs = UNet2DConditionModel.from_config(interop.unet_config(shape))
        parameters, network = list(theirs.parameters()), lambda *inputs: theirs(*inputs).sample
    else:
        before = resident("VmRSS")
        ours = unet(activation_checkpointing=which == "checkpointing")
        parameters, network = list(ours.parameters()), ours
    step = step_of(network, parameters)
    for _ in range(2):
        step()
    gc.collect()
    print(json.dumps((resident("VmHWM") - before) / 2**30))


def main() -> None:
    """In a process of its own: steps, or their peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--peak-of", choices=STEPS)
    asked.add_argument("--step-of", choices=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.peak_of is not None:
        print_peak(arguments.peak_of)
    else:
        serve_steps(arguments.step_of)


if __name__ == "__main__":
    main()
