"""Laws of decoding in tiles."""

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import AutoencoderKL, AutoencoderVQ, IdentityAutoencoder
from models.latent_diffusion import FirstStage
from models.tiling import decode_tiled


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("f", [1, 2, 8])
def test_weights_sum_to_one_everywhere(f: int) -> None:
    def white(z: Tensor) -> Tensor:
        return torch.ones(1, 1, f * z.shape[2], f * z.shape[3])

    for tile, size in product((1, 2, 5, 8), range(1, 30)):
        for overlap in range(tile // 2 + 1):
            image = decode_tiled(white, torch.zeros(1, 4, 7, size), f, tile, overlap)
            assert image.shape == (1, 1, f * 7, f * size)
            torch.testing.assert_close(image, torch.ones_like(image))


def local_decoder() -> nn.Sequential:
    """f = 2; an image pixel sees 2.5 latent pixels in each direction, and zeros beyond the edge."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Upsample(scale_factor=2.0),
        nn.Conv2d(8, 3, 3, padding=1),
    ).requires_grad_(False)


@pytest.mark.parametrize("shape", [(2, 4, 41, 24), (1, 4, 24, 25), (1, 4, 60, 47)])
def test_a_local_decoder_gives_the_same_image_where_a_quarter_of_the_overlap_covers_what_it_sees(
    shape: tuple[int, int, int, int],
) -> None:
    decode, z = local_decoder(), noise(*shape)
    torch.testing.assert_close(decode_tiled(decode, z, 2, 24, 12), decode(z), rtol=0, atol=1e-6)


def test_without_overlap_tiles_show() -> None:
    decode, z = local_decoder(), noise(1, 4, 48, 48)
    assert (decode_tiled(decode, z, 2, 24, 0) - decode(z)).abs().max() > 0.1


AUTOENCODERS = {
    "kl": lambda: AutoencoderKL(16, (1, 2), 1, 4),
    "vq": lambda: AutoencoderVQ(16, (1, 2), 1, 4, codebook_entries=32),
    "identity": lambda: IdentityAutoencoder(4),
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_what_fits_into_one_tile_is_decoded_as_it_was(kind: str) -> None:
    torch.manual_seed(0)
    first_stage, z = FirstStage(AUTOENCODERS[kind](), scale=0.5), noise(1, 4, 16, 12)
    before = z.clone()
    for tile in (16, 17, 100):
        assert torch.equal(first_stage.decode(z, tile), first_stage.decode(z))
    assert torch.equal(z, before)


def test_tiles_of_an_identity_are_its_latents() -> None:
    first_stage, z = FirstStage(IdentityAutoencoder(3), scale=0.5), noise(2, 3, 20, 33)
    torch.testing.assert_close(first_stage.decode(z, tile=8), (2 * z).clamp(-1, 1), rtol=0, atol=1e-6)


def test_what_a_tile_drifts_by_is_spread_over_half_the_overlap() -> None:
    """A decoder that, as normalisation does, takes the mean of what it sees off: neighbours differ by a constant."""

    def decode(z: Tensor) -> Tensor:
        return F.interpolate(z - z.mean(), scale_factor=8.0, mode="bilinear")

    z = torch.linspace(0, 1, 64).expand(1, 1, 16, 64)
    own = decode(z).diff(dim=-1).max()  # from a pixel to the next, as the image has it
    for overlap in (2, 4, 8):
        drift = 16 / 63  # at most a tile's width of z lies between the means of two neighbours
        step = decode_tiled(decode, z, 8, 16, overlap).diff(dim=-1).abs().max()
        assert step < own + drift / (8 * overlap / 2)
    assert decode_tiled(decode, z, 8, 16, 0).diff(dim=-1).abs().max() > 0.9 * drift


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (8, 5), (8, -1)])
def test_settings_out_of_range_are_named(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"tile={tile}, overlap={overlap}: give"):
        decode_tiled(lambda z: z, torch.zeros(1, 3, 16, 16), 1, tile, overlap)


MEMORY = """
import torch
from models.autoencoder import AutoencoderKL
from models.latent_diffusion import FirstStage
from tests.resident import resident

def peak():
    return resident("VmHWM") / 2**20

torch.set_num_threads(1)
first_stage = FirstStage(AutoencoderKL(32, (1, 1), 1, 4, patch_size=2, middle_attention=False), scale=1.0)
first_stage.decode(torch.zeros(1, 4, 8, 8))
start = peak()
first_stage.decode(torch.zeros(1, 4, 64, 64))
tile = peak()
image = first_stage.decode(torch.zeros(1, 4, 256, 256), tile=64)
tiled = peak()
assert image.shape == (1, 3, 1024, 1024)
first_stage.decode(torch.zeros(1, 4, 256, 256))
print(tile - start, tiled - start, peak() - start)
"""


@pytest.mark.slow
def test_a_megapixel_takes_the_memory_of_one_tile_and_of_the_image() -> None:
    # Else glibc keeps freed blocks of up to 32 MiB, and what is measured is how they lie.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    tile, tiled, whole = map(float, done.stdout.split())
    image = 3 * 1024 * 1024 * 4 / 2**20
    assert tiled < tile + image + 8, f"{tiled:.0f} MiB; one tile takes {tile:.0f}, the image {image:.0f}"
    assert whole > 4 * tiled, f"undivided it takes {whole:.0f} MiB: what is measured must see the difference"
