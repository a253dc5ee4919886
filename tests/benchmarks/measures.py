"""The measures' speed and memory, printed beside what is required of them.

python -m tests.benchmarks.measures                  # all of it
python -m tests.benchmarks.measures frechet          # or some of frechet, precision_recall, fid
python -m tests.benchmarks.measures fid --images 300 # less of it; --share 25: a part of precision and recall
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from evaluation.features import load_features
from evaluation.image_folder import ImageFolder
from evaluation.measure import measure
from evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from evaluation.metrics.metric import Alone, Pictures, Sizes
from evaluation.metrics.precision_recall import PrecisionRecall
from tests.resident import resident

THREADS = 2
WIDTH = 2048
"""Features of the FID network."""


def line(what: str, measured: str, required: str) -> None:
    """Prints a figure beside what is required."""
    print(f"{what:<58}{measured:>34}   {required}", flush=True)


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """The result, and the seconds that it took."""
    started = time.perf_counter()
    found = run()
    return found, time.perf_counter() - started


def statistics(count: int, seed: int) -> FeatureStatistics:
    """Of `count` correlated features whose deviations span two orders of magnitude."""
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / WIDTH**0.5
    generator = torch.Generator().manual_seed(seed)
    found = FeatureStatistics(WIDTH)
    deviations = torch.logspace(0, -2, WIDTH, dtype=torch.float64)
    found.update(torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * deviations @ mixing)
    return found


def by_matrix_root(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The distance as it is commonly computed, through scipy's root of a matrix."""
    from scipy.linalg import sqrtm

    difference = a.mean - b.mean
    root: Tensor = torch.from_numpy(sqrtm((a.covariance @ b.covariance).numpy()).real)
    return float(difference @ difference + a.covariance.trace() + b.covariance.trace() - 2 * root.trace())


def measure_frechet(arguments: argparse.Namespace) -> None:
    """Fréchet distance of full rank, and of fewer samples than features."""
    for what, count, exact in (("full rank", 4 * WIDTH, True), ("1,000 samples", 1000, False)):
        a, b = statistics(count, 1), statistics(count, 2)
        ours, seconds = timed(lambda a=a, b=b: frechet_distance(a, b))
        theirs, their_seconds = timed(lambda a=a, b=b: by_matrix_root(a, b))
        line(f"Fréchet distance, {WIDTH} features, {what}: time", f"{seconds:.2f} s", "")
        line("  through scipy's sqrtm", f"{their_seconds:.2f} s", "")
        line("  times faster", f"{their_seconds / seconds:.1f} x", "at least 3.0 x")
        # Without full rank the root of the product isn't defined, and sqrtm answers with whatever rounding makes of it.
        line("  relative difference", f"{abs(ours / theirs - 1):.1e}", "at most 1e-06" if exact else "")


def peak_gib() -> float:
    """The most memory that this process has had, in GiB."""
    return resident("VmHWM") / 2**30


def measure_precision_recall(arguments: argparse.Namespace) -> None:
    """Precision and recall of 50,000 images against 50,000, in a process of its own, so that the memory is theirs."""
    command = [sys.executable, "-m", "tests.benchmarks.measures", "--precision-recall-of", str(arguments.features)]
    command += ["--share", str(arguments.share)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, gib, before = (float(word) for word in done.stdout.split())
    what = f"Precision and recall, {arguments.features:,} x {arguments.features:,}, {WIDTH} features"
    line(f"{what}: time", f"{seconds:.0f} s" + (f" (1/{arguments.share} of it)" if arguments.share > 1 else ""), "")
    line("  peak memory of the process", f"{gib:.2f} GiB", "at most 2.00 GiB")
    line("  of it for the program itself", f"{before:.2f} GiB", "")


class DrawnFeatures:
    """Features that no network made: each call draws new ones, whatever the pictures."""

    description = "random numbers"
    widths: Mapping[str, int] = {"features": WIDTH}
    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def outputs(self, pictures: Pictures) -> Mapping[str, Tensor]:
        """float32 [B, WIDTH], 0 or more."""
        return {"features": torch.randn(len(pictures.numbers), WIDTH, generator=self._generator).relu()}


def print_precision_recall(count: int, share: int) -> None:
    """In the process of `measure_precision_recall`: seconds, peak GiB, GiB before. share: see `main`."""
    before = peak_gib()
    generated, real = DrawnFeatures(seed=0), DrawnFeatures(seed=1)
    metric = PrecisionRecall(generated, "features", Sizes(count, count), count, neighbours=3, resamples=0)
    for numbers in torch.arange(count).split(500):
        pictures = Pictures(numbers, torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(len(numbers), -1, -1, -1))
        metric.generated(pictures, generated.outputs(pictures))
        metric.real(numbers, real.outputs(pictures))
    started = time.perf_counter()
    ranks = Alone(0, share)
    metric.reduce(ranks)
    metric.compute(ranks)
    print(time.perf_counter() - started, peak_gib(), before)


def random_inception(path: Path) -> None:
    """Writes a state dict of torch-fidelity's network with random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object, **named: object) -> None:  # type: ignore[override]
            """Leaves the weights as they were drawn."""

    torch.manual_seed(0)
    torch.save({}, path)
    state = Empty("random", ["2048"], str(path)).state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
    torch.save(state, path)


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """JPEG files of 256 x 256: coloured clouds with grain."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, 256, mode="bicubic")[0]
        grain = 0.05 * torch.randn(3, 256, 256, generator=generator)
        image = (255 * (fine + grain)).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(image.numpy()).save(folder / f"{number:05d}.jpg", quality=95)


def measure_fid(arguments: argparse.Namespace) -> None:
    """FID and IS of a folder against another by our reading and network, and by torch-fidelity's."""
    from torch_fidelity import calculate_metrics

    count, others = arguments.images, max(50, arguments.images // 20)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        weights = root / "inception.pth"
        random_inception(weights)
        write_pictures(root / "generated", count, 0)
        write_pictures(root / "real", others, 1)
        started = time.perf_counter()
        features = load_features("inception", str(weights), sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
        generated, real = (ImageFolder(root / name, None, 32, seed=None) for name in ("generated", "real"))
        found = measure(generated.batches(), real.batches(), features, count)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        theirs = calculate_metrics(
            input1=str(root / "generated"),
            input2=str(root / "real"),
            fid=True,
            isc=True,
            cuda=False,
            cache=False,
            verbose=False,
            batch_size=32,
            samples_find_ext="jpg",
            feature_extractor_weights_path=str(weights),
        )
        their_seconds = time.perf_counter() - started
    rate, their_rate = (count + others) / seconds, (count + others) / their_seconds
    line(f"FID and IS of a folder of {count:,} images", f"{rate:.2f} images/s", "")
    line("  torch-fidelity", f"{their_rate:.2f} images/s", "")
    line("  times faster", f"{rate / their_rate:.2f} x", "at least 1.20 x")
    difference = abs(found.frechet / theirs["frechet_inception_distance"] - 1)
    line("  relative difference of FID", f"{difference:.1e}", "at most 1e-04")
    difference = abs(found.score / theirs["inception_score_mean"] - 1)
    line("  relative difference of the Inception Score", f"{difference:.1e}", "at most 1e-04")


MEASURES = {"frechet": measure_frechet, "precision_recall": measure_precision_recall, "fid": measure_fid}


def main() -> None:
    """Prints a table: what, measured, required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", default=[], choices=[*MEASURES, []], metavar="MEASURE")
    parser.add_argument("--images", type=int, default=2000, help="in the folder that FID and IS are computed of")
    parser.add_argument("--features", type=int, default=50_000, help="on either side of precision and recall")
    parser.add_argument(
        "--share", type=int, default=1, help="do what one of so many ranks would do of precision and recall"
    )
    parser.add_argument("--precision-recall-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.precision_recall_of is not None:
        print_precision_recall(arguments.precision_recall_of, arguments.share)
        return
    for name in arguments.measures or MEASURES:
        MEASURES[name](arguments)


if __name__ == "__main__":
    main()
