"""What a configured task runs for a micro-batch, counted: its frozen parts, then what is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from evaluation.frozen_conditioners import build_frozen_conditioners
from models.discriminator import hinge_discriminator_loss, hinge_generator_loss
from models.latent_diffusion import FirstStage
from models.perceptual import vgg16_trunk
from training.components import build_optimizer
from training.modules import ReconstructionModule, WithoutInitialisation, build_modules
from training.optimizers import Optimizer
from training.planning.counting import Pass, count_inference, count_training, extrapolated
from training.planning.memory import Trained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FROZEN_ELEMENT_BYTES = 4  # what is frozen stays in float32


@dataclass(frozen=True)
class Counted:
    """One task's work, as functions of the micro-batch.

    sizes: elements of every parameter that is trained, by engine and name. frozen: elements that never change, and of
    the second model that monitors keep.
    """

    sizes: dict[str, dict[str, int]]
    frozen: int
    _optimizer: Optimizer
    _training: tuple[Pass, Pass]
    _encoding: tuple[Pass, Pass] | None

    def training(self, micro_batch: int) -> Pass:
        """Forward and backward pass of what is trained."""
        return extrapolated(*self._training, micro_batch)

    def encoding(self, micro_batch: int) -> Pass | None:
        """The frozen parts' pass; None where nothing is frozen."""
        return None if self._encoding is None else extrapolated(*self._encoding, micro_batch)

    def trained(self, *engines: str) -> Trained:
        """The parameters of these engines, with what the optimizer keeps of them."""
        sizes = [size for engine in engines for size in self.sizes[engine].values()]
        return Trained.of(sizes, len(self._optimizer.averages), self._optimizer.moment_bytes)

    @property
    def kinds(self) -> int:
        """Tensors that a checkpoint keeps of each parameter."""
        return len(self._optimizer.kinds)

    @property
    def elements(self) -> int:
        """Parameters that are trained."""
        return sum(sum(sizes.values()) for sizes in self.sizes.values())


def count(config: DictConfig) -> Counted:
    """Builds the models of a configuration on the meta device and counts one and two samples of its task."""
    dtype = DTYPES[config.engine.precision]
    with torch.device("meta"), WithoutInitialisation():
        modules = build_modules(config)
        sizes = {
            engine: {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
            for engine, module in modules.items()
        }
        modules = {name: module.to(dtype) for name, module in modules.items()}
        looked_at = sum(p.numel() for p in modules["model"].parameters())
        if config.task.name == "autoencoder":
            return _count_first_stage(config, sizes, modules, looked_at, dtype)
        first_stage = FirstStage(instantiate(config.first_stage.autoencoder), 1.0)
        frozen = build_frozen_conditioners(config)
        inputs = {name: kind.nothing().to("meta") for name, kind in instantiate(config.inputs).items()}
    diffusion = config.task.name == "diffusion"
    size = config.data.image_size
    shape = first_stage.latent_shape(size, size)

    def given(batch: int) -> dict[str, Tensor]:
        return {name: value[None].expand(batch, *value.shape) for name, value in inputs.items()}

    def encode(batch: int) -> Pass:
        def run() -> None:
            if config.data.latents is None:
                first_stage.encode(images(batch, size, torch.uint8), latents(batch, torch.float32))
            frozen(given(batch))

        return count_inference(nn.ModuleList([first_stage, frozen]), run)

    def latents(batch: int, kind: torch.dtype) -> Tensor:
        return torch.empty(batch, *shape, device="meta", dtype=kind)

    def train(batch: int) -> Pass:
        model, z_t = modules["model"], latents(batch, dtype)
        t = torch.empty(batch, device="meta", dtype=torch.int64)
        if not diffusion:
            return count_training(model, lambda: model(z_t, t).float().square().mean())
        condition = frozen(given(batch)).to(dtype)
        return count_training(model, lambda: model(z_t, t, given(batch), condition).float().square().mean())

    frozen_elements = sum(p.numel() for part in (first_stage, frozen) for p in part.parameters())
    optimizer = build_optimizer(config, [torch.zeros(1)])
    return Counted(sizes, frozen_elements + looked_at, optimizer, (train(1), train(2)), (encode(1), encode(2)))


def images(batch: int, size: int, dtype: torch.dtype) -> Tensor:
    """[B, 3, H, W] on the meta device."""
    return torch.empty(batch, 3, size, size, device="meta", dtype=dtype)


def _count_first_stage(
    config: DictConfig,
    sizes: dict[str, dict[str, int]],
    modules: dict[str, nn.Module],
    looked_at: int,
    dtype: torch.dtype,
) -> Counted:
    """Reconstruction, both losses by it, and the adversary's own step, once it plays."""
    model, discriminator = modules["model"], modules["discriminator"]
    assert isinstance(model, ReconstructionModule)
    autoencoder = model.autoencoder
    perceptual: nn.Module | None = None
    if config.task.perceptual_weights is not None:
        with torch.device("meta"), WithoutInitialisation():
            perceptual = vgg16_trunk().requires_grad_(False)
    size = config.data.image_size
    side = size // autoencoder.downsampling

    def train(batch: int) -> Pass:
        noise = torch.empty(batch, autoencoder.latent_channels, side, side, device="meta", dtype=dtype)

        def loss() -> Tensor:
            output, _, penalty, *_ = model(images(batch, size, dtype), noise)
            value = hinge_generator_loss(discriminator(output).float()) + penalty
            if perceptual is not None:
                value = value + (perceptual(images(batch, size, torch.float32)) - perceptual(output.float())).mean()
            return value

        def judge() -> Tensor:
            real, drawn = (discriminator(images(batch, size, dtype)).float() for _ in range(2))
            return hinge_discriminator_loss(real, drawn)

        discriminator.requires_grad_(False)
        of_model = count_training(model, loss)
        discriminator.requires_grad_(True)
        return joined(of_model, count_training(discriminator, judge))

    kept = sum(p.numel() for part in (discriminator, perceptual) if part is not None for p in part.parameters())
    optimizer = build_optimizer(config, [torch.zeros(1)])
    return Counted(sizes, looked_at + kept, optimizer, (train(1), train(2)), None)


def joined(first: Pass, second: Pass) -> Pass:
    """One pass after the other: the memory is the first one's, which is by far the larger."""
    return Pass(first.forward_flops + second.forward_flops, first.backward_flops + second.backward_flops, first.moments)
