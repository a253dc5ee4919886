"""Laws of conditions, and of the conditioners without a file of their own."""

import pytest
import torch

from models.conditioners import NOTHING, Condition, Conditioners, joined, stacked
from models.conditioners.class_label import ClassLabel
from models.conditioners.class_token import ClassToken
from models.conditioners.image import Image
from models.conditioners.spatial import SpatialRescaler


def context(value: float, tokens: int = 2) -> Condition:
    return Condition(context=torch.full((3, tokens, 4), value))


def test_joined_contexts_follow_one_another_and_channels_lie_on_top_of_one_another() -> None:
    channels = Condition(channels=torch.ones(3, 2, 5, 5))
    whole = joined([context(1.0), NOTHING, channels, context(2.0, 1), channels])
    assert whole.context is not None and whole.context[0, :, 0].tolist() == [1.0, 1.0, 2.0]
    assert whole.channels is not None and whole.channels.shape == (3, 4, 5, 5)
    assert joined([]) == NOTHING


def test_stacked_conditions_are_those_of_all_samples() -> None:
    both = stacked([context(1.0).repeated(3), context(2.0)])
    assert both.context is not None and both.context[:, 0, 0].tolist() == [1.0] * 3 + [2.0] * 3
    one = Condition(context=torch.zeros(1, 2, 4), labels=torch.tensor([5])).repeated(3)
    assert one.labels is not None and one.labels.tolist() == [5, 5, 5]


def test_conditions_that_cannot_be_put_together_are_refused() -> None:
    with pytest.raises(ValueError, match="parts"):
        stacked([context(1.0), NOTHING])
    labels = Condition(labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="one"):
        joined([labels, labels])
    with pytest.raises(ValueError, match=r"\['label'\] are missing; there are \['caption'\]"):
        Conditioners({"label": ClassLabel()})({"caption": torch.zeros(1)})


def test_only_floating_parts_change_their_dtype() -> None:
    condition = Condition(context=torch.zeros(1, 1, 4), labels=torch.tensor([2])).to(torch.bfloat16)
    assert condition.context is not None and condition.context.dtype == torch.bfloat16
    assert condition.labels is not None and condition.labels.dtype == torch.int64


def test_a_class_token_is_its_row_of_the_embedding() -> None:
    conditioner = ClassToken(5, 8)
    given = conditioner(torch.tensor([4, 0]))
    assert given.shape == (2, 1, 8)
    assert torch.equal(given[:, 0], conditioner.embedding.weight[[4, 0]])
    assert sum(p.numel() for p in ClassToken(1001, 512).parameters()) == 512_512  # as published


def test_images_are_scaled_to_the_range_of_the_model() -> None:
    given = Image()(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    assert given.flatten().tolist() == [-1.0, 1.0]


def test_the_rescaler_averages_one_hot_maps_and_leaves_out_what_has_no_class() -> None:
    conditioner = SpatialRescaler(classes=3, channels=2, halvings=1)
    maps = torch.tensor([[[0, 0, 1, 255], [0, 0, 2, 255]]], dtype=torch.uint8)  # [1, 2, 4]
    shares = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.25]])  # of the two halves
    expected = torch.einsum("oc,wc->ow", conditioner.mix.weight.flatten(1), shares)
    torch.testing.assert_close(conditioner(maps)[0, :, 0], expected)
    published = SpatialRescaler(classes=182, channels=3, halvings=2)
    assert sum(p.numel() for p in published.parameters()) == 546
    assert published(torch.zeros(1, 64, 64, dtype=torch.int64)).shape == (1, 3, 16, 16)
