"""What turns prompts into tokens in the folders of diffusers' pipelines, and the same inputs of ours.

A folder has all that transformers needs, so nothing is fetched when it is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.clip_tokenizer import ClipTokenizer, Padding
from data.inputs import Input
from data.inputs.caption import Caption
from data.inputs.label import Label
from data.tokenizer import BertTokenizer

CLIP_FILLERS: dict[Padding, str] = {"end": "<|endoftext|>", "zero": "!"}
"""Token that CLIP's captions are filled up with, by our name for it."""
NO_CLASS = "[NONE]"


def write_tokenizer(folder: Path, given: Input, length: int) -> str:
    """Writes the tokenizer of an input; returns its class in transformers. length: tokens that the pipeline asks for.

    The tokenizer of labels takes a class number for a prompt and says it `length` times; the empty prompt is no class.
    Raises ValueError for an input that has none.
    """
    config: dict[str, Any]
    tokenizer = getattr(given, "tokenizer", None)
    if isinstance(tokenizer, BertTokenizer):
        kind, config = "BertTokenizer", {"do_lower_case": True}
        _write(folder / "vocab.txt", "\n".join(tokenizer.vocabulary) + "\n")
    elif isinstance(tokenizer, ClipTokenizer):
        kind, config = "CLIPTokenizer", {"pad_token": CLIP_FILLERS[tokenizer.padding]}
        _write(folder / "vocab.json", json.dumps(tokenizer.vocabulary, ensure_ascii=False))
        _write(folder / "merges.txt", "\n".join(["#version: 0.2", *tokenizer.merges]) + "\n")
    elif isinstance(given, Label):
        kind, config = "PreTrainedTokenizerFast", {"pad_token": NO_CLASS}
        _write(folder / "tokenizer.json", _class_words(given.classes, length))
    else:
        raise ValueError(f"{type(given).__name__}: its values can't be told by a prompt")
    _write(
        folder / "tokenizer_config.json",
        json.dumps({"tokenizer_class": kind, "model_max_length": length, **config}, indent=2) + "\n",
    )
    return kind


def read_bert_caption(folder: Path, length: int) -> Caption:
    """Captions as a BertTokenizer's folder makes tokens of them."""
    listed = folder / "vocab.txt"
    return Caption(BertTokenizer(length, listed if listed.exists() else folder / "tokenizer.json"))


def read_clip_caption(folder: Path) -> Caption:
    """Captions as a CLIPTokenizer's folder makes tokens of them. Raises ValueError unless its vocabulary is CLIP's."""
    config = read_json(folder / "tokenizer_config.json")
    filler = config.get("pad_token", CLIP_FILLERS["end"])
    filler = filler["content"] if isinstance(filler, dict) else filler
    paddings = [padding for padding, token in CLIP_FILLERS.items() if token == filler]
    if not paddings:
        raise ValueError(f"{folder}: pad_token={filler}; only {' and '.join(CLIP_FILLERS.values())} can be read")
    tokenizer = ClipTokenizer(config.get("model_max_length", 77), paddings[0])
    listed = folder / "vocab.json"
    vocabulary = read_json(listed) if listed.exists() else read_json(folder / "tokenizer.json")["model"]["vocab"]
    if vocabulary != tokenizer.vocabulary:
        raise ValueError(f"{folder}: its {len(vocabulary)} tokens are not CLIP's; only CLIP's own can be read")
    return Caption(tokenizer)


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises ValueError when it can't be read, or holds something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}; it must be settings by name")
    return content


def _class_words(classes: int, length: int) -> str:
    """tokenizer.json of class numbers. A word that is none of them is an error there: it has no token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {str(number): number for number in range(classes)} | {NO_CLASS: classes}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(["$A"] * length), special_tokens=[])
    return tokenizer.to_str()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
