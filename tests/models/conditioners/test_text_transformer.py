"""Laws of the text transformer."""

import pytest
import torch

from models.conditioners.text_transformer import TextTransformer


@pytest.fixture()
def transformer() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(vocabulary_size=50, length=7, width=12, depth=2, heads=3, head_width=8)


def test_gradient_reaches_every_parameter(transformer: TextTransformer) -> None:
    transformer(torch.arange(14).view(2, 7)).pow(3).sum().backward()
    assert [name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_position_sees_every_other(transformer: TextTransformer) -> None:
    tokens = torch.arange(7)[None]
    changed = tokens.clone()
    changed[0, 3] = 40
    assert ((transformer(tokens) - transformer(changed)).abs().amax(2) > 0).all()


def test_order_matters(transformer: TextTransformer) -> None:
    tokens = torch.arange(7)[None]
    assert not torch.allclose(transformer(tokens).flip(1), transformer(tokens.flip(1)), atol=1e-3)


def test_shorter_captions_need_no_padding(transformer: TextTransformer) -> None:
    assert transformer(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, 12)


def test_bad_shapes_are_named(transformer: TextTransformer) -> None:
    for shape in [(2, 8), (7,)]:
        with pytest.raises(ValueError, match="at most 7"):
            transformer(torch.zeros(shape, dtype=torch.int64))
