"""Which blocks are computed again, and that nothing but memory and time tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from models.activation_checkpointing import ActivationCheckpointing
from models.autoencoder import AutoencoderKL
from models.conditioners.text_transformer import TextTransformer

BLOCKS = ("down.0", "down.1", "down.10", "middle", "decoder.levels.0")


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (None, []),
        (False, []),
        ([], []),
        (True, BLOCKS),
        (["down.1"], ["down.1"]),
        (["down"], BLOCKS[:3]),
        (["decoder", "middle"], BLOCKS[3:]),
    ],
)
def test_a_name_chooses_a_block_or_all_within_it(choice: bool | Sequence[str] | None, chosen: Sequence[str]) -> None:
    assert ActivationCheckpointing(choice, BLOCKS).chosen == set(chosen)


@pytest.mark.parametrize("choice", [["down.2"], ["dow"], ["middle", "up"], "down", ["levels"], [""]])
def test_other_names_are_told_with_the_choices(choice: Sequence[str]) -> None:
    with pytest.raises(ValueError, match=r"choose true, or some of down, down\.0, .* decoder\.levels|a list of names"):
        ActivationCheckpointing(choice, BLOCKS)


def test_a_module_s_own_names_are_without_its() -> None:
    assert ActivationCheckpointing(["down"], BLOCKS).within("down").chosen == {"0", "1", "10"}
    assert ActivationCheckpointing(["middle"], BLOCKS).within("down").chosen == set()


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layer(x).sin()


def test_chosen_blocks_run_once_more_and_only_for_a_gradient() -> None:
    for name, runs in (("middle", 2), ("down.0", 1)):
        block = Counted()
        checkpointing = ActivationCheckpointing(["middle"], BLOCKS)
        checkpointing.run(name, block, torch.ones(1, 2)).sum().backward()
        assert block.runs == runs
        with torch.no_grad():
            checkpointing.run(name, block, torch.ones(1, 2))
        assert block.runs == runs + 1


def text(choice: bool | list[str] | None) -> tuple[nn.Module, Tensor]:
    model = TextTransformer(100, 7, 16, 3, 2, 8, activation_checkpointing=choice)
    return model, model(torch.arange(14).view(2, 7)).square().sum()


def first_stage(choice: bool | list[str] | None) -> tuple[nn.Module, Tensor]:
    model = AutoencoderKL(32, [1, 2], 1, 4, activation_checkpointing=choice)
    latents, penalty, *_ = model.regularised(torch.rand(2, 3, 16, 16), torch.rand(2, 4, 8, 8))
    return model, model.decode(latents).square().sum() + penalty


@pytest.mark.parametrize(
    ("build", "choice"),
    [
        (text, True),
        (text, ["blocks.1"]),
        (first_stage, True),
        (first_stage, ["encoder.middle", "decoder.levels"]),
    ],
)
def test_gradients_are_the_same(
    build: Callable[[bool | list[str] | None], tuple[nn.Module, Tensor]], choice: bool | list[str]
) -> None:
    found = []
    for chosen in (None, choice):
        torch.manual_seed(0)
        model, loss = build(chosen)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
