"""Which nodes are blamed for what is wrong."""

from __future__ import annotations

import itertools

import pytest

from slurm.verdict import ELSEWHERE, GOOD, HOPELESS, Finding, judge, rounds_of_pairs, skews, slow_ones

NODES = ["a", "b", "c", "d"]


def findings(**problems: dict[str, str]) -> list[Finding]:
    return [Finding(node, {}, problems.get(node, {})) for node in NODES]


def test_a_node_is_blamed_for_what_others_have_not() -> None:
    assert judge(findings(), [], 0, 8).status == GOOD
    verdict = judge(findings(b={"GPUs": "7 of 8", "clock": "9 s off"}, d={"/dev/shm": "full"}), [], 0, 8)
    assert (verdict.status, verdict.bad) == (ELSEWHERE, {"b": "7 of 8; 9 s off", "d": "full"})


def test_what_fails_everywhere_is_nobody_s_fault() -> None:
    verdict = judge(findings(**{node: {"store": "refused"} for node in NODES}), [], 0, 8)
    assert (verdict.status, verdict.bad) == (HOPELESS, {})
    assert verdict.common == ["store: refused, and so on all 4 nodes"]


def test_a_node_alone_is_blamed_for_what_is_its_own() -> None:
    alone = [Finding("a", {}, {"GPUs": "7 of 8"})]
    assert judge(alone, [], 0, 8).status == ELSEWHERE
    alone[0].problems = {"store": "refused"}
    assert judge(alone, [], 0, 8).status == HOPELESS


def test_a_node_that_is_silent_is_bad() -> None:
    assert judge(findings()[:3], ["d"], 0, 8).bad == {"d": "it didn't answer"}


def test_too_many_bad_nodes_are_a_sign_of_something_else() -> None:
    bad = findings(a={"GPUs": "none"}, b={"GPUs": "none"})
    assert judge(bad, [], 6, 8).status == ELSEWHERE
    assert judge(bad, [], 7, 8).status == HOPELESS


def test_clocks_are_judged_by_the_middle_one() -> None:
    """So that a first node whose own clock is wrong isn't right by definition."""
    found = skews({"a": 0.0, "b": 30.0, "c": 30.1, "d": 29.9})
    assert max(found, key=lambda node: abs(found[node])) == "a"
    assert all(abs(found[node]) < 0.2 for node in "bcd")


@pytest.mark.parametrize("count", range(2, 10))
def test_pairs_meet_all_neighbours_and_nobody_twice_at_a_time(count: int) -> None:
    rounds = rounds_of_pairs(count)
    for pairs in rounds:
        assert len({number for pair in pairs for number in pair}) == 2 * len(pairs)
    met = {frozenset(pair) for pairs in rounds for pair in pairs}
    assert met == {frozenset((number, (number + 1) % count)) for number in range(count)}
    assert len(rounds) <= 3


@pytest.mark.parametrize("count", range(3, 8))
def test_the_slow_node_is_found_among_its_neighbours(count: int) -> None:
    for slow in itertools.chain(((n,) for n in range(count)), ((n, (n + 1) % count) for n in range(count))):
        if len(slow) == 2 and count < 5:  # a single fast pair is left, or none
            continue
        pairs = [pair for pairs in rounds_of_pairs(count) for pair in pairs]
        rates = {pair: 1e9 if set(pair) & set(slow) else 2e10 for pair in pairs}
        assert slow_ones(rates, 2e10) == set(slow)
