"""The report shows what lies in the run folder, loads nothing, and lets no text become markup."""

import json
import math
import re
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluation import report
from evaluation.gallery import write_final_samples, write_step_samples
from evaluation.report import write_report
from evaluation.report_tiles import MOST_ACROSS, layout
from evaluation.results import Result, write_result
from training.starts import STARTS, Start, begin

EVIL = "<script>alert('x')</script> & \"friends\""


class Page(HTMLParser):
    """Tags, and everything that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attributes)
        self.sources += [v or "" for name, v in attributes if name in ("src", "srcset", "data")]
        self.sources += [v or "" for name, v in attributes if name == "href" and not (v or "").startswith("#")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""


def pictures(count: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def result(step: int, frechet: float, protocol_hash: str = "h1", name: str = "openmoji") -> Result:
    measured = {
        "frechet_name": "Fréchet distance (EfficientNet-Lite0)", "frechet": frechet,
        "score_name": "Inception-style score (EfficientNet-Lite0)", "score": 2.0, "score_std": 0.1,
        "generated_images": 200, "reference_images": 200, "features": "EfficientNet-Lite0",
    }  # fmt: skip
    return Result(step, "ema", {"name": name, "seed": 0}, protocol_hash, measured, 5.0, [])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with something of everything."""
    folder = tmp_path / "a-run"
    folder.mkdir()
    lines = [
        {
            "step": s, "images_seen": 32 * s, "time": 1e9 + s, "train/loss": math.exp(-s / 30) + 0.1,
            "train/learning_rate": 1e-4, "speed/images_per_second": 32.0, "speed/step_seconds": 1.0,
            "data/wait_seconds": 0.02, "data/bad/no_caption": s // 50, "memory/rank0_gib": 1.5,
            "memory/rank1_gib": 1.25, "custom/thing": s,
            **({f"train/loss_decile_{s % 10}": 1.0 / s}),
        }
        for s in range(1, 121)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("run: {name: my-run}\ndata: {secret: hunter2, url: 's3://bucket/x'}\n")
    (folder / "attribution.txt").write_text("Drawings by somebody, CC BY-SA 4.0\n")
    for step in (0, 60, 120):
        write_step_samples(folder, step, pictures(4), ["one", "two", EVIL, "four"])
    write_final_samples(
        folder,
        ["flag", EVIL],
        pictures(2),
        {1.0: pictures(2), 3.0: pictures(2)},
        120,
        50,
        {"red heart": pictures(1)[0], EVIL: pictures(1)[0]},
        4.0,
    )
    write_result(folder, result(0, 400.0))
    write_result(folder, result(120, 100.0))
    return folder


def test_page_loads_nothing_and_escapes_everything(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"@import|url\(|https?://|fetch\(", text)
    assert page.tags.count("script") == 3  # the numbers of the charts, and the page's own two
    assert "link" not in page.tags
    assert page.policy.startswith("default-src 'none'; img-src data:;")


def test_page_shows_what_lies_in_the_folder(run: Path) -> None:
    text = write_report(run).read_text()
    for words in (
        "my-run", "3,840", "4.0 times lower", "400 → 100", "custom/thing", "no caption", "rank1",
        "Drawings by somebody, CC BY-SA 4.0", "no guidance", "guidance 3", "Loss by timestep", "90 to 100 %",
        "1 min 59 s", "2.0 %", "s3://bucket/x",
    ):  # fmt: skip
        assert words in text, words
    assert "hunter2" not in text
    assert "data-metric='train/loss_decile_*'" in text
    assert "data-metric='train/loss_decile_0'" not in text  # drawn together, not each alone
    # 2 captions x (real + 2 scales), 2 prompts, and 3 rows of step samples
    assert len(Page(text).sources) == 2 * 3 + 2 + 3
    assert 'alt="generated, guidance 4: red heart"' in text


def test_time_that_a_run_was_stopped_does_not_count(run: Path) -> None:
    assert "Where the time went" not in write_report(run).read_text()
    starts = [
        Start(1, 1e9, None, None, ["here"], 2, "", 0, 1e9, 1e9 + 60, "stopped", None, 60),
        Start(2, 1e9 + 7260, None, None, ["here"], 2, "", 60, 1e9 + 7260, 1e9 + 7320, "finished", None, 120),
    ]
    (run / "starts.jsonl").write_text("".join(json.dumps(asdict(start)) + "\n" for start in starts))
    text = write_report(run).read_text()
    assert '<a href="#time">Where the time went</a>' in text
    assert '<td>stopped</td><td class="number">2 h 00 min</td><td class="number">not counted</td>' in text
    assert "<dt>Goodput</dt><dd>98 %<small>1 restart, 2 h 00 min stopped</small>" in text
    assert "queue" not in text


@pytest.mark.parametrize("count", range(1, 25))
@pytest.mark.parametrize("big", [0, 1, 3])
def test_tiles_fill_their_rows(count: int, big: int) -> None:
    shown = [{"big": i < big} for i in range(max(count, big))]
    found = layout(shown)
    cells = found["first"] + sum(2 if tile["big"] else 1 for tile in shown[1:])
    assert cells % found["columns"] == 0 and found["first"] <= found["columns"] <= MOST_ACROSS


def test_results_of_different_protocols_are_never_compared(run: Path) -> None:
    (run / "evaluation" / "openmoji-step00000000.json").unlink()
    write_result(run, result(0, 400.0, protocol_hash="h2"))
    text = write_report(run).read_text()
    assert "times lower" not in text
    assert text.count("<table>") == 2 + 2  # one for each protocol, one of metrics, one of bad samples


def test_further_metrics_stand_beside_the_published_ones(run: Path) -> None:
    plain = result(120, 100.0, "h2", "with_metrics")
    measured = {**plain.measured, "others": {"KID": {"value": 0.0234}, "<Recall>": {"value": 0.61}}}
    paper = [{"name": "LDM-4 (Tab. 3)", "frechet": 3.6, "score": None, "others": {"<Recall>": 0.48}}]
    write_result(run, replace(plain, measured=measured, paper=paper))
    text = write_report(run).read_text()
    assert '<th class="number score">KID</th><th class="number score">&lt;Recall&gt;</th>' in text
    assert '<td class="number">0.0234</td><td class="number">0.61</td>' in text
    assert (
        '<td class="number">3.6</td><td class="number">–</td><td class="number">–</td><td class="number">0.48</td>'
        in text
    )


def test_a_worse_result_is_called_worse(run: Path) -> None:
    write_result(run, result(120, 500.0))
    text = write_report(run).read_text()
    assert "rose from 400" in text
    assert "times lower" not in text


def test_a_young_run_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/psnr": 10.0}\n')
    text = write_report(tmp_path).read_text()
    assert tmp_path.name in text
    assert "<th>reason</th>" not in text and 'id="results"' not in text
    assert 'id="chart-data"' not in text


def test_a_first_stages_page_tells_of_its_reconstructions(tmp_path: Path) -> None:
    lines = [{"step": s, "eval/psnr": 20.0 + s, "eval/ssim": 0.9, "train/loss": 1 / s} for s in range(1, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text("task: {name: autoencoder}\n")
    write_step_samples(tmp_path, 7, pictures(4), ["a", "b"])
    text = write_report(tmp_path).read_text()
    for words in ("<b>27.00 dB</b>", "<b>0.900</b>", "Held-out PSNR (dB)", "after encoding and decoding below"):
        assert words in text


def test_large_pictures_are_made_smaller(run: Path) -> None:
    before = len(write_report(run).read_text())
    write_step_samples(run, 120, pictures(4, 512), ["a", "b", "c", "d"])
    added = len(write_report(run).read_text()) - before
    assert added < (run / "samples" / "step-00000120.png").stat().st_size
    assert "data:image/webp" in (run / "report.html").read_text()


def test_many_steps_are_thinned_with_first_and_last_kept(run: Path) -> None:
    for step in range(0, 1000, 20):
        write_step_samples(run, step, pictures(4), ["a", "b", "c", "d"])
    text = write_report(run).read_text()
    labels = re.findall(r'alt="samples at step (\d+)"', text)
    assert len(labels) == report.MOST_STEP_PICTURES
    assert (labels[0], labels[-1]) == ("0", "980")
    assert "16 of 50 steps are shown" in text


def test_command_writes_the_page_or_says_why_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm report", f"run={run}"])
    report.main()
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    monkeypatch.setattr(sys, "argv", ["ldm report", f"run={tmp_path}/absent"])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    assert stopped.value.code == 2
    assert "is it a run folder" in capsys.readouterr().err


def test_where_the_time_went(run: Path) -> None:
    assert "Where the time went" not in write_report(run).read_text(), "nobody recorded its starts"
    start = begin(run, None, ["here"], 2, "settings", 0)
    begun = replace(start, time=1e9 - 20.0, trained=1e9, ended=1e9 + 120.0, end="finished")
    (run / STARTS).write_text(json.dumps(asdict(begun)) + "\n")
    found = re.sub("<[^>]+>", " ", write_report(run).read_text().partition("Where the time went")[2])
    rows = r"productive\s+1 min 58 s\s+84 %\s+start-up\s+20 s\s+14 %\s+data wait\s+2\.4 s\s+1\.7 %"
    assert re.search(rows, found), found[:500]
