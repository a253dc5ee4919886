"""`ldm zero_shot`: how well a text-to-image model, or CLIP, tells pictures apart that nobody taught it to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.choices import Choices
    from evaluation.open_clip_features import OpenClip
    from evaluation.run import LoadedRun
    from training.distributed import Distributed


class Classifier(Protocol):
    """Tells what a picture shows."""

    def choose(self, image: Tensor, number: int, candidates: Sequence[int]) -> int:
        """The place of the choice in `candidates`. image: uint8 [3, H, W]."""
        ...

    def scores(self, image: Tensor, number: int, candidates: Sequence[int]) -> Tensor:
        """How well each candidate fits, [candidates]; comparable over images."""
        ...


def main() -> None:
    """Entry point of `ldm zero_shot` and `python -m evaluation.zero_shot`."""
    from data.errors import DataError
    from training import compose

    compose.command("zero_shot", run, (EvaluationError, DataError))


def run(config: DictConfig) -> None:
    """Classifies on this rank; rank 0 writes the result and prints it."""
    from training.distributed import initialise, shut_down

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    ranks = initialise()
    try:
        classify(config, ranks)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    finally:
        shut_down()


def classify(config: DictConfig, ranks: Distributed) -> None:
    """Chooses for every picture that has no answer yet; the ranks share them.

    The result lies below config.output, in a folder of these pictures, words, model and settings alone.
    """
    import torch
    from tqdm import tqdm

    from evaluation.answers import Answers
    from evaluation.results import write_text
    from evaluation.winoground import winoground_summary, winoground_told

    if (config.run is None) == (config.clip is None):
        raise EvaluationError(f"run={config.run}, clip={config.clip}: give one: run=FOLDER, or clip=MODEL of open_clip")
    scored = config.data.winoground is not None
    loaded, clip = _model(config, ranks)
    with _choices(config, loaded, ranks) as choices:
        templates = _templates(config, choices)
        card = _card(config, loaded, clip, choices, templates)
        key = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:16]
        output = Path(config.output or (Path(config.run) / "zero_shot" if config.run is not None else "zero_shot"))
        answers = Answers(output / key, ranks.rank)
        known = ranks.broadcast_object(answers.read() if ranks.is_main else None)
        numbers = [number for number in range(ranks.rank, len(choices), ranks.world) if number not in known]
        if numbers:
            classifier = _classifier(config, loaded, clip, choices, templates)
            for number in tqdm(numbers, desc="classifying", unit="image", file=sys.stderr, disable=None):
                with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    asked = choices.image(number), number, choices.candidates(number)[0]
                    answer = classifier.scores(*asked).tolist() if scored else classifier.choose(*asked)
                answers.add(number, answer)
        ranks.barrier()
        if ranks.is_main:
            found = answers.read()
            result = {"card": card, **(winoground_summary(found, len(choices)) if scored else summary(choices, found))}
            write_text(output / key / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
            print(winoground_told(result) if scored else told(result))
            print(output / key / "result.json")
    ranks.barrier()


def summary(choices: Choices, answers: dict[int, int]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, what chance gives, and, where every picture has the same candidates, the mean of
    the classes' accuracies and each of them.

    answers: the place chosen for each picture. Raises EvaluationError when one is missing.
    """
    from evaluation.proportion import wilson_interval

    if missing := [number for number in range(len(choices)) if number not in answers]:
        raise EvaluationError(f"{len(missing)} of {len(choices)} pictures have no answer, such as number {missing[0]}")
    asked = [choices.candidates(number) for number in range(len(choices))]
    hits = [answers[number] == right for number, (_, right) in enumerate(asked)]
    low, high = wilson_interval(sum(hits), len(hits))
    chance = sum(1 / len(candidates) for candidates, _ in asked) / len(asked)
    found: dict[str, Any] = {
        "accuracy": sum(hits) / len(hits),
        "low": low,
        "high": high,
        "chance": chance,
        "pictures": len(hits),
    }
    if all(list(candidates) == list(range(len(choices.texts))) for candidates, _ in asked):
        by_class: dict[str, list[bool]] = {}
        for hit, (_, right) in zip(hits, asked, strict=True):
            by_class.setdefault(choices.texts[right], []).append(hit)
        classes = {name: sum(of_class) / len(of_class) for name, of_class in sorted(by_class.items())}
        found |= {"mean_per_class": sum(classes.values()) / len(classes), "classes": classes}
    return found


def told(result: dict[str, Any]) -> str:
    """The result in a line or two."""
    shares = {key: f"{100 * result[key]:.1f} %" for key in ("accuracy", "low", "high", "chance")}
    lines = [
        f"accuracy: {shares['accuracy']} ({shares['low']} to {shares['high']}) of {result['pictures']} pictures; "
        f"chance: {shares['chance']}"
    ]
    if "mean_per_class" in result:
        lines.append(f"mean of the classes: {100 * result['mean_per_class']:.1f} %")
    return "\n".join(lines)


def _model(config: DictConfig, ranks: Distributed) -> tuple[LoadedRun | None, OpenClip | None]:
    if config.run is None:
        from evaluation.open_clip_features import OpenClip

        return None, OpenClip(config.clip, config.clip_weights, None, ranks.device, config.clip_pretrained)
    from evaluation.run import load_run

    loaded = load_run(Path(config.run), ranks.device)
    if sorted(loaded.inputs) != ["caption"]:
        given = sorted(loaded.inputs) or "nothing"
        raise EvaluationError(
            f"run={config.run}: it is conditioned on {given}; give a run conditioned on captions alone"
        )
    return loaded, None


def _templates(config: DictConfig, choices: Choices) -> list[str]:
    if config.templates is None:
        return [choices.template]
    templates = [config.templates] if isinstance(config.templates, str) else list(config.templates)
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise EvaluationError(f"templates={templates}: give at least one, each with one {{}} where the class is named")
    return templates


@contextlib.contextmanager
def _choices(config: DictConfig, loaded: LoadedRun | None, ranks: Distributed) -> Iterator[Choices]:
    from evaluation.choices import CaptionChoices, FolderChoices
    from evaluation.protocol import Protocol as Sampled
    from evaluation.real_images import held_out
    from evaluation.winoground import Winoground

    settings = config.data
    size = config.image_size or (None if loaded is None else loaded.image_size)
    if settings.winoground is not None:
        if settings.folder is not None:
            raise EvaluationError(f"data.folder={settings.folder}, data.winoground={settings.winoground}: give one")
        yield Winoground(Path(settings.winoground), size, settings.pictures)
        return
    if settings.folder is not None:
        names = None if settings.names is None else _names(Path(settings.names))
        yield FolderChoices(Path(settings.folder), names, size, settings.pictures, config.seed)
        return
    if loaded is None or settings.pictures is None:
        raise EvaluationError(
            "data.folder=null: name a folder that holds one for each class, or data.winoground; or, with a run, set "
            "data.pictures to how many of its held-out pictures are to be told by their captions"
        )
    assert size is not None
    samples = Sampled("zero_shot", "held out", "none", settings.pictures, config.seed, size, 1, 1.0, splits=1)
    with held_out(config, loaded.config, {}, samples, ranks) as found:
        yield CaptionChoices(found, settings.choices, config.seed)


def _names(path: Path) -> dict[str, str]:
    try:
        names = json.loads(path.read_text())
        return {str(folder): str(name) for folder, name in names.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(f'data.names={path}: {error}; give a JSON file {{"folder": "class in words"}}') from error


def _card(
    config: DictConfig, loaded: LoadedRun | None, clip: OpenClip | None, choices: Choices, templates: list[str]
) -> dict[str, Any]:
    """All that the answers depend on."""
    card: dict[str, Any] = {"pictures": choices.fingerprint, "templates": templates, "precision": config.precision}
    card["image_size"] = config.image_size or (None if loaded is None else loaded.image_size)
    if clip is not None:
        return {**card, "model": clip.description}
    assert loaded is not None
    stages = OmegaConf.to_container(config.stages)
    return {
        **card, **loaded.origin, "model": loaded.fingerprint(), "stages": stages, "loss": config.loss,
        "seed": config.seed,
    }  # fmt: skip


def _classifier(
    config: DictConfig, loaded: LoadedRun | None, clip: OpenClip | None, choices: Choices, templates: list[str]
) -> Classifier:
    import torch

    from evaluation.clip_classifier import ClipClassifier
    from evaluation.diffusion_classifier import DiffusionClassifier, Stage

    prompts = [[template.format(text) for template in templates] for text in choices.texts]
    if clip is not None:
        return ClipClassifier(clip, prompts)
    assert loaded is not None
    parse = loaded.inputs["caption"].parse
    tokens = torch.stack([torch.stack([parse(prompt) for prompt in of_text]) for of_text in prompts])
    stages = [Stage(**stage) for stage in config.stages]
    return DiffusionClassifier(loaded.image_model, tokens, stages, config.seed, config.loss, config.batch_size)


if __name__ == "__main__":
    main()
