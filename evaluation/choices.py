"""Pictures with words to choose from, of which one is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.heldout import HeldOut
from evaluation.image_folder import SUFFIXES, read_picture


class Choices(Protocol):
    """Pictures by number. texts: all words that there are. fingerprint: of the pictures and their words."""

    texts: Sequence[str]
    fingerprint: str

    def __len__(self) -> int: ...

    def image(self, number: int) -> Tensor:
        """uint8 [3, H, W]."""
        ...

    def candidates(self, number: int) -> tuple[Sequence[int], int]:
        """Numbers of the texts to choose from, and the place of the right one among them."""
        ...


class FolderChoices:
    """A folder for each class, with its pictures: every class is a candidate.

    Args:
        folder: its subfolders are the classes; a class's pictures may lie in further subfolders.
        names: folder -> its class in words; None: the folder's name, with spaces for underscores.
        image_size: pictures have their shorter side scaled to it and are cut to their middle; None: as they are.
        count: pictures drawn by seed; None: all.
        seed: of that.

    Raises EvaluationError with fewer than two classes, for one without pictures or words, and when there are too few.
    """

    def __init__(
        self, folder: Path, names: Mapping[str, str] | None, image_size: int | None, count: int | None, seed: int
    ) -> None:
        if not folder.is_dir():
            raise EvaluationError(f"data.folder={folder}: there is no such folder")
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if len(classes) < 2:
            raise EvaluationError(f"data.folder={folder}: it holds {len(classes)} folders; give one for each class")
        if names is not None and (absent := [name for name in classes if name not in names]):
            raise EvaluationError(f"data.names: nothing for the folders {', '.join(absent[:5])}; name every class")
        self.texts: Sequence[str] = [names[name] if names is not None else name.replace("_", " ") for name in classes]
        found: list[tuple[Path, int]] = []
        for i, name in enumerate(classes):
            paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
            if not paths:
                raise EvaluationError(f"{folder / name}: no picture ({', '.join(sorted(SUFFIXES))}) of this class")
            found += [(path, i) for path in paths]
        if count is not None and not 1 <= count <= len(found):
            raise EvaluationError(f"data.pictures={count}: give 1 to {len(found)}, as many as there are")
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
        self._found = [found[i] for i in order[:count]]
        self._size = image_size
        listing = [[str(path.relative_to(folder)), path.stat().st_size] for path, _ in self._found]
        self.fingerprint = hashlib.sha256(json.dumps([listing, self.texts]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._found)

    def image(self, number: int) -> Tensor:
        """Raises EvaluationError when the file can't be read."""
        return read_picture(self._found[number][0], self._size)

    def candidates(self, number: int) -> tuple[Sequence[int], int]:
        return range(len(self.texts)), self._found[number][1]


class CaptionChoices:
    """A picture's own caption among those of others, drawn for it. All pictures are held in memory.

    Args:
        samples: pictures with captions.
        count: captions to choose from.
        seed: draws the others.

    Raises EvaluationError when there are fewer different captions.
    """

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
