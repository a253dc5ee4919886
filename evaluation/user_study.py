"""`ldm user_study`: a page that asks people which of two pictures is better, by the protocol of LDM App. E.3.6.

Two tasks, each a choice between two pictures beside the one that they were made of, after seeing all three for three
seconds: in task 1 one of the two is real, in task 2 both are of methods that compete. `ldm user_study results` puts
the answers together.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError

REAL, CONDITION = "real", "condition"
"""Names of pictures that are of no method."""
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
QUESTIONS = {
    "superresolution": "Which of the two images is a better high quality version of the low resolution image in the "
    "middle?",
    "inpainting": "Which of the two images contains more realistic inpainted regions of the image in the middle?",
}
"""As the paper asked them."""


def main() -> None:
    """Entry point of `ldm user_study` and `python -m evaluation.user_study`."""
    if sys.argv[1:2] == ["results"]:
        from evaluation import user_study_results

        user_study_results.main(sys.argv[2:])
        return
    from training import compose

    compose.command("user_study", run, (EvaluationError,), named_freely=("methods",))


def run(config: DictConfig) -> None:
    """Writes the page to config.output."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise EvaluationError(f"{missing[0]}=???: it has no value; give it on the command line")
    study = build_study(config)
    output = Path(config.output)
    write_study(study, output)
    print(f"{len(study.trials)} choices, {study.seconds:g} s each: {output}")


@dataclass(frozen=True)
class Trial:
    """A choice between the pictures of two sources, beside what both were made of.

    picture: name of all three files, without the suffix. sources: two names of methods, or REAL and one.
    """

    task: int
    picture: str
    sources: tuple[str, str]


@dataclass(frozen=True)
class Study:
    """All choices that each participant makes, in an order and with sides of their own.

    question: put with each. seconds: that the three pictures are seen. files: (source, picture) -> its file;
    (CONDITION, picture) -> that of what it was made of.
    """

    question: str
    seconds: float
    trials: Sequence[Trial]
    files: Mapping[tuple[str, str], Path]


def build_study(config: DictConfig) -> Study:
    """The study of the settings of conf/user_study.yaml.

    Raises EvaluationError when folders are missing, or a picture in one of them, and on values out of range.
    """
    methods = {str(name): Path(folder) for name, folder in config.methods.items()}
    question = QUESTIONS.get(config.question, config.question)
    if not question.endswith("?"):
        raise EvaluationError(f"question={question}: choose {' or '.join(QUESTIONS)}, or ask a question of your own")
    if not 0 < config.seconds <= 60:
        raise EvaluationError(f"seconds={config.seconds}: give more than 0 and at most 60; the paper's are 3")
    if not methods or {REAL, CONDITION} & methods.keys():
        raise EvaluationError(f"methods={sorted(methods)}: name at least one, none of them {REAL} or {CONDITION}")
    pairs = [(2, pair) for pair in itertools.combinations(methods, 2)]
    folders = {CONDITION: Path(config.condition), **methods}
    if config.real is not None:
        pairs = [(1, (REAL, method)) for method in methods] + pairs
        folders[REAL] = Path(config.real)
    if not pairs:
        raise EvaluationError("real=null and one method: give real=FOLDER for task 1, or another method for task 2")
    found = {source: _pictures(source, folder) for source, folder in folders.items()}
    names = sorted(found[CONDITION])
    for source, pictures in found.items():
        if absent := [name for name in names if name not in pictures]:
            raise EvaluationError(
                f"{folders[source]}: no picture {absent[0]}, which is in {folders[CONDITION]}; pictures that belong "
                f"together need one name ({len(absent)} of {len(names)} are missing)"
            )
    if not 1 <= config.pictures <= len(names):
        raise EvaluationError(f"pictures={config.pictures}: give 1 to {len(names)}, as many as there are")
    chosen = sorted(random.Random(config.seed).sample(names, config.pictures))
    trials = [Trial(task, name, pair) for task, pair in pairs for name in chosen]
    return Study(question, config.seconds, trials, {(s, name): found[s][name] for s in found for name in chosen})


def write_study(study: Study, path: Path) -> None:
    """Writes the page, which holds its pictures and loads nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    from evaluation.results import write_text

    templates = Path(__file__).with_name("templates")
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=select_autoescape(["j2"], default=True),
        undefined=StrictUndefined,
    )
    pictures = {f"{source}/{name}": _inline(file) for (source, name), file in study.files.items()}
    content: dict[str, Any] = {
        "question": study.question,
        "seconds": study.seconds,
        "trials": [{"task": t.task, "picture": t.picture, "sources": list(t.sources)} for t in study.trials],
        "pictures": pictures,
    }
    content["study"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    page = environment.get_template("user_study.html.j2").render(
        content=content, js=Markup((templates / "user_study.js").read_text())
    )
    write_text(path, page)


def _pictures(source: str, folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without the suffix."""
    if not folder.is_dir():
        raise EvaluationError(f"{source}: there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in MIME:
            if path.stem in found:
                raise EvaluationError(f"{path} and {found[path.stem].name} have one name; remove one of them")
            found[path.stem] = path
    if not found:
        raise EvaluationError(f"{source}: no picture ({', '.join(MIME)}) in {folder}")
    return found


def _inline(path: Path) -> str:
    return f"data:{MIME[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


if __name__ == "__main__":
    main()
