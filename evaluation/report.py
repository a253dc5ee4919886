"""report.html: one page that shows what a run was, what it learned and what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from omegaconf import DictConfig, ListConfig

from evaluation.errors import EvaluationError
from evaluation.gallery import Gallery, StepSamples
from evaluation.goodput import Goodput, account
from evaluation.numbers import FORMATS, duration, number, percent, whole
from evaluation.panels import IN_TABLES, format_of, groups
from evaluation.report_page import inline, render
from evaluation.report_tiles import layout, tiles
from evaluation.results import Result, write_text
from evaluation.run_metrics import Series
from evaluation.run_record import RunRecord, read_run

MOST_STEP_PICTURES = 16
MOST_GALLERY_ROWS = 48


def write_report(run_folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a run, <run_folder>/report.html if not told otherwise, and returns its path.

    The page holds its pictures, styles and script, and loads nothing. What a young run does not have yet
    is left out. Captions and other text are escaped. Raises FileNotFoundError when it is no run folder.
    """
    run = read_run(run_folder)
    comparable = comparable_results(run.results)
    steps = _step_pictures(run.samples)
    spent = account(run_folder)
    shown = tiles(run, comparable, spent)
    bad = _bad_samples(run)
    page = render(
        "report.html.j2",
        [run],
        groups([run], comparable),
        run=run,
        verdict=_verdict(run, comparable),
        tiles=shown,
        layout=layout(shown),
        gallery=_gallery(run.gallery) if run.gallery and run.gallery.rows else None,
        results=[_results_table(group) for group in comparable],
        steps=steps,
        steps_found=len(run.samples),
        steps_lead=_steps_lead(run),
        metrics=_metrics_table(run),
        spent=_time_spent(spent),
        bad=bad,
        bad_total=whole(sum(series.counted for series in run.matching(IN_TABLES).values())),
        images_seen=whole(run.images_seen),
        config=[{"name": name, "text": _as_yaml(value)} for name, value in (run.config or {}).items()],
        notes=_notes(run),
    )
    path = output or run_folder / "report.html"
    write_text(path, page)
    return path


def comparable_results(results: Sequence[Result]) -> list[list[Result]]:
    """Results in groups that may be compared, each in order of steps."""

    def kind(result: Result) -> tuple[str, str, str]:
        return result.protocol["name"], result.protocol_hash, result.measured["features"]

    ordered = sorted(results, key=lambda result: (*kind(result), result.step))
    return [list(group) for _, group in groupby(ordered, key=kind)]


def _ends(series: Series) -> tuple[float, float]:
    """Mean of the first hundredth of a series, where it is steep, and of its last twentieth."""
    values = series.finite().values
    first, last = values[: max(1, len(values) // 100)], values[-max(1, len(values) // 20) :]
    return float(first.mean()), float(last.mean())


def _verdict(run: RunRecord, comparable: list[list[Result]]) -> list[Markup]:
    sentences = []
    for group in comparable:
        first, last = group[0], group[-1]
        name, before, after = last.measured["frechet_name"], first.measured["frechet"], last.measured["frechet"]
        if last.step == first.step:
            sentences.append(Markup("{} at step {} is <b>{}</b>.").format(name, whole(last.step), number(after)))
            continue
        change = "fell" if after < before else "rose"
        sentence = Markup("{} {} from {} at step {} to <b>{}</b> at step {}").format(
            name, change, number(before), whole(first.step), number(after), whole(last.step)
        )
        ratio = Markup(": <b>{} times lower</b>").format(f"{before / after:.1f}") if after < 0.95 * before else ""
        sentences.append(sentence + ratio + ".")
    psnr, ssim = run.series("eval/psnr"), run.series("eval/ssim")
    if psnr is not None and ssim is not None:
        sentences.append(
            Markup("Held-out pictures are reconstructed at <b>{} dB</b> PSNR and an SSIM of <b>{}</b>.").format(
                f"{psnr.last:.2f}", f"{ssim.last:.3f}"
            )
        )
    loss = run.series("train/loss")
    if loss is not None and len(loss.finite().values) > 1:
        start, end = _ends(loss)
        sentences.append(
            Markup("The training loss went from {} to <b>{}</b> in {} steps.").format(
                number(start), number(end), whole(run.steps)
            )
        )
    return sentences


def _gallery(gallery: Gallery) -> dict[str, Any]:
    rows = [
        {
            "caption": row.caption,
            "real": inline(row.real),
            "generated": [{"source": inline(path), "label": _guidance(scale)} for scale, path in row.generated.items()],
        }
        for row in gallery.rows[:MOST_GALLERY_ROWS]
    ]
    across = 1 + len(gallery.guidance_scales)
    return {
        "rows": rows,
        "prompts": [{"text": prompt, "picture": inline(path)} for prompt, path in gallery.prompts.items()],
        "prompts_label": _guidance(gallery.prompts_scale),
        "step": whole(gallery.step),
        "sampler_steps": gallery.sampler_steps,
        "across": across,
        "card_width": 32 + 126 * across + 10 * (across - 1),
    }


def _guidance(scale: float) -> str:
    return "no guidance" if scale == 1 else f"guidance {scale:g}"


def _step_pictures(samples: list[StepSamples]) -> list[dict[str, Any]]:
    """The pictures in order of steps, thinned evenly when there are many, first and last always there."""
    if len(samples) > MOST_STEP_PICTURES:
        last = len(samples) - 1
        samples = [samples[round(i * last / (MOST_STEP_PICTURES - 1))] for i in range(MOST_STEP_PICTURES)]
    return [
        {
            "label": f"step {whole(picture.step)}",
            "source": inline(picture.path),
            "captions": picture.captions,
            "wide": picture.width > 1.8 * picture.height,
        }
        for picture in samples
    ]


def _steps_lead(run: RunRecord) -> str:
    if run.task == "autoencoder":
        return "Held-out pictures above, what is left of them after encoding and decoding below."
    return "The same captions from the same noise; only the weights differ."


def _results_table(group: list[Result]) -> dict[str, Any]:
    first = group[0]
    name, score = first.measured["frechet_name"], first.measured["score_name"]
    others = list(first.measured.get("others", {}))
    rows = [
        {
            "what": "before training" if result.step == 0 else f"weights: {result.weights}",
            "detail": f"{whole(result.measured['generated_images'])} against "
            f"{whole(result.measured['reference_images'])} real, {duration(result.seconds)}",
            "step": whole(result.step),
            "frechet": number(result.measured["frechet"]),
            "score": number(result.measured["score"]),
            "score_std": number(result.measured["score_std"]),
            "others": [number(result.measured["others"][other]["value"]) for other in others],
        }
        for result in group
    ]
    return {
        "protocol": first.protocol["name"],
        "frechet_name": name,
        "score_name": score,
        "rows": rows,
        "other_names": others,
        "paper": [_paper_row(row, others) for row in first.paper],
        "card": _as_yaml({**first.protocol, "hash": first.protocol_hash, "network": first.measured["features"]}),
    }


def _paper_row(row: dict[str, Any], others: list[str]) -> dict[str, Any]:
    def shown(value: float | None) -> str:
        return "–" if value is None else number(value)

    return {
        "name": f"published: {row['name']}",
        "frechet": shown(row.get("frechet")),
        "score": shown(row.get("score")),
        "others": [shown(row.get("others", {}).get(other)) for other in others],
    }


def _bad_samples(run: RunRecord) -> list[dict[str, Any]]:
    counts = {reason: series.counted for reason, series in run.matching(IN_TABLES).items() if series.last > 0}
    most = max(counts.values(), default=1)
    return [
        {"reason": reason.replace("_", " "), "count": whole(count), "percent": f"{100 * count / most:.1f}"}
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def _time_spent(found: Goodput) -> list[dict[str, str]]:
    """What the run's time went to, the most first, and last when it was stopped; nothing where its starts weren't
    recorded."""
    parts = sorted(found.parts.items(), key=lambda part: (part[0] == "stopped", -part[1]))
    return [
        {
            "name": name,
            "time": duration(seconds),
            "share": "not counted" if name == "stopped" else percent(seconds / found.counted),
        }
        for name, seconds in parts
        if found.wall > 0 and seconds > 0
    ]


def _notes(run: RunRecord) -> list[str]:
    networks = sorted({result.measured["features"] for result in run.results})
    return run.attribution + [f"Features: {network}." for network in networks]


def _as_yaml(value: Any) -> str:
    if isinstance(value, dict | list):
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).strip()
    return json.dumps(value, ensure_ascii=False)


def _metrics_table(run: RunRecord) -> list[dict[str, str]]:
    """Last, lowest and highest value of every metric, in words."""
    rows = []
    for name, series in sorted(run.metrics.items()):
        shown, finite = FORMATS[format_of(name)], series.finite().values
        bounds = {"low": shown(float(finite.min())), "high": shown(float(finite.max()))} if len(finite) else {}
        rows.append({"name": name, "step": whole(int(series.steps[-1])), "last": shown(series.last), **bounds})
    return rows


def main() -> None:
    """Entry point of `ldm report` and `python -m evaluation.report`."""
    from training import compose

    compose.command("report", report, (FileNotFoundError, EvaluationError))


def report(config: DictConfig) -> None:
    """Writes the page of the run, or of the runs, that the configuration names, and prints its path.

    Raises FileNotFoundError for what is no run folder, EvaluationError for runs that can't be on one page.
    """
    from evaluation.report_comparison import write_comparison

    runs = [Path(run) for run in config.run] if isinstance(config.run, ListConfig) else [Path(str(config.run))]
    output = None if config.output is None else Path(config.output)
    print(write_report(runs[0], output) if len(runs) == 1 else write_comparison(runs, output))


if __name__ == "__main__":
    main()
