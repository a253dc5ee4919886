"""Whether state can be where engine.offload_optimizer and engine.offload_param want it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from training.engine_settings import ELEMENT_BYTES, OFFLOAD
from training.errors import ConfigurationError

STAGES_OF = {
    ("offload_optimizer", "cpu"): (1, 2, 3),
    ("offload_optimizer", "nvme"): (3,),
    ("offload_param", "cpu"): (3,),
    ("offload_param", "nvme"): (3,),
}
"""ZeRO stages that can have a part of the state elsewhere: those that shard it, and on a disk the one that updates it
group by group."""


def check_offload(config: DictConfig) -> None:
    """Raises ConfigurationError where the ZeRO stage has no such offload, or a folder for it isn't named."""
    stage = config.engine.zero_stage
    for name in ("offload_optimizer", "offload_param"):
        key, value = f"engine.{name}", OmegaConf.select(config, f"engine.{name}")
        if value is None:
            continue
        if value not in OFFLOAD:
            raise ConfigurationError(key, value, "choose one of null, cpu, nvme")
        if stage not in (stages := STAGES_OF[name, value]):
            engines = " or ".join(f"engine=zero{able}" for able in stages)
            raise ConfigurationError(key, value, f"engine.zero_stage={stage} can't; choose {engines}, or null")
        if value == "nvme" and config.engine.offload_folder is None:
            remedy = f"{key}=nvme needs one: give a folder of a local disk"
            raise ConfigurationError("engine.offload_folder", None, remedy)
    if config.engine.get("offload_param") is not None and config.engine.offload_optimizer is None:
        remedy = "with engine.offload_param the optimizer's state is off the GPU too; choose cpu or nvme"
        raise ConfigurationError("engine.offload_optimizer", None, remedy)


def check_room(config: DictConfig, shapes: Mapping[str, Mapping[str, list[int]]], world: int) -> None:
    """Raises ConfigurationError when this machine has no such folder, can't write to it or hasn't room there for its
    ranks. shapes: of the trained parameters, by engine and name."""
    needed = bytes_needed(config, shapes, world)
    if not needed:
        return
    key, folder = "engine.offload_folder", Path(config.engine.offload_folder)
    if not folder.is_dir():
        raise ConfigurationError(key, folder, "no such folder on this machine; make it, or name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(key, folder, "it can't be written to; change its permissions, or name another")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigurationError(
            key,
            folder,
            f"{needed / 1e9:.3g} GB are needed there and {free / 1e9:.3g} GB are free; name a folder with more room, "
            "take engine.offload_optimizer=cpu, or more nodes",
        )


def bytes_needed(config: DictConfig, shapes: Mapping[str, Mapping[str, list[int]]], world: int) -> int:
    """Bytes that the ranks of one machine come to keep in files: of each parameter's share 4 for the fp32 weight, 4 for
    its gradient, 8 for Adam's moments and 4 for each average; and the weight that is computed with."""
    engine = config.engine
    each = 0
    if engine.get("offload_optimizer") == "nvme":
        each += 16 + 4 * len(config.optimizer.averages)
    if engine.get("offload_param") == "nvme":
        each += ELEMENT_BYTES[engine.precision]
    elements = sum(math.prod(shape) for of_engine in shapes.values() for shape in of_engine.values())
    return each * elements * ranks_here(world) // world


def ranks_here(world: int) -> int:
    """Of so many ranks, those on this machine, as the launcher tells; all of them before there is one."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return max(1, world // int(os.environ.get("SLURM_STEP_NUM_NODES", 1)))
