from data.blocks import BlockCache, runs_of


def test_the_least_recently_used_leaves_first() -> None:
    cache = BlockCache(10)
    for number in range(3):
        cache.put(("a", number), bytes(3))
    assert cache.get(("a", 0)) == bytes(3)
    cache.put(("b", 0), bytes(4))
    assert [("a", n) in cache for n in range(3)] == [True, False, True]
    assert cache.held_bytes == 10
    cache.put(("b", 0), bytes(1))
    assert cache.held_bytes == 7
    cache.forget("a")
    assert cache.held_bytes == 1


def test_neighbouring_ranges_become_one_run() -> None:
    ranges = [("b", 5, 6), ("a", 25, 31), ("a", 0, 10), ("a", 10, 11), ("a", 70, 70), ("a", 26, 27)]
    assert runs_of(ranges, 10) == [("a", 0, 3), ("a", 7, 7), ("b", 0, 0)]
    assert runs_of([], 10) == []


def test_of_what_is_lacking_half_a_cache_is_brought() -> None:
    """The rest would push out what came before it was read."""
    cache = BlockCache(100)
    cache.put(("a", 0), bytes(10))
    assert cache.lacking([("a", 0, 0), ("b", 0, 2), ("c", 0, 3), ("d", 7, 8), ("e", 0, 0)], 10) == [
        ("b", 0, 2),
        ("d", 7, 8),
    ]
    assert cache.lacking([("b", 0, 5), ("a", 0, 1)], 10) == [("a", 0, 1)]
