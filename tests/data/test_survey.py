import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from data.errors import DataError
from data.survey import ROW, Criteria, Survey, choose


def parts(count: int, size: int = 100) -> Iterator[Survey]:
    """Of so many candidates each: the first of each is left out, for reasons in turn; keys and pictures repeat."""
    for number in range(count):
        part = Survey(np.zeros(size, ROW))
        part.rows["reason"][0] = part.code(("truncated", "where_similarity", "too_small")[number % 3])
        part.rows["key"] = part.rows["sha256"][:, 1] = np.arange(number * size, (number + 1) * size) % (
            count * size // 2
        )
        part.rows["split"][1::10] = 1
        part.rows["size"] = 256
        yield part


def test_parts_keep_their_reasons_together_and_through_a_file() -> None:
    found = Survey.together((Survey.from_bytes(part.to_bytes(), "note") for part in parts(6)), 600)
    reasons = np.array(found.reasons)[found.rows["reason"]]
    assert reasons[::100].tolist() == ["truncated", "where_similarity", "too_small"] * 2
    assert found.kept.sum() == 594 and found.kept.tolist() == (reasons == "").tolist()
    for content in (b"", b"PK", np.zeros(3).tobytes()):
        with pytest.raises(DataError, match="note is no survey"):
            Survey.from_bytes(content, "note")


def test_of_what_looks_the_same_the_first_is_chosen_and_the_rest_counted() -> None:
    choice = choose(Survey.together(parts(6), 600), ("train", "heldout"), Criteria(drop_same=True))
    # the second half shows the first again; two of its pictures in a hundred weren't looked at
    assert choice.dropped == {"duplicate": 297, "too_small": 2, "truncated": 2, "where_similarity": 2}
    assert choice.examples["truncated"] == [0, 300] and choice.examples["duplicate"][:2] == [301, 302]
    assert choice.positions["heldout"].tolist() == [n for n in range(300) if n % 10 == 1]
    assert choice.repeats.tolist() == [0] * 300 + [1] * 300


def test_a_candidate_takes_less_than_a_hundred_bytes() -> None:
    candidates = 100_000
    tracemalloc.start()
    try:
        found = Survey.together(parts(candidates // 1000, 1000), candidates)
        choose(found, ("train", "heldout"), Criteria(drop_same=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 90 * candidates
