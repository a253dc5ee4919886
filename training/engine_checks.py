"""Whether the engine's settings can work together, and on this machine, before any process group starts."""

from __future__ import annotations

import os
import shutil

from omegaconf import DictConfig

from training.errors import ConfigurationError


def check_engine(config: DictConfig) -> None:
    """Raises ConfigurationError for settings of the engine that can't work together."""
    if config.engine.compile is not None and config.engine.zero_stage == 3:
        remedy = "ZeRO 3 gathers the weights layer by layer, which torch.compile can't follow"
        raise ConfigurationError("engine.compile", config.engine.compile, f"{remedy}; choose engine=zero2 or null")


def check_machine(config: DictConfig) -> None:
    """Raises ConfigurationError for settings of the engine that need what this machine doesn't have."""
    import torch

    on_gpu = torch.cuda.is_available()
    if config.engine.precision == "fp16" and not on_gpu and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise ConfigurationError("engine.precision", "fp16", "this machine's processor can't; choose bf16 or fp32")
    if config.engine.compile is None:
        return
    wanted = _compilers(on_gpu)
    if not any(shutil.which(compiler) for compiler in wanted):
        remedy = f"torch.compile needs {' or '.join(wanted)}, and there is none; install it, or name another"
        variable = "CC" if on_gpu else "CXX"
        raise ConfigurationError("engine.compile", config.engine.compile, f"{remedy} in {variable}; or set it to null")


def _compilers(on_gpu: bool) -> list[str]:
    """The compilers that torch.compile looks for: of C++ for CPUs, and of C for what starts a GPU's kernels."""
    if on_gpu:
        return [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return [os.environ.get("CXX", "g++")]
