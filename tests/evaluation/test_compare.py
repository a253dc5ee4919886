"""Results are shown side by side only where nothing but the weights measured lies between them."""

from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import compare
from evaluation.results import Result, read_result, write_result
from evaluation.table import published, table

CARD = {"name": "coco", "guidance_scale": 1.5, "metrics": {"kid": {"subsets": 100}}}
MEASURED = {
    "frechet_name": "FID", "frechet": 12.5, "score_name": "Inception Score", "score": 30.0, "score_std": 0.4,
    "generated_images": 10, "reference_images": 10, "features": "InceptionV3, weights sha256 ab", "networks": [],
    "others": {"KID": {"value": 0.02, "deviation": 0.001, "low": None, "high": None}},
}  # fmt: skip
ONE = Result(100, "ema", CARD, "h1", MEASURED, 3.0, [], {"samples": "f1"})


def written(folder: Path, *results: Result) -> list[str]:
    return [str(write_result(folder / str(i), result)) for i, result in enumerate(results)]


def test_equal_protocols_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(ONE, step=200, measured={**MEASURED, "frechet": 11.0})
    compare.main(written(tmp_path, ONE, other))
    title, first, second, change = capsys.readouterr().out.splitlines()
    assert title.split() == ["FID", "Inception", "Score", "KID"]
    assert first.split()[-3:] == ["12.5", "30", "0.02"]
    assert second.split()[-3:] == ["11", "30", "0.02"]
    assert change.split() == ["change", "-1.5", "0", "0"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"protocol": {**CARD, "guidance_scale": 2.0}, "protocol_hash": "h2"},
            ["protocol.guidance_scale: 1.5 in ", ", 2.0 in "],
        ),
        (
            {"protocol": {**CARD, "metrics": {"kid": {"subsets": 50}}}, "protocol_hash": "h2"},
            ["protocol.metrics.kid.subsets: 100 in ", ", 50 in "],
        ),
        (
            {"protocol": {**CARD, "spacing": "trailing"}, "protocol_hash": "h2"},
            ["protocol.spacing: absent in ", ", trailing in "],
        ),
        ({"weights": "raw"}, ["weights: ema in ", ", raw in "]),
        ({"data": {"samples": "f2"}}, ["data.samples: f1 in ", ", f2 in "]),
        (
            {"measured": {**MEASURED, "features": "others"}},
            ["features: InceptionV3, weights sha256 ab in ", ", others"],
        ),
    ],
)
def test_others_are_refused_and_the_difference_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], told: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main(written(tmp_path, ONE, replace(ONE, **change)))  # type: ignore[arg-type]
    output = capsys.readouterr()
    assert (stopped.value.code, output.out) == (2, "")
    assert "can't be compared; they differ in" in output.err
    for part in told:
        assert part in output.err


def test_what_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    for arguments, message in (([str(path)] * 2, "is no result of `ldm evaluate`"), ([str(path)], "usage:")):
        with pytest.raises(SystemExit) as stopped:
            compare.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_results_of_old_files_are_read(tmp_path: Path) -> None:
    (path,) = written(tmp_path, ONE)
    text = Path(path).read_text().replace(',\n "data": {\n  "samples": "f1"\n }', "")
    Path(path).write_text(text)
    assert read_result(Path(path)) == replace(ONE, data={})


def test_published_rows_stand_only_beside_fid() -> None:
    paper = [{"name": "LDM (Tab. 3)", "frechet": 3.6, "score": None, "others": {"Recall": 0.48}}]
    ((title, values),) = published(paper, MEASURED)
    assert title == "published: LDM (Tab. 3)"
    assert values == {"FID": 3.6, "Inception Score": None, "Recall": 0.48}
    assert published(paper, {**MEASURED, "frechet_name": "Fréchet distance (EfficientNet-Lite0)"}) == []
    lines = table([("measured", {"FID": 4.0, "Inception Score": 100.0}), (title, values)]).splitlines()
    assert [line.split()[-3:] for line in lines[1:]] == [["4", "100", "–"], ["3.6", "–", "0.48"]]
