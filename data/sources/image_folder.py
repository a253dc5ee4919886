"""Pictures in a folder, with captions beside them, in a table, or without any."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, Sample
from data.sources.files import PictureFiles, digest, is_safe, read_below
from data.sources.tables import read_table
from data.stream import Storage
from data.transforms import BadSample, text_of

BESIDE = "txt"


class ImageFolder:
    """Every picture below a folder, by name; or those that a table names, in its order.

    folder: a path or any fsspec URL. captions: None; "txt", a file beside each picture, of the same name; or the URL of
    a table (.csv, .tsv, .json, .jsonl, .parquet) with a row for each picture, or several: its name below the folder in
    the column `file_column`, and one caption, or a list of them, in `caption_column`. Other columns become metadata; of
    those in which the rows of a picture differ, a list with the value of each row.
    held_out: see HeldOut. name, attribution: for the manifest. Raises DataError.
    """

    splits = (TRAIN, HELD_OUT)

    def __init__(
        self,
        folder: str,
        storage: Storage,
        captions: str | None = None,
        file_column: str = "file_name",
        caption_column: str = "text",
        held_out: float | str = 0.01,
        name: str = "image_folder",
        attribution: str = "unknown",
    ) -> None:
        self.name = name
        self.attribution = attribution
        self.captions = captions
        self.caption_column = caption_column
        self._rows: list[dict[str, Any]] | None = None
        names = None
        self.dropped: Mapping[str, int] = {}
        if captions is not None and captions != BESIDE:
            rows = read_table(captions, storage)
            self._rows = [row for row in rows if isinstance(row.get(file_column), str) and row[file_column].strip()]
            self.dropped = {"no_file_name": len(rows) - len(self._rows)}
            rows_of: dict[str, list[dict[str, Any]]] = {}
            for row in self._rows:
                rows_of.setdefault(str(row.pop(file_column)), []).append(row)
            names = list(rows_of)
            if not names:
                raise DataError(f"{captions}: no row has a column {file_column}; name it by source.file_column")
            if not any(caption_column in row for row in self._rows):
                raise DataError(f"{captions}: no row has a column {caption_column}; name it by source.caption_column")
            self._rows = [_together(rows, caption_column) for rows in rows_of.values()]
        self.files = PictureFiles(folder, storage, held_out, names)
        self.settings = {**self.files.settings, "captions": digest(self._rows) if self._rows else captions}

    def __len__(self) -> int:
        return len(self.files)

    def key(self, position: int) -> str:
        return self.files.keys[position]

    def __getitem__(self, position: int) -> Sample:
        captions, metadata = self._described(position)
        if not captions and self.captions is not None:
            raise BadSample("no_caption")
        if len(captions) > 1:
            metadata["captions"] = captions
        return self.files.sample(position, captions[0] if captions else "", metadata)

    def _described(self, position: int) -> tuple[list[str], dict[str, Any]]:
        """Captions and metadata of a picture."""
        if self._rows is not None:
            row = self._rows[position]
            found = row.get(self.caption_column)
            metadata = {column: value for column, value in row.items() if column != self.caption_column}
            return _texts(found), _plain(metadata)
        name = self.files.names[position]
        if self.captions is None:
            return [], {"file_name": name}
        stem = name.rpartition(".")[0]
        text = read_below(self.files.folder, f"{stem}.{BESIDE}", self.files.storage) if is_safe(stem) else b""
        return _texts(text_of({BESIDE: text}, BESIDE)), {"file_name": name}


def _together(rows: Sequence[dict[str, Any]], caption_column: str) -> dict[str, Any]:
    """The rows of one picture as one, with all of their captions."""
    if len(rows) == 1:
        return rows[0]
    merged: dict[str, Any] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [row.get(column) for row in rows]
        merged[column] = values[0] if all(value == values[0] for value in values) else values
    return {**merged, caption_column: [text for row in rows for text in _texts(row.get(caption_column))]}


def _texts(found: object) -> list[str]:
    several = found if isinstance(found, list) else [found]
    return [" ".join(text.split()) for text in several if isinstance(text, str) and text.strip()]


def _plain(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """What JSON can hold of a row: dates and bytes of a parquet file, say, become text, and unnamed columns go."""
    named = {column: value for column, value in metadata.items() if isinstance(column, str) and value is not None}
    return json.loads(json.dumps(named, default=str))
