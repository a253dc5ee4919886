"""Our denoiser and first stage beside diffusers', with the same weights, in one run: float32, two threads.

python -m tests.benchmarks.beside_diffusers                          # all of it, half an hour on two cores
python -m tests.benchmarks.beside_diffusers step memory encode sample   # or some

The UNet has 139.7M parameters: 128 channels, multipliers 1, 2, 4, 4, 8 heads, context of 77 x 512; batch 4 at
32 x 32 x 4.
Times are medians; ours and theirs are measured in turn, so that a change of the machine's speed meets both. Training
steps have processes of their own, which together take 18 GiB.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import statistics
import time
from collections.abc import Callable

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
from tests.benchmarks.training_step import (
    KEPT,
    STEPS,
    THREADS,
    TOKENS,
    WIDTH,
    StepElsewhere,
    peak_gib,
    their_unet,
    unet,
)

STEP_GFLOP = 330.0
"""Of one training step of batch 4, by the issue's count."""

TRIED = """Tried for the step, in one thread's CPU time unless said, and left out:
  channels_last for every map: weight gradients of 8 x 8 and 4 x 4 maps take a fifth longer (large maps have it)
  linear layers as 1 x 1 convolutions: forwards as oneDNN's product, backwards no faster than MKL
  queries, keys and values as one product: 7 % of their time, less what joining the weights takes
  8 x 8 and 4 x 4 convolutions forwards as one product over unfolded patches: no faster with the unfolding
  half the multiplications for them too: making the kernels of products costs what they save
  half the multiplications in both directions of the map, F(2 x 2, 3 x 3): its sums of maps take twice the time
  upsampling 8 x 8 and 4 x 4 maps without the enlarged map: adding up the weights costs what it saves
  attention's backward pass of matrix products in blocks, for 1024 positions of 16 channels: 15 % slower than torch's
  the same with the softmax's subtractions as one more channel of its products: half as long again as torch's
  huge pages for large tensors beside kept memory (THP_MEM_ALLOC_ENABLE): no faster
  channels_last for the whole model: wall time x 1.01 of diffusers' with 512-bit vectors, as without it on an older one
  torch.compile of the sums of maps around those products: 5 to 11 % of their time less, of what follows them 81 % more
  torch.compile of the gated feed-forward's activation: 14 % of its time forwards, 0.2 % of the step's
  input's gradient of 4 x 4 convolutions as a product and F.fold: 1.5 ms of 6.6 for 1024 channels, nothing for 512
  oneDNN's products of float32 by way of bfloat16, in parts that add up: without AMX it makes none"""


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
    """The training step, eager, and with memory that is kept: theirs as its users run it, and with the same setting."""
    steps = {which: StepElsewhere(which) for which in STEPS}
    found = in_turn(steps, rounds)
    for step in steps.values():
        step.close()
    rate = matrix_rate()
    line("training step, eager", found["ours"], found["theirs"], 0.95)
    best, kept = found[f"ours{KEPT}"], found[f"theirs{KEPT}"]
    line("training step, best option: memory kept", best, found["theirs"], 0.85)
    start_up = steps[f"ours{KEPT}"].start_up
    print(f"{'  its start-up, the first step included':<46}{start_up:>9.3f} s{'':<24}   at most 60 s")
    print(f"{'  with diffusers told to keep memory too':<46}{best:>9.3f} s   {kept:>9.3f} s   {best / kept:>7.2f} x")
    line("training step, activation checkpointing / eager", found["checkpointing"], found["ours"], 1.35)
    share, their_share = (STEP_GFLOP / found[name] / rate for name in ("ours", "theirs"))
    print(f"{f'share of the matrix rate, {rate:.0f} GFLOP/s':<46}{share:>9.0%}     {their_share:>9.0%}", flush=True)
    print(TRIED)


def measure_memory() -> None:
    """Peak memory of the step."""
    ours, kept, theirs, checked = (peak_gib(which) for which in ("ours", f"ours{KEPT}", "theirs", "checkpointing"))
    line("peak memory of the step", ours, theirs, 1.0, "GiB")
    line("peak memory of the step, memory kept", kept, theirs, 1.0, "GiB")
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
    arguments = parser.parse_args()
    measures = arguments.measures or MEASURES
    if unknown := sorted(set(measures) - set(MEASURES)):
        parser.error(f"unknown measures {unknown}: choose of {list(MEASURES)}")
    torch.set_num_threads(THREADS)
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
