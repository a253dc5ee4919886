"""Whether the engine's settings can work on this machine, before any process group starts."""

from __future__ import annotations

import os
import shutil

from omegaconf import DictConfig

from training.errors import ConfigurationError


def check_engine(config: DictConfig) -> None:
    """Raises ConfigurationError for settings of the engine that can't work together, or not here."""
    mode = config.engine.compile
    if mode is None:
        return
    if config.engine.zero_stage == 3:
        remedy = "ZeRO 3 gathers each layer's weights as it comes to it, which torch.compile can't follow"
        raise ConfigurationError("engine.compile", mode, f"{remedy}; choose engine=zero2 or null")
    wanted = _compilers()
    if not any(shutil.which(compiler) for compiler in wanted):
        remedy = f"torch.compile needs {' or '.join(wanted)}, and there is none; install it, or name another in CXX"
        raise ConfigurationError("engine.compile", mode, f"{remedy}; or set it to null")


def _compilers() -> list[str]:
    """The compilers that torch.compile looks for: of C++ for CPUs, and of C for what starts a GPU's kernels."""
    import torch

    if torch.cuda.is_available():
        return [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return [os.environ.get("CXX", "g++")]
