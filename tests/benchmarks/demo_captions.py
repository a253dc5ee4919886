"""Whether the demo's samples are what their captions say, told by the nearest real pictures and by their colours.

python -m tests.benchmarks.demo_captions --run runs/demo    # three to six minutes; the run's own shards are read

Kinds: each held-out caption is drawn once, and some that were trained on. A picture is a flag, a person, a face or a
heart when most of its five nearest training pictures (EfficientNet-Lite0 features) are. Beside the samples: the real
pictures of these captions, which say how far the features can tell at all, and the samples judged by another caption's
kind, which is chance.
Colours: prompts that name one, and the hue of the strongest coloured quarter of the picture's pixels.
"""

from __future__ import annotations

import argparse
import colorsys
import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import Tensor

from data.index import Index
from data.loader import Loader
from data.mixture import IndexedSource
from data.store import EmbeddedStore
from data.stream import Storage
from evaluation.features import FeatureNetwork, load_features
from evaluation.generate import generate
from evaluation.run import LoadedRun, load_run
from models.samplers.ddim import ddim
from training.data_sources import SourceSettings, held_out_source, sources_of

PEOPLE = {"person", "people", "man", "men", "woman", "women", "boy", "girl", "child", "baby", "prince", "princess"}
HUES = {"red": 0.0, "orange": 0.08, "yellow": 0.15, "green": 0.36, "blue": 0.56, "purple": 0.78}
THINGS = ("heart", "circle", "square")
SEEDS = 4
KINDS = ("flag", "person", "face", "heart", "other")
SEEN_CAPTIONS = 24
"""Of each kind, of those that were trained on."""
NEIGHBOURS = 5


def kind_of(caption: str) -> str:
    """flag, heart, face, person or other, by the words of a caption."""
    words = set(caption.replace(",", " ").split())
    if caption.startswith("flag of"):
        return "flag"
    if "heart" in words or "hearts" in words:
        return "heart"
    if "skin" in words or words & PEOPLE:
        return "person"
    return "face" if "face" in words else "other"


def pictures(loaded: LoadedRun, sources: Sequence[SourceSettings]) -> tuple[Tensor, list[str]]:
    """All images uint8 [N, 3, H, W] and captions of some of the run's sources."""
    storage: Storage = instantiate(loaded.config.data.storage)
    images: list[Tensor] = []
    captions: list[str] = []
    for source in sources:
        index = Index.load(source.urls, storage)
        batch = Loader([IndexedSource(index)], storage, 0, loaded.image_size, {}, len(index), len(index)).step(0)
        images.append(batch.images)
        captions += batch.captions
    return torch.cat(images), captions


def features_of(network: FeatureNetwork, images: Tensor) -> Tensor:
    """Features of unit length, [N, F]."""
    found = torch.cat([network(part)[0].float() for part in images.split(100)])
    return found / found.norm(dim=1, keepdim=True)


def judged(features: Tensor, known: Tensor, kinds: Sequence[str]) -> list[str]:
    """The commonest kind among the nearest known pictures of each."""
    nearest = (features @ known.T).topk(NEIGHBOURS, dim=1).indices
    return [Counter(kinds[i] for i in row).most_common(1)[0][0] for row in nearest.tolist()]


def draw(loaded: LoadedRun, captions: list[str], seeds: list[int], scale: float) -> Tensor:
    """One picture for each caption."""
    inputs = {"caption": torch.stack([loaded.inputs["caption"].parse(caption) for caption in captions])}
    shape = loaded.image_model.first_stage.latent_shape(loaded.image_size, loaded.image_size)
    return generate(loaded.image_model, ddim, inputs, seeds, shape, 25, scale, 50)


def colour_of(image: Tensor) -> str | None:
    """The named hue nearest to the most saturated quarter of uint8 [3, H, W]; None for a grey picture."""
    pixels = image.flatten(1).T.float() / 255  # [H * W, 3]
    saturation = pixels.amax(1) - pixels.amin(1)
    strongest = saturation.topk(len(pixels) // 4).indices
    red, green, blue = pixels[strongest].mean(0).tolist()
    hue, grey, _ = colorsys.rgb_to_hsv(red, green, blue)
    if grey < 0.15:
        return None
    return min(HUES, key=lambda name: min(abs(hue - HUES[name]), 1 - abs(hue - HUES[name])))


def some_of_each(captions: list[str], images: Tensor, kinds: Sequence[str]) -> tuple[list[str], Tensor]:
    """As many captions of each kind, evenly over all of it, and their images."""
    chosen: list[int] = []
    for kind in KINDS:
        those = [i for i, found in enumerate(kinds) if found == kind]
        chosen += those[:: max(1, len(those) // SEEN_CAPTIONS)][:SEEN_CAPTIONS]
    return [captions[i] for i in chosen], images[chosen]


def tell(name: str, wanted: Sequence[str], of_samples: Sequence[str], of_real: Sequence[str]) -> None:
    """Prints by kind how many samples and how many real pictures were taken for it, and how many are by chance."""
    print(f"{name:<20}{'number':>8}{'samples':>10}{'real':>8}{'other captions':>16}")
    for kind in KINDS:
        rows = [i for i, w in enumerate(wanted) if w == kind]
        if rows:
            shares = [sum(found[i] == kind for i in rows) / len(rows) for found in (of_samples, of_real)]
            chance = sum(found == kind for found in of_samples) / len(of_samples)
            print(f"{kind:<20}{len(rows):>8}{shares[0]:>10.0%}{shares[1]:>8.0%}{chance:>16.0%}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=5.0, help="guidance scale")
    arguments = parser.parse_args()
    loaded = load_run(arguments.run, "cpu")
    with contextlib.ExitStack() as stack:
        if loaded.config.data.embedded_store:
            os.environ.update(stack.enter_context(EmbeddedStore(arguments.run / "store")).environment)
        known_images, known_captions = pictures(loaded, sources_of(loaded.config))
        real, captions = pictures(loaded, [held_out_source(loaded.config)])
    network = load_features("efficientnet_lite0")
    known, kinds = features_of(network, known_images), [kind_of(caption) for caption in known_captions]
    for name, given, pictured in (
        ("held-out captions", captions, real),
        ("captions trained on", *some_of_each(known_captions, known_images, kinds)),
    ):
        samples = draw(loaded, given, list(range(len(given))), arguments.scale)
        of_samples = judged(features_of(network, samples), known, kinds)
        of_real = judged(features_of(network, pictured), known, kinds)
        tell(name, [kind_of(caption) for caption in given], of_samples, of_real)
    prompts = [f"{colour} {thing}" for colour in HUES for thing in THINGS for _ in range(SEEDS)]
    drawn = draw(loaded, prompts, [i % SEEDS for i in range(len(prompts))], arguments.scale)
    hits = [colour_of(image) == prompt.split()[0] for image, prompt in zip(drawn, prompts, strict=True)]
    print(f"{'colours named':<20}{len(hits):>8}{sum(hits) / len(hits):>10.0%}{'':>8}{1 / len(HUES):>16.0%}")


if __name__ == "__main__":
    main()
