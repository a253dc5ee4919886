"""Rows of csv, json, jsonl and parquet files: what people keep captions in. Nothing in them is executed."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from data.errors import DataError
from data.stream import Storage

Row = dict[str, Any]


def read_table(url: str, storage: Storage) -> list[Row]:
    """The rows of a file with named columns.

    .csv and .tsv have their names in the first line; .jsonl has an object a line; .json a list of objects.
    Raises DataError for other files, and for those that can't be read.
    """
    extension = url.rpartition(".")[2].lower()
    if extension not in _READERS:
        raise DataError(f"{url} is no table: give a file that ends in .{', .'.join(_READERS)}")
    try:
        rows = _READERS[extension](storage.read(url))
    except (ValueError, csv.Error, RecursionError) as error:  # of pyarrow too, whose errors are ValueErrors
        raise DataError(f"{url} can't be read as {extension}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{url} holds no rows with named columns, such as [{{file_name: ..., text: ...}}]")
    return rows


def _csv(data: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def _tsv(data: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter="\t"))


def _json(data: bytes) -> list[Row]:
    return json.loads(data)


def _jsonl(data: bytes) -> list[Row]:
    return [json.loads(line) for line in data.splitlines() if line.strip()]


def _parquet(data: bytes) -> list[Row]:
    from pyarrow import parquet

    return parquet.read_table(io.BytesIO(data)).to_pylist()


_READERS: dict[str, Callable[[bytes], list[Row]]] = {
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
