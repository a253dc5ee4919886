"""Results are kept by protocol and step, and read back in that order."""

from pathlib import Path

from evaluation.results import Result, read_results, write_result


def result(step: int, name: str = "p", value: float = 1.0) -> Result:
    return Result(step, "ema", {"name": name, "seed": 0}, "hash", {"frechet": value}, 3.5, [{"name": "published"}])


def test_results_come_back_in_order(tmp_path: Path) -> None:
    assert read_results(tmp_path) == []
    written = [result(step, name) for name in ("a", "b") for step in (0, 5, 100)]
    for one in reversed(written):
        write_result(tmp_path, one)
    assert read_results(tmp_path) == written
    assert (tmp_path / "evaluation" / "a-step00000005.json").exists()


def test_a_new_result_takes_the_place_of_the_old(tmp_path: Path) -> None:
    write_result(tmp_path, result(5, value=1.0))
    write_result(tmp_path, result(5, value=2.0))
    assert [one.measured["frechet"] for one in read_results(tmp_path)] == [2.0]
    assert len(list((tmp_path / "evaluation").iterdir())) == 1
