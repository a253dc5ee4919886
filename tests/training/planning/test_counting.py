"""Counts on the meta device are those that a person makes by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.unet_layers import ResidualBlock
from training.planning.counting import Counter, Pass, count_inference, count_training, extrapolated

META = torch.device("meta")
BATCH, CHANNELS, SIDE = 2, 64, 16


def test_tensors_count_while_they_live_even_if_only_a_gradient_will_need_them() -> None:
    x = torch.empty(1000, device=META, requires_grad=True)
    with Counter() as counter:
        y = x.exp().exp()  # float32; the inner one lives in the graph alone
        assert counter.live_bytes == 2 * 4000
        y = y[:10]  # a view of the same bytes
        assert counter.live_bytes == 2 * 4000
        del y
        assert (counter.live_bytes, counter.peak_bytes) == (0, 2 * 4000)


def residual_block(batch: int) -> Pass:
    with META:
        block = ResidualBlock(CHANNELS, CHANNELS, 4 * CHANNELS, 0.0, False)
        x = torch.empty(batch, CHANNELS, SIDE, SIDE)
        embedding = torch.empty(batch, 4 * CHANNELS)
    return count_training(block, lambda: block(x, embedding).sum())


def test_a_residual_block_has_the_flops_of_its_convolutions_and_its_projection() -> None:
    found = residual_block(BATCH)
    convolution = 2 * BATCH * SIDE**2 * CHANNELS**2 * 9
    projection = 2 * BATCH * 4 * CHANNELS * CHANNELS
    assert found.forward_flops == 2 * convolution + projection
    # A convolution has two products of its size in the backward pass; the embedding needs no gradient, its weight does.
    assert found.backward_flops == 4 * convolution + projection


def test_attention_keeps_no_weights_and_has_two_products_forward_and_four_backward() -> None:
    tokens, heads, width = 1024, 8, 40
    layer = nn.Linear(width, 3 * width, device=META)
    x = torch.empty(1, heads, tokens, width, device=META)

    def loss() -> Tensor:
        return F.scaled_dot_product_attention(*layer(x).chunk(3, dim=-1)).sum()

    found = count_training(layer, loss)
    projection = 2 * heads * tokens * width * 3 * width
    product = 2 * heads * tokens**2 * width
    assert found.forward_flops == projection + 2 * product
    assert found.backward_flops == projection + 4 * product
    assert found.activation_bytes < 4 * heads * tokens**2


def test_gradients_are_counted_apart_and_come_last_layer_first() -> None:
    layers = nn.Sequential(nn.Linear(100, 50, device=META), nn.Linear(50, 10, device=META))
    found = count_training(layers, lambda: layers(torch.empty(3, 100, device=META)).sum())
    assert len(found.moments) == 4
    assert found.moments[0].gradients_done == 0
    assert found.moments[2].gradients_done == 50 * 10 + 10
    # The hidden layer [3, 50] is kept for the second layer's weight; the output [3, 10] not.
    assert found.moments[0].activation_bytes >= 4 * 3 * 50


def test_inference_keeps_nothing() -> None:
    layers = nn.Sequential(*[nn.Linear(100, 100, device=META) for _ in range(9)])
    found = count_inference(layers, lambda: layers(torch.empty(8, 100, device=META)))
    assert found.forward_flops == 9 * 2 * 8 * 100 * 100
    assert found.activation_bytes == 3 * 4 * 8 * 100  # the input, and a layer's input and output


def test_what_one_and_two_samples_need_tells_what_five_do() -> None:
    one, two, five = (residual_block(batch) for batch in (1, 2, 5))
    found = extrapolated(one, two, 5)
    assert (found.forward_flops, found.backward_flops) == (five.forward_flops, five.backward_flops)
    for a, b in zip(found.moments, five.moments, strict=True):
        assert a.gradients_done == b.gradients_done
        assert abs(a.activation_bytes - b.activation_bytes) <= 0.02 * b.activation_bytes
