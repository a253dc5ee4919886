"""Pictures with words to choose from, of which one is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from evaluation.data_sets import WORDNET, read_data_set
from evaluation.errors import EvaluationError
from evaluation.heldout import HeldOut
from evaluation.image_folder import cut_picture, read_picture


class Choices(Protocol):
    """Pictures by number. texts: all words that there are. template: of a prompt, {} is such a text, unless another is
    asked for. fingerprint: of the pictures and their words."""

    texts: Sequence[str]
    template: str
    fingerprint: str

    def __len__(self) -> int: ...

    def image(self, number: int) -> Tensor:
        """uint8 [3, H, W]."""
        ...

    def candidates(self, number: int) -> tuple[Sequence[int], int]:
        """Numbers of the texts to choose from, and the place of the right one among them."""
        ...


class FolderChoices:
    """A data set's pictures, or those of a folder with one for each class: every class is a candidate.

    Args:
        folder: see evaluation.data_sets; a class's pictures may lie in further subfolders.
        names: class, as the data set or its folder is named -> the class in words; None: what is known of it.
        image_size: pictures have their shorter side scaled to it and are cut to their middle; None: as they are.
        count: pictures drawn by seed; None: all.
        seed: of that.

    Raises EvaluationError with fewer than two classes, for one without pictures or words, and when there are too few.
    """

    def __init__(
        self, folder: Path, names: Mapping[str, str] | None, image_size: int | None, count: int | None, seed: int
    ) -> None:
        found = read_data_set(folder)
        if names is not None and (absent := [name for name in found.classes if name not in names]):
            raise EvaluationError(f"data.names: nothing for the classes {', '.join(absent[:5])}; name every class")
        if names is None and (numbered := [word for word in found.words if WORDNET.fullmatch(word)]):
            raise EvaluationError(
                f"data.names=null: the folders' names, such as {numbered[0]}, are no words; name the classes"
            )
        self.texts: Sequence[str] = found.words if names is None else [names[name] for name in found.classes]
        self.template = found.template
        pictures = len(found.labels)
        if count is not None and not 1 <= count <= pictures:
            raise EvaluationError(f"data.pictures={count}: give 1 to {pictures}, as many as there are")
        order = torch.randperm(pictures, generator=torch.Generator().manual_seed(seed)).tolist()
        self._order = order[:count]
        self._data, self._size = found, image_size
        listing: list[list[str | int]] = [
            [str(picture.relative_to(folder)), picture.stat().st_size]
            if isinstance(picture, Path)
            else [hashlib.sha256(picture.tobytes()).hexdigest(), found.labels[i]]
            for i, picture in ((i, found.pictures[i]) for i in self._order)
        ]
        self.fingerprint = hashlib.sha256(json.dumps([listing, self.texts]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._order)

    def image(self, number: int) -> Tensor:
        """Raises EvaluationError when the file can't be read."""
        picture = self._data.pictures[self._order[number]]
        if isinstance(picture, Path):
            return read_picture(picture, self._size, self._data.border)
        return cut_picture(picture, self._size)

    def candidates(self, number: int) -> tuple[Sequence[int], int]:
        return range(len(self.texts)), self._data.labels[self._order[number]]


class CaptionChoices:
    """A picture's own caption among those of others, drawn for it. All pictures are held in memory.

    Args:
        samples: pictures with captions.
        count: captions to choose from.
        seed: draws the others.

    Raises EvaluationError when there are fewer different captions.
    """

    template = "{}"

    def __init__(self, samples: HeldOut, count: int, seed: int) -> None:
        batches = list(samples.batches(0, 1))
        self._images = torch.cat([batch.images for batch in batches])
        captions = [caption for batch in batches for caption in batch.captions]
        self.texts: Sequence[str] = sorted(set(captions))
        if not 2 <= count <= len(self.texts):
            raise EvaluationError(f"data.choices={count}: give 2 to {len(self.texts)}, as many captions as there are")
        self._right = [self.texts.index(caption) for caption in captions]
        self._count, self._seed = count, seed
        known = [samples.fingerprint, len(captions), count, seed]
        self.fingerprint = hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._right)

    def image(self, number: int) -> Tensor:
        return self._images[number]

    def candidates(self, number: int) -> tuple[Sequence[int], int]:
        right = self._right[number]
        generator = torch.Generator().manual_seed((self._seed << 32) + number)
        others = [i for i in torch.randperm(len(self.texts), generator=generator).tolist() if i != right]
        place = int(torch.randint(self._count, (), generator=generator))
        chosen = others[: self._count - 1]
        return [*chosen[:place], right, *chosen[place:]], place
