"""A comparison sets side by side what may be, tells what differs, and leaves the runs' folders alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation import report
from evaluation.errors import EvaluationError
from evaluation.gallery import write_final_samples, write_step_samples
from evaluation.report_comparison import differences, write_comparison
from evaluation.results import write_result
from evaluation.run_record import read_run
from tests.evaluation.test_report import EVIL, Page, pictures, result


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Run folders, told apart by their loss."""

    def made(name: str, loss: float, config: str = "", **metrics: float) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = [{"step": s, "train/loss": loss + 1 / s, **metrics} for s in range(1, 41)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.yaml").write_text(f"run: {{name: {Path(name).name}, seed: 0}}\n{config}")
        return folder

    return made


def test_numbers_stand_side_by_side_and_the_best_is_marked(make: Callable[..., Path]) -> None:
    folders = [make("low", 0.1, **{"speed/mfu": 0.25}), make("high", 0.3, **{"speed/mfu": 0.5, "custom/thing": 7})]
    text = write_comparison(folders).read_text()
    row = next(line for line in text.splitlines() if "<td><code>train/loss</code>" in line)
    assert row.index('best">0.125<small>best 0.125 at 40') < row.index('cell">0.325<')
    row = next(line for line in text.splitlines() if "<td><code>speed/mfu</code>" in line)
    assert row.index('cell">25 %') < row.index('best">50 %')
    row = next(line for line in text.splitlines() if "<td><code>custom/thing</code>" in line)
    assert 'cell">–' in row and 'cell">7</td>' in row
    assert text.count("data-metric='train/loss'") == 1  # one chart for both


def test_only_settings_that_differ_are_told_and_no_secret(make: Callable[..., Path]) -> None:
    a = make("a", 0.1, "learning_rate: {base: 1.0e-4, warmup: 10}\ndata: {secret: hunter2, where: {x: 1}}\n")
    b = make("b", 0.1, "learning_rate: {base: 2.0e-4, warmup: 10}\ndata: {secret: hunter3, where: {}}\nsteps: 5\n")
    found = dict(differences([read_run(a), read_run(b)]))
    assert found == {
        "learning_rate.base": ["0.0001", "0.0002"], "data.where.x": ["1", "–"], "data.where": ["–", "{}"],
        "steps": ["–", "5"],
    }  # fmt: skip
    assert "hunter" not in write_comparison([a, b]).read_text()


def test_results_are_compared_within_a_protocol_only(make: Callable[..., Path]) -> None:
    folders = [make("a", 0.1), make("b", 0.1), make("c", 0.1)]
    for folder, frechet, protocol in zip(folders, (30.0, 20.0, 10.0), ("h1", "h1", "h2"), strict=True):
        write_result(folder, result(120, frechet, protocol))
    text = write_comparison(folders).read_text()
    assert text.count('<th class="number score">Fréchet') == 2
    assert 'best">20</td>' in text and 'best">10</td>' in text and 'best">30</td>' not in text


def test_pictures_of_common_captions_stand_together(make: Callable[..., Path]) -> None:
    folders = [make("a", 0.1), make("b", 0.2)]
    for folder, captions in zip(folders, (["shared", EVIL, "only-of-a"], ["shared", EVIL, "only-of-b"]), strict=True):
        write_final_samples(folder, captions, pictures(3), {1.0: pictures(3), 3.0: pictures(3)}, 40, 50, {}, 3.0)
        for step in range(10):
            write_step_samples(folder, step, pictures(2), ["one", "two"])
    page = Page(text := write_comparison(folders).read_text())
    # two captions x (a real picture and two runs at two scales), and six steps of each run
    assert len(page.sources) == 2 * (1 + 2 * 2) + 2 * 6
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "only-of-a" not in text
    assert page.tags.count("script") == 3


def test_it_is_written_beside_the_first_run_or_where_told(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make("runs/a", 0.1), make("elsewhere/b c", 0.2)
    before = {path: path.read_bytes() for folder in (a, b) for path in folder.iterdir()}
    for more, expected in (([], tmp_path / "runs" / "report-a-b_c.html"), (["x.html"], tmp_path / "x.html")):
        output = [f"output={tmp_path / name}" for name in more]
        monkeypatch.setattr("sys.argv", ["ldm report", f'run=["{a}","{b}"]', *output])
        report.main()
        assert capsys.readouterr().out.strip() == str(expected)
        assert expected.exists()
    assert before == {path: path.read_bytes() for folder in (a, b) for path in folder.iterdir()}


def test_runs_of_one_name_are_told_apart(make: Callable[..., Path], tmp_path: Path) -> None:
    folders = [make("x/demo", 0.1), make("y/demo", 0.2)]
    text = write_comparison(folders, tmp_path / "page.html").read_text()
    assert all(f">{folder}<" in text for folder in folders)


def test_one_run_is_no_comparison(make: Callable[..., Path]) -> None:
    a = make("a", 0.1)
    with pytest.raises(EvaluationError, match="two or more different"):
        write_comparison([a, a])
