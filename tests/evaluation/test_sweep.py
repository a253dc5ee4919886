"""A sweep measures what single evaluations would, goes on after any end, and shows which settings are best."""

import csv
import json
import random
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from data.batch import Batch
from evaluation.drawing import Samples, draw, images_key
from evaluation.errors import EvaluationError
from evaluation.kept_images import KeptImages
from evaluation.metrics.metric import Pictures
from evaluation.protocol import Protocol
from evaluation.results import read_result, read_results
from evaluation.run_measurement import RunMeasurement
from evaluation.scatter import Point, Scatter, draw_scatter, pareto_front
from evaluation.sweep import Sweep
from tests.evaluation.test_evaluate import SMALL, command
from training.distributed import Distributed

SWEEP = ("sweep.guidance_scales=[1,2.5]", "sweep.sampler_steps=[1,2]", "sweep.pictures=3")
NAMES = {f"guidance-{scale}-steps-{steps}" for scale in ("1", "2.5") for steps in (1, 2)}


class Sources(HTMLParser):
    """What a browser would fetch for a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_command_writes_tables_pictures_and_a_page(
    writable_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, f"run={writable_run}", *SMALL, f"data.shards={colours}", *SWEEP)
    folder = writable_run / "evaluation" / "openmoji-step00000070-sweep"
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["guidance_scale"], row["sampler_steps"]) for row in rows] == [
        ("1.0", "1"), ("2.5", "1"), ("1.0", "2"), ("2.5", "2"),
    ]  # fmt: skip
    distances = [float(row["Fréchet distance (EfficientNet-Lite0)"]) for row in rows]
    assert len(set(distances)) == 4
    points = json.loads((folder / "sweep.json").read_text())["points"]
    assert [point["Fréchet distance (EfficientNet-Lite0)"] for point in points] == distances
    assert {path.stem for path in folder.glob("guidance-*.json")} == NAMES
    assert {path.stem for path in folder.glob("guidance-*.png")} == NAMES
    with Image.open(folder / "guidance-1-steps-2.png") as image:
        assert image.size == (2 * 16 + 4, 2 * 16 + 4)
    sources = Sources((folder / "sweep.html").read_text()).found
    assert len(sources) == 4
    assert all(source.startswith("data:") for source in sources)
    assert "guidance 2.5, 2 steps" in capsys.readouterr().out
    assert not list((writable_run / "evaluation" / "drawn").rglob("*.png"))
    # One point is what a single evaluation measures, and may be compared with it.
    command(
        monkeypatch, f"run={writable_run}", *SMALL, f"data.shards={colours}", "protocol.guidance_scale=2.5",
        "keep_images=true",
    )  # fmt: skip
    (single,), point = read_results(writable_run), read_result(folder / "guidance-2.5-steps-1.json")
    assert (single.protocol_hash, single.images) == (point.protocol_hash, point.images)
    assert single.measured["frechet"] == pytest.approx(point.measured["frechet"], rel=1e-9)
    assert len(list((writable_run / "evaluation" / "drawn").rglob("*.png"))) == 4


def test_a_point_that_is_done_is_left_alone_unless_the_weights_are_others(
    writable_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = (f"run={writable_run}", *SMALL, f"data.shards={colours}", "sweep.guidance_scales=[1,2]")
    command(monkeypatch, *sweep)
    measured: list[float] = []
    result = RunMeasurement.result
    monkeypatch.setattr(
        RunMeasurement, "result", lambda self, p: [measured.append(p.guidance_scale), result(self, p)][1]
    )
    command(monkeypatch, *sweep)
    assert measured == []
    next((writable_run / "evaluation").rglob("guidance-2-*.json")).unlink()
    command(monkeypatch, *sweep)
    assert measured == [2.0]
    config = OmegaConf.load(writable_run / "config.yaml")
    config.schedule.beta_end = 0.02
    (writable_run / "config.yaml").unlink()
    OmegaConf.save(config, writable_run / "config.yaml")
    command(monkeypatch, *sweep)
    assert measured == [2.0, 1.0, 2.0]


class Killed(BaseException):
    """What ends a process in the middle."""


class Counted:
    """A run's samples, which notes what is drawn and may end in the middle."""

    def __init__(self, samples: Samples, until: float = float("inf")) -> None:
        self._samples, self._until = samples, until
        self.fingerprint, self.step = samples.fingerprint, samples.step
        self.drawn: list[int] = []

    samples = Samples.samples

    def images(self, protocol: Protocol, batch: Batch, batch_size: int) -> Tensor:
        if len(self.drawn) + len(batch) > self._until:
            raise Killed
        self.drawn += batch.numbers.tolist()
        return self._samples.images(protocol, batch, batch_size)


PROTOCOL = Protocol("small", "noise", "efficientnet_lite0", 12, 3, 16, 2, 1.0, splits=2, reference="file")
ALONE = Distributed(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def unconditional(kinds: Callable[[str], Path]) -> Samples:
    return Samples(kinds("unconditional KL"), PROTOCOL, ALONE)


def drawn(
    source: Counted, kept: KeptImages | None, batch_size: int, rank: int = 0, world: int = 1
) -> dict[int, Tensor]:
    ranks = Distributed(rank, world, 0, torch.device("cpu"))
    found: list[Pictures] = list(draw(source, PROTOCOL, None, batch_size, ranks, kept))
    return {n: image for pictures in found for n, image in zip(pictures.numbers.tolist(), pictures.images, strict=True)}


def test_drawing_goes_on_after_a_kill_with_the_batch_that_it_had_come_to(
    unconditional: Samples, tmp_path: Path
) -> None:
    undisturbed = drawn(Counted(unconditional), None, 3)
    kept = KeptImages(tmp_path)
    first = Counted(unconditional, until=7)
    with pytest.raises(Killed):
        drawn(first, kept, 3)
    assert first.drawn == [0, 1, 2, 3, 4, 5]
    kept.path(4).unlink()  # the kill came between two files
    kept.path(5).write_bytes(kept.path(5).read_bytes()[:40])  # and a disk lost the end of one
    second = Counted(unconditional)
    images = drawn(second, kept, 3)
    assert second.drawn == list(range(3, 12))
    assert all(torch.equal(images[n], undisturbed[n]) for n in range(12))


@pytest.mark.parametrize(("world", "batch_size"), [(2, 3), (3, 2), (1, 5)])
def test_images_do_not_depend_on_ranks_batches_and_what_was_drawn_before(
    unconditional: Samples, tmp_path: Path, world: int, batch_size: int
) -> None:
    undisturbed = drawn(Counted(unconditional), None, 12)
    kept = KeptImages(tmp_path)
    with pytest.raises(Killed):
        drawn(Counted(unconditional, until=6), kept, 3)
    sources = [Counted(unconditional) for _ in range(world)]
    images = {n: i for rank in range(world) for n, i in drawn(sources[rank], kept, batch_size, rank, world).items()}
    assert sorted(images) == list(range(12))
    assert sum(len(source.drawn) for source in sources) < 12
    assert all(int((images[n].int() - undisturbed[n].int()).abs().max()) <= 1 for n in range(12))


def test_the_key_of_images_tells_what_changes_them(unconditional: Samples) -> None:
    def key(**changes: object) -> str | None:
        return images_key(Counted(unconditional), replace(PROTOCOL, **changes), None)  # type: ignore[arg-type]

    changes = [{"seed": 4}, {"sampler_steps": 3}, {"guidance_scale": 2.0}, {"sampler": "plms"}, {"image_size": 32}]
    assert len({key(), *(key(**change) for change in changes)}) == 6
    assert key(captions=5, splits=1, name="other") == key()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scales": []}, "guidance_scales=[]"),
        ({"guidance_scales": [1, 1]}, "give each number once"),
        ({"guidance_scales": [-1]}, "guidance_scale is -1.0"),
        ({"sampler_steps": [0]}, "sampler_steps is 0"),
        ({"sampler_steps": 5}, "give a list"),
        ({"sampler_steps": [1.5]}, "whole numbers"),
        ({"guidance_scales": ["a"]}, "a list of numbers"),
        ({"guidance_scales": [1], "pictures": 0}, "sweep.pictures=0"),
    ],
)
def test_unusable_sweeps_are_named(settings: dict[str, object], message: str) -> None:
    given = OmegaConf.create({"guidance_scales": None, "sampler_steps": None, "pictures": 4, **settings})
    with pytest.raises(EvaluationError) as caught:
        Sweep.of(given, PROTOCOL)
    assert message in str(caught.value)


def test_pareto_front_is_what_nothing_beats() -> None:
    assert pareto_front([(1, 5), (2, 4), (2, 6), (3, 4), (0, 9)]) == [False, False, False, True, False]
    assert pareto_front([(1, 1), (2, 2), (3, 3)]) == [True, True, True]
    assert pareto_front([(1, 1), (1, 1)]) == [True, True]
    drawn = random.Random(0)
    points = [(drawn.random(), drawn.random()) for _ in range(40)]
    front = pareto_front(points)
    best = sorted(point for point, on in zip(points, front, strict=True) if on)
    assert best == sorted(best, key=lambda point: point[1])  # better in one is worse in the other
    for point, on in zip(points, front, strict=True):
        assert on or any(a > point[0] and b < point[1] for a, b in best)


def test_plot_holds_every_point_and_escapes_words() -> None:
    points = [Point(1.0, 2.0, "<b>", "one", "12 steps", True), Point(3.0, 2.0, "x", "two", "12 steps", False)]
    html = str(draw_scatter(Scatter("score", "distance", points)))
    assert html.count("class='point") == 2
    assert html.count("class='point s1 front'") == 1
    assert "<b><b>" not in html
    with pytest.raises(ValueError, match="at least one point"):
        draw_scatter(Scatter("score", "distance", []))
