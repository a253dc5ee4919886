import numpy as np

from data.masks import random_mask


def test_masks_cover_some_of_the_picture_and_follow_from_their_generator() -> None:
    shares = []
    for number in range(300):
        mask = random_mask(64, np.random.default_rng(number))
        assert mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
        assert (mask == random_mask(64, np.random.default_rng(number))).all()
        shares.append((mask == 255).mean())
    assert min(shares) > 0.005
    assert np.quantile(shares, 0.9) < 0.95
    assert 0.2 < np.mean(shares) < 0.6
