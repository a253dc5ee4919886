from pathlib import Path

import pytest

from data.errors import DataError
from data.sources import HELD_OUT
from data.sources.files import is_safe, keys_of
from data.sources.held_out import HeldOut
from data.stream import Storage


def held_out(setting: float | str, names: list[str]) -> list[str]:
    rule = HeldOut(setting, Storage())
    return [name for name in names if rule.split(name) == HELD_OUT]


def test_a_share_holds_for_any_names_and_keeps_to_them() -> None:
    names = [f"{number}.jpg" for number in range(4000)]
    assert held_out(0.0, names) == [] and held_out(1.0, names) == names
    tenth = held_out(0.1, names)
    assert 330 < len(tenth) < 470
    assert set(tenth) <= set(held_out(0.2, names))  # a larger share takes others in addition
    assert held_out(0.1, names[::2]) == [name for name in names[::2] if name in tenth]


def test_patterns_and_lists(tmp_path: Path) -> None:
    names = ["train/a.jpg", "val/b.jpg", "val/c/d.jpg"]
    assert held_out("val/*", names) == names[1:]
    (tmp_path / "list.txt").write_text("d.jpg\n\ntrain/a.jpg\n")
    assert held_out(str(tmp_path / "list.txt"), names) == [names[0], names[2]]


@pytest.mark.parametrize("wrong", [-0.1, 1.5, True])
def test_others_are_named(wrong: float) -> None:
    with pytest.raises(DataError, match=f"held_out={wrong}"):
        HeldOut(wrong, Storage())


def test_names_that_lead_out_of_their_folder() -> None:
    assert all(is_safe(name) for name in ("a.jpg", "a/b c/ü.jpg", "..a/b..jpg"))
    for name in ("../a", "a/../../b", "/a", "a//b", "", "C:\\a", "s3://x/a", "a\0b", " a", "a\n"):
        assert not is_safe(name), name


def test_keys_differ_where_names_do() -> None:
    names = ["a/b.jpg", "a_b.jpg", "a/b.png", "c.d.jpg", "ü.jpg", "ö.jpg"]
    keys = keys_of(names)
    assert len(set(keys)) == len(names) and keys[3] == "c_d"
    assert all(key.isascii() and not set("./\\") & set(key) for key in keys)
    long = keys_of([f"{'deep/' * 100}{n}.png" for n in range(3)])
    assert len(set(long)) == 3 and all(len(key) < 450 for key in long)
