"""Laws of classifying by the noise that a model foretells."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation.diffusion_classifier import DiffusionClassifier, Stage, timesteps
from evaluation.generate import ImageModel
from evaluation.run import load_run
from models.autoencoder import IdentityAutoencoder
from models.conditioners import Condition, Conditioners
from models.latent_diffusion import FirstStage
from models.prediction import PREDICTIONS
from models.schedule import linear

SIZE = 4
CLASSES = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Knowing(nn.Module):
    """The perfect denoiser of classes that are one picture each: it explains z_t by its class's. Counts its work."""

    def __init__(self) -> None:
        super().__init__()
        self.device_tells = nn.Parameter(torch.zeros(1))
        self.seen = 0

    def condition(self, inputs: Mapping[str, Tensor], given: Condition) -> Condition:
        return Condition(labels=inputs["caption"][:, 0])

    def denoise(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.labels is not None
        self.seen += len(z_t)
        alpha, sigma = SCHEDULE.roots(t, z_t)
        return (z_t - alpha * CLASSES[condition.labels]) / sigma


SCHEDULE = linear(0.00085, 0.012)


def knowing() -> tuple[ImageModel, Knowing]:
    model = Knowing()
    first_stage = FirstStage(IdentityAutoencoder(), 1.0)
    frozen = Conditioners({})
    nothing = {"caption": torch.tensor([0])}
    return ImageModel(model, frozen, first_stage, SCHEDULE, PREDICTIONS["epsilon"], nothing), model  # type: ignore[arg-type]


def pictures() -> Tensor:
    """One of each class, with a little noise."""
    noise = torch.randn(CLASSES.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    return ((CLASSES + noise).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


TOKENS = torch.arange(6)[:, None, None]


def test_a_perfect_model_is_always_right_and_prunes_what_it_needs_not_see() -> None:
    image_model, network = knowing()
    classifier = DiffusionClassifier(image_model, TOKENS, [Stage(4, 3), Stage(10, 1)], 0, "l2", 7)
    for number, image in enumerate(pictures()):
        network.seen = 0
        assert classifier.choose(image, number, range(6)) == number
        assert network.seen == 6 * 4 + 3 * 6
    # The place of the choice, whatever the order of the candidates and however many there are.
    assert classifier.choose(pictures()[2], 2, [5, 0, 2]) == 2
    assert classifier.choose(pictures()[2], 2, [2, 4]) == 0


def test_stages_choose_by_the_errors_of_all_pairs_so_far(tiny_run: Path) -> None:
    """With the errors themselves: pairs are shared by candidates, and a stage goes on where the last one ended."""
    loaded = load_run(tiny_run, "cpu", "raw")
    words = ["red apple", "flag of Japan", "a cat", "green", "two birds"]
    tokens = torch.stack([loaded.inputs["caption"].parse(word)[None] for word in words])
    image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def made(*stages: Stage, batch_size: int = 64) -> DiffusionClassifier:
        return DiffusionClassifier(loaded.image_model, tokens, stages, 5, "l2", batch_size)

    whole = made(Stage(8, 1))
    errors = whole.errors(image, 3, range(5))
    torch.testing.assert_close(made(Stage(8, 1), batch_size=3).errors(image, 3, range(5)), errors)
    torch.testing.assert_close(whole.errors(image, 3, [4, 1]), errors[[4, 1]])  # alone or among others
    assert not torch.allclose(whole.errors(image, 4, range(5)), errors)  # another image, other noise
    assert whole.choose(image, 3, range(5)) == int(errors.argmin())
    staged = made(Stage(2, 3), Stage(8, 1))
    # Whole is 8 pairs, the first two of which are the first stage's.
    latent = whole._encode(image)
    first = whole._errors(latent, 3, range(5), 0, 2).sum(1)
    kept = first.argsort()[:3]
    assert staged.choose(image, 3, range(5)) == int(kept[errors[kept].argmin()])


def test_templates_take_turns_without_more_work() -> None:
    image_model, network = knowing()
    wrong_every_other_time = torch.stack([torch.arange(6), torch.arange(6).roll(1)], dim=1)[..., None]
    classifier = DiffusionClassifier(image_model, wrong_every_other_time, [Stage(8, 1)], 0, "l2", 64)
    image = pictures()[3]
    found = classifier.errors(image, 0, range(6))
    assert network.seen == 6 * 8
    single = DiffusionClassifier(image_model, TOKENS, [Stage(8, 1)], 0, "l2", 64).errors(image, 0, range(6))
    # Class 3 is right in the even pairs, class 4, whose second template is class 3's first, in the odd ones.
    assert set(found.argsort()[:2].tolist()) == {3, 4}
    assert single.argmin() == 3


@pytest.mark.parametrize("count", [1, 2, 16, 50, 500])
def test_the_first_timesteps_are_spread_as_all_are(count: int) -> None:
    found = timesteps(count, 1000)
    assert len(set(found.tolist())) == count
    assert bool(((found >= 0) & (found < 1000)).all())
    for some in {1, 2, 4, 16, count}:
        first = found[: min(some, count)].sort().values
        gaps = torch.cat([first[:1], first.diff(), 1000 - first[-1:]])
        assert int(gaps.max()) <= 2 * 1000 / len(first) + 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one stage"),
        ([Stage(0, 1)], "at least one pair"),
        ([Stage(5, 2)], "it must keep 1"),
        ([Stage(5, 2), Stage(5, 1)], "more pairs"),
        ([Stage(5, 1), Stage(9, 1)], "keep fewer"),
    ],
)
def test_stages_that_cannot_be_are_named(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionClassifier(knowing()[0], TOKENS, stages, 0, "l2", 1)
    with pytest.raises(ValueError, match="loss=l3"):
        DiffusionClassifier(knowing()[0], TOKENS, [Stage(1, 1)], 0, "l3", 1)
