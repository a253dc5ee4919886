"""Our denoiser and first stage beside diffusers', with the same weights, in one run: float32, two threads.

python -m tests.benchmarks.beside_diffusers                          # all of it, half an hour on two cores
python -m tests.benchmarks.beside_diffusers step memory encode sample   # or some

The UNet has 139.7M parameters: 128 channels, multipliers 1, 2, 4, 4, 8 heads, context of 77 x 512; batch 4 at
32 x 32 x 4.
Times are medians; ours and theirs are measured in turn, so that a change of the machine's speed meets both.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from models.autoencoder import AutoencoderKL
from models.conditioners import Condition
from models.guidance import classifier_free
from models.interop import diffusers as interop
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.prediction import PREDICTIONS, as_denoiser
from models.samplers.ddim import ddim
from models.schedule import linear
from models.unet import UNet
from tests.resident import resident

THREADS = 2
STEP_GFLOP = 330.0
"""Of one training step of batch 4, by the issue's count."""
WIDTH, TOKENS = 512, 77

TRIED = """Tried for the step, in one thread's CPU time, and left out:
  channels_last for every map: weight gradients of 8 x 8 and 4 x 4 maps take a fifth longer (large maps have it)
  linear layers as 1 x 1 convolutions: forwards as oneDNN's product, backwards no faster than MKL
  queries, keys and values as one product: 7 % of their time, less what joining the weights takes
  8 x 8 and 4 x 4 convolutions forwards as one product over unfolded patches: no faster with the unfolding
  half the multiplications for them too: making the kernels of products costs what they save
  half the multiplications in both directions of the map, F(2 x 2, 3 x 3): its sums of maps take twice the time
  upsampling 8 x 8 and 4 x 4 maps without the enlarged map: adding up the weights costs what it saves
  attention's backward pass of matrix products in blocks, for 1024 positions of 16 channels: 15 % slower than torch's"""


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


def in_turn(contenders: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each, measured one after the other, round after round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number >= warm_up:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def matrix_rate() -> float:
    """GFLOP/s of a large matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    found = in_turn({"product": lambda: a @ b}, 10, 3)
    return 2 * 2048**3 / found["product"] / 1e9


def line(what: str, ours: float, theirs: float, most: float, unit: str = "s") -> None:
    """Prints a measured ratio beside the required one."""
    measured = f"{ours:>9.3f} {unit:<4}{theirs:>9.3f} {unit:<4}{ours / theirs:>7.2f} x"
    print(f"{what:<46}{measured}   at most {most:.2f} x", flush=True)


def measure_step(rounds: int) -> None:
    """The training step, eager and with the options that were tried."""
    ours = unet()
    theirs = their_unet(ours)
    last = unet().to(memory_format=torch.channels_last)
    checked = unet(activation_checkpointing=True)
    with torch.no_grad():
        z_t, t, context = torch.randn(2, 4, 32, 32), torch.tensor([3, 700]), torch.randn(2, TOKENS, WIDTH)
        same = torch.allclose(ours(z_t, t, context), theirs(z_t, t, context).sample, atol=1e-4)
    assert same, "the two compute different things"

    def their_network(z_t: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return theirs(z_t, t, context).sample

    found = in_turn(
        {
            "ours": step_of(ours, list(ours.parameters())),
            "theirs": step_of(their_network, list(theirs.parameters())),
            "channels last": step_of(last, list(last.parameters())),
            "activation checkpointing": step_of(checked, list(checked.parameters())),
        },
        rounds,
    )
    rate = matrix_rate()
    line("training step, eager", found["ours"], found["theirs"], 0.95)
    line("training step, channels last", found["channels last"], found["theirs"], 0.85)
    line("training step, activation checkpointing / eager", found["activation checkpointing"], found["ours"], 1.35)
    share, their_share = (STEP_GFLOP / found[name] / rate for name in ("ours", "theirs"))
    print(f"{f'share of the matrix rate, {rate:.0f} GFLOP/s':<46}{share:>9.0%}     {their_share:>9.0%}", flush=True)
    print(TRIED)


def peak_gib(which: str) -> float:
    """Peak memory that two steps take on top of the imports, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.beside_diffusers", "--peak-of", which]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return float(json.loads(done.stdout.splitlines()[-1]))


def print_peak(which: str) -> None:
    """In the process of `peak_gib`: GiB of resident memory above what the imports take."""
    network: Callable[..., torch.Tensor]
    if which == "theirs":
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


def measure_memory() -> None:
    """Peak memory of the step."""
    ours, theirs, checked = (peak_gib(which) for which in ("ours", "theirs", "checkpointing"))
    line("peak memory of the step", ours, theirs, 1.0, "GiB")
    line("peak memory, activation checkpointing", checked, theirs, 0.5, "GiB")


def their_autoencoder(ours: AutoencoderKL) -> nn.Module:
    """diffusers' KL autoencoder with our weights in it."""
    from diffusers import AutoencoderKL as Theirs

    model = Theirs.from_config(interop.autoencoder_config(ours, 0.18215)).eval()
    model.load_state_dict({name: tensor.clone() for name, tensor in interop.state_dict(ours).items()})
    return model


def kl_f8() -> AutoencoderKL:
    """The published KL f = 8 autoencoder with random weights."""
    torch.manual_seed(0)
    return AutoencoderKL(128, (1, 2, 4, 4), 2, 4).eval()


@torch.no_grad()
def measure_encode(rounds: int) -> None:
    """KL f = 8 encoding of 256 x 256 images, one at a time and four at a time."""
    ours = kl_f8()
    theirs = their_autoencoder(ours)
    for count in (1, 4):
        images = torch.randn(count, 3, 256, 256)
        torch.testing.assert_close(ours.encode(images).mean, theirs.encode(images).latent_dist.mean, rtol=0, atol=1e-3)
        found = in_turn({"ours": lambda x=images: ours.encode(x), "theirs": lambda x=images: theirs.encode(x)}, rounds)
        rates = {name: count / seconds for name, seconds in found.items()}
        print(
            f"{f'KL f=8 encoding, {count} at a time':<46}{rates['ours']:>9.3f} /s  {rates['theirs']:>9.3f} /s  "
            f"{rates['ours'] / rates['theirs']:>7.2f} x   at least 1.10 x",
            flush=True,
        )


@torch.no_grad()
def measure_sample(rounds: int, steps: int = 50) -> None:
    """DDIM with guidance 5 and decoding: two images of 256 x 256."""
    from diffusers import DDIMScheduler

    ours, autoencoder, schedule = unet().eval(), kl_f8(), linear(0.00085, 0.012)
    theirs, their_decoder = their_unet(ours).eval(), their_autoencoder(autoencoder)
    model, first_stage = LatentDiffusion(ours, {}), FirstStage(autoencoder, 0.18215)
    generator = torch.Generator().manual_seed(2)
    context, nothing = (torch.randn(n, TOKENS, WIDTH, generator=generator) for n in (2, 1))
    z_T = torch.randn(2, 4, 32, 32, generator=generator)

    def draw() -> torch.Tensor:
        network = classifier_free(model.remembering(), Condition(context=context), Condition(context=nothing), 5.0)
        denoiser = as_denoiser(network, PREDICTIONS["epsilon"], schedule)
        return first_stage.decode(ddim(denoiser, z_T, schedule, steps))

    def their_draw() -> torch.Tensor:
        """What diffusers' text-to-image pipeline does behind its text encoder."""
        scheduler = DDIMScheduler.from_config(interop.scheduler_config(schedule))
        scheduler.set_timesteps(steps)
        latents, both = z_T * scheduler.init_noise_sigma, torch.cat([nothing.expand(2, -1, -1), context])
        for t in scheduler.timesteps:
            eps_u, eps_c = theirs(torch.cat([latents] * 2), t, encoder_hidden_states=both).sample.chunk(2)
            latents = scheduler.step(eps_u + 5.0 * (eps_c - eps_u), t, latents).prev_sample
        return their_decoder.decode(latents / 0.18215).sample.clamp(-1, 1)

    difference = (draw() - their_draw()).abs().max().item()
    assert difference < 1e-3, difference
    found = in_turn({"ours": draw, "theirs": their_draw}, rounds, warm_up=0)
    line(f"DDIM, {steps} steps, guidance 5, decoded", found["ours"], found["theirs"], 0.9)


MEASURES = ("step", "memory", "encode", "sample")


def main() -> None:
    """Prints one line a measure: ours, diffusers', the ratio, the required one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", metavar="|".join(MEASURES), help="all of them unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=("ours", "theirs", "checkpointing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    measures = arguments.measures or MEASURES
    if unknown := sorted(set(measures) - set(MEASURES)):
        parser.error(f"unknown measures {unknown}: choose of {list(MEASURES)}")
    torch.set_num_threads(THREADS)
    if arguments.peak_of is not None:
        print_peak(arguments.peak_of)
        return
    print(f"{'':<46}{'ours':>9}     {'diffusers':>9}")
    if "step" in measures:
        measure_step(arguments.rounds)
    if "memory" in measures:
        measure_memory()
    if "encode" in measures:
        measure_encode(arguments.rounds)
    if "sample" in measures:
        measure_sample(max(1, arguments.rounds // 3))


if __name__ == "__main__":
    main()
