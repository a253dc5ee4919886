"""Outputs of the published implementation, and the rule that its weights were drawn by."""

import json
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-4
"""Absolute agreement with the published implementation, float32."""


class Golden:
    """The files of tests/golden."""

    folder = Path(__file__).parents[1] / "golden"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Configurations, names and shapes of the small models."""
        return json.loads((self.folder / "manifest.json").read_text())

    @cached_property
    def released(self) -> dict[str, Any]:
        """Configurations, names and shapes of the published 1.45B text-to-image model."""
        return json.loads((self.folder / "released_text2img.json").read_text())

    @cached_property
    def released_first_stages(self) -> dict[str, Any]:
        """Configurations, names, shapes and parameter counts of the published first stages."""
        return json.loads((self.folder / "released_first_stages.json").read_text())

    @cached_property
    def released_unets(self) -> dict[str, Any]:
        """Of the other published models: configurations, names, shapes and parameter counts of the UNets, and of a
        conditioner where it is a transformer."""
        return json.loads((self.folder / "released_unets.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Inputs and outputs of a small model."""
        return load_file(self.folder / f"{name}.safetensors")

    def model(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Published configuration and weights of a small model: each entry is drawn from its name."""
        entry = self.manifest[name]
        weights = {}
        for name, shape in entry["state_dict"].items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            weights[name] = torch.randn(shape, generator=generator) * 0.05
            if len(shape) == 1 and name.endswith("weight"):
                weights[name] += 1
        return entry["config"], weights

    def agree(self, ours: Tensor, published: Tensor) -> None:
        torch.testing.assert_close(ours, published, rtol=0.0, atol=TOLERANCE)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()
