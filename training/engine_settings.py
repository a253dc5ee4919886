"""What DeepSpeed is told. Apart from training/engine.py so that checking a configuration needn't import DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.errors import ConfigurationError

PRECISIONS = ("fp32", "bf16", "fp16")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Those of torch.compile."""
STAGES = (0, 1, 2, 3)
OFFLOAD = (None, "cpu", "nvme")
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
OFFLOADED_GROUP_ELEMENTS = 50_000_000
"""What ZeRO 3 updates at a time when state lies on a disk: so much of it is in memory together."""


@dataclass(frozen=True)
class EngineSettings:
    """How the trainable module is spread and stepped. Everything DeepSpeed's own configuration is made from.

    zero_stage: 0 to 3; precision: one of PRECISIONS (bf16 and fp16 keep fp32 master weights under ZeRO 1 to 3);
    clip_norm: maximum global gradient norm, 0 for none; bucket_elements: size of a communication bucket;
    contiguous_gradients: gradients are copied into one buffer as they come, which spares a GPU's memory from
    fragmentation and costs a CPU a tenth of its time; compile: one of COMPILE_MODES, None to run the module as it is.
    offload_optimizer: where fp32 weights, their gradients, moments and averages lie and are updated: "cpu" (ZeRO 1 to
    3) or "nvme" (ZeRO 3), files in `offload_folder`; None: on the GPU. offload_param: the same for the shards of
    weights that are computed with (ZeRO 3).
    """

    zero_stage: int = 2
    precision: str = "fp32"
    clip_norm: float = 1.0
    bucket_elements: int = 50_000_000
    overlap_communication: bool = False
    contiguous_gradients: bool = True
    compile: str | None = None
    offload_optimizer: str | None = None
    offload_param: str | None = None
    offload_folder: str | None = None

    def __post_init__(self) -> None:
        if self.zero_stage not in STAGES:
            raise ValueError(f"engine.zero_stage is {self.zero_stage}; choose one of {STAGES}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"engine.precision is '{self.precision}'; choose one of {PRECISIONS}")
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ConfigurationError(
                "engine.precision",
                self.precision,
                "engine.zero_stage=0 keeps no fp32 master weights; choose engine=zero1, zero2 or zero3, or fp32",
            )

    @property
    def state_in_files(self) -> bool:
        """Whether fragments of the engine's state are views of files: more, maybe, than memory holds together."""
        return self.offload_optimizer == "nvme"

    def deepspeed_config(self, micro_batch: int, accumulation: int, world: int) -> dict[str, Any]:
        """DeepSpeed's own configuration. The batch arithmetic comes from data/batch sizes alone."""
        zero: dict[str, Any] = {
            "stage": self.zero_stage,
            "reduce_bucket_size": self.bucket_elements,
            "allgather_bucket_size": self.bucket_elements,
            "overlap_comm": self.overlap_communication,
            "contiguous_gradients": self.contiguous_gradients,
        }
        # For DeepSpeed files are host memory: training/offload.py. Pages of files can't be pinned.
        pinned = self.offload_optimizer == "cpu" and self.offload_param != "nvme"
        if self.offload_optimizer is not None:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        if self.offload_param is not None:
            zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
        if self.offload_optimizer == "nvme":
            zero["sub_group_size"] = OFFLOADED_GROUP_ELEMENTS
        return {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": micro_batch * accumulation * world,
            "gradient_clipping": self.clip_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # ours keeps averages, which DeepSpeed's Adam on CPUs can't
            "bf16": {"enabled": self.precision == "bf16"},
            "fp16": {"enabled": self.precision == "fp16"},
            "steps_per_print": 10**12,
            "wall_clock_breakdown": False,
            "zero_optimization": zero,
        }
