"""What a step would take if the GPUs did nothing but its counted FLOPs, at the peak of their data sheet."""

from __future__ import annotations

from omegaconf import DictConfig

from training.planning.cluster import gpu_named


def ideal_step_seconds(config: DictConfig, ranks: int) -> float | None:
    """All FLOPs of a step over the peak rate of all ranks' GPUs; None where `tracker.gpu` doesn't name the GPU.

    FLOPs are those of `ldm plan`: matrix products, convolutions and attention of frozen parts, forward and backward
    pass, counted on the meta device.
    """
    if config.tracker.gpu is None:
        return None
    from training.planning.passes import count  # takes seconds, for few runs

    gpu = gpu_named("tracker.gpu", config.tracker.gpu)
    peak = gpu.fp32_flops_per_second if config.engine.precision == "fp32" else gpu.bf16_flops_per_second
    counted = count(config)
    size = config.batch.micro_size
    encoding, training = counted.encoding(size), counted.training(size)
    flops = training.forward_flops + training.backward_flops
    if encoding is not None:
        flops += encoding.forward_flops
    return flops * (config.batch.global_size / size) / (ranks * peak)
