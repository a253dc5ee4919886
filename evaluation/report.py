"""report.html: one page that shows what a run was, what it learned and what it cost."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from evaluation.gallery import Gallery, StepSamples
from evaluation.goodput import Goodput, account
from evaluation.numbers import duration, number, percent, whole
from evaluation.report_charts import chart_sections
from evaluation.results import Result
from evaluation.run_record import RunRecord, Series, read_run

TEMPLATES = Path(__file__).with_name("templates")
MOST_STEP_PICTURES = 16
MOST_GALLERY_ROWS = 48
# Small PNGs stay as they are; large ones would make a page that is slow to open.
LARGE_BYTES = 150_000
WIDEST = 1600


def write_report(run_folder: Path) -> Path:
    """Writes <run_folder>/report.html from what lies in the folder and returns its path.

    The page holds its pictures, styles and script, and loads nothing. What a young run does not have yet
    is left out. Captions and other text are escaped. Raises FileNotFoundError when it is no run folder.
    """
    run = read_run(run_folder)
    comparable = _comparable(run.results)
    steps = _step_pictures(run.samples)
    bad = _bad_samples(run)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["j2"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        run=run,
        css=Markup((TEMPLATES / "report.css").read_text()),
        js=Markup((TEMPLATES / "report.js").read_text()),
        verdict=_verdict(run, comparable),
        tiles=_tiles(run, comparable),
        gallery=_gallery(run.gallery) if run.gallery and run.gallery.rows else None,
        results=[_results_table(group) for group in comparable],
        steps=steps,
        steps_found=len(run.samples),
        steps_lead=_steps_lead(run),
        chart_sections=chart_sections(run, comparable),
        spent=_time_spent(account(run_folder)),
        bad=bad,
        bad_total=whole(sum(series.counted for series in run.matching("data/bad/").values())),
        images_seen=whole(run.images_seen),
        config=[{"name": name, "text": _as_yaml(value)} for name, value in (run.config or {}).items()],
        notes=_notes(run),
    )
    path = run_folder / "report.html"
    part = path.with_name(path.name + ".part")
    part.write_text(page)
    part.replace(path)
    return path


def _comparable(results: Sequence[Result]) -> list[list[Result]]:
    """Results in groups that may be compared, each in order of steps."""

    def kind(result: Result) -> tuple[str, str, str]:
        return result.protocol["name"], result.protocol_hash, result.measured["features"]

    ordered = sorted(results, key=lambda result: (*kind(result), result.step))
    return [list(group) for _, group in groupby(ordered, key=kind)]


def _ends(series: Series) -> tuple[float, float]:
    """Mean of the first hundredth of a series, where it is steep, and of its last twentieth."""
    first, last = series.values[: max(1, len(series.values) // 100)], series.values[-max(1, len(series.values) // 20) :]
    return sum(first) / len(first), sum(last) / len(last)


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
    if loss is not None and len(loss.values) > 1:
        start, end = _ends(loss)
        sentences.append(
            Markup("The training loss went from {} to <b>{}</b> in {} steps.").format(
                number(start), number(end), whole(run.steps)
            )
        )
    return sentences


def _tiles(run: RunRecord, comparable: list[list[Result]]) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = []

    def tile(name: str, value: str, note: str = "", big: bool = False) -> None:
        tiles.append({"name": name, "value": value, "note": note, "big": big})

    for group in comparable:
        before, after = group[0].measured["frechet"], group[-1].measured["frechet"]
        name = group[0].measured["frechet_name"]
        if len(group) > 1:
            times = f"{before / after:.1f} times lower: " if after < before else ""
            tile("Distance to real pictures", f"{number(before)} → {number(after)}", times + name, big=True)
        else:
            tile("Distance to real pictures", number(after), name, big=True)
    ranks = len(run.matching("memory/rank"))
    tile("Steps", whole(run.steps), f"on {ranks} ranks" if ranks > 1 else "")
    tile("Pictures seen", whole(run.images_seen))
    paused = f"{run.pauses} pause{'s' if run.pauses > 1 else ''} not counted" if run.pauses else ""
    tile("Training time", duration(run.training_seconds), paused)
    speed, wait = run.series("speed/images_per_second"), run.series("data/wait_fraction")
    if speed is not None:
        ordered = sorted(speed.values)
        tile("Images per second", number(ordered[len(ordered) // 2]), "median")
    if wait is not None:
        tile("Waiting for data", percent(sum(wait.values) / len(wait.values)), "of each step, mean")
    stalls = run.series("checkpoint/stall_seconds")
    if stalls is not None:
        count = f"{len(stalls.values)} checkpoint{'s' if len(stalls.values) > 1 else ''}"
        tile("Checkpoint stall", duration(sum(stalls.values)), f"in all, {count}")
    return tiles


def _gallery(gallery: Gallery) -> dict[str, Any]:
    rows = [
        {
            "caption": row.caption,
            "real": inline(row.real),
            "generated": [
                {"source": inline(path), "label": "no guidance" if scale == 1 else f"guidance {scale:g}"}
                for scale, path in row.generated.items()
            ],
        }
        for row in gallery.rows[:MOST_GALLERY_ROWS]
    ]
    across = 1 + len(gallery.guidance_scales)
    return {
        "rows": rows,
        "step": whole(gallery.step),
        "sampler_steps": gallery.sampler_steps,
        "across": across,
        "card_width": 32 + 126 * across + 10 * (across - 1),
    }


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
    return "The same held-out captions from the same noise; only the weights differ."


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
    counts = {reason: series.counted for reason, series in run.matching("data/bad/").items() if series.last > 0}
    most = max(counts.values(), default=1)
    return [
        {"reason": reason.replace("_", " "), "count": whole(count), "percent": f"{100 * count / most:.1f}"}
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def _time_spent(found: Goodput) -> list[dict[str, str]]:
    """What the run's time went to, the most first; nothing where its starts weren't recorded."""
    parts = sorted(found.parts.items(), key=lambda part: -part[1])
    return [
        {"name": name, "time": duration(seconds), "share": percent(seconds / found.wall)}
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


def inline(path: Path) -> str:
    """The picture as a data URL, as it is when small and as WebP of at most WIDEST pixels otherwise."""
    data, kind = path.read_bytes(), "png"
    if len(data) > LARGE_BYTES:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
        picture.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="WEBP", quality=90)
        data, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def main() -> None:
    """Entry point of `ldm report` and `python -m evaluation.report`."""
    from training import compose

    compose.command("report", lambda config: print(write_report(Path(config.run))), (FileNotFoundError,))


if __name__ == "__main__":
    main()
