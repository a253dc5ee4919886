import multiprocessing
import os
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from faulty import WebServer

from data.disk_cache import DiskCache
from data.index import Index
from data.indexing import build_index
from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.is_file()]


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def test_what_was_put_is_got_in_any_process(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 10_000, 100)
    assert cache.get(("x://a", 3)) is None
    cache.put(("x://a", 3), b"three")
    cache.put(("x://a", 4), b"")
    another = DiskCache(str(tmp_path), 10_000, 100)
    assert another.get(("x://a", 3)) == b"three" and another.get(("x://a", 4)) == b""
    assert another.get(("x://b", 3)) is None
    assert DiskCache(str(tmp_path), 10_000, 200).get(("x://a", 3)) is None, "another size, another block"
    another.forget("x://a")
    assert cache.get(("x://a", 3)) is None


def test_the_least_recently_used_go_and_the_bound_holds(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 1200, 100)
    for number in range(40):
        cache.put(("x://a", number), bytes(100))
        os.utime(cache._path(("x://a", number)), (number, number))  # clocks of file systems are coarse
        cache.get(("x://a", 0))
        assert held(tmp_path) <= 1200
    assert cache.get(("x://a", 0)) is not None and cache.get(("x://a", 39)) is not None
    assert cache.get(("x://a", 20)) is None
    cache.put(("x://a", 99), bytes(5000))
    assert cache.get(("x://a", 99)) is None and held(tmp_path) <= 1200


def test_a_torn_or_altered_block_is_no_block(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 10_000, 100)
    for damage in (lambda data: data[:-1], lambda data: b"", lambda data: data[:-1] + b"?", lambda data: data[:5]):
        cache.put(("x://a", 1), b"right")
        path = cache._path(("x://a", 1))
        path.write_bytes(damage(path.read_bytes()))
        assert cache.get(("x://a", 1)) is None
        path.unlink(missing_ok=True)


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 1200, 100)
    cache.put(("x://a", 0), bytes(100))
    part = next(tmp_path.glob("*/")) / "100-5.123.part"
    part.write_bytes(bytes(300))
    (tmp_path / "held_bytes").write_text("torn")
    for number in range(1, 30):
        cache.put(("x://a", number), bytes(100))
        assert held(tmp_path) <= 1200
    assert not part.exists()


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path / "cache"), 1200, 100)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("no folder any more")
    cache.put(("x://a", 0), b"x")
    assert cache.get(("x://a", 0)) is None
    cache.forget("x://a")


def use(folder: str, seed: int, wrong: Any) -> None:
    cache, chooser = DiskCache(folder, 20_000, 100), random.Random(seed)
    for _ in range(400):
        number = chooser.randrange(300)
        found = cache.get(("x://a", number))
        if found is None:
            cache.put(("x://a", number), number.to_bytes(2, "big") * 50)
        elif found != number.to_bytes(2, "big") * 50:
            wrong.value += 1


def test_many_processes_keep_to_one_bound_and_see_whole_blocks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    wrong = context.Value("i", 0)
    users = [context.Process(target=use, args=(str(tmp_path), seed, wrong)) for seed in range(4)]
    for user in users:
        user.start()
    users[0].kill()
    for user in users:
        user.join()
    assert wrong.value == 0
    assert 0 < held(tmp_path) <= 20_000


def test_a_second_epoch_asks_the_store_for_nothing(shards: Callable[..., str], tmp_path: Path) -> None:
    folder = shards(9, 11)
    index_url = build_index(folder, folder, Storage())
    expected = rows(index_url, Storage())
    with WebServer(folder, True) as server:
        url = "http://{}:{}/index.json".format(*server.address)
        caching = {"cache_folder": str(tmp_path / "cache"), "cache_folder_bytes": 1 << 20, "patience_seconds": 0.0}
        assert rows(url, Storage(**caching)) == expected
        index = Index.load(url, Storage())
        [index.sample(n) for n in range(20)]  # offsets are of the store, shards are cached
    later = Storage(**caching)  # type: ignore[arg-type]
    index.storage = later
    assert rows(index, later) == expected


def rows(source: str | Index, storage: Storage) -> list[tuple[str, bytes]]:
    index = Index.load(source, storage) if isinstance(source, str) else source
    batches = Loader([IndexedSource(index)], storage, 3, 8, {}, 4, 4).batches()
    found = [
        (c, i.numpy().tobytes())
        for batch in islice(batches, 5)
        for c, i in zip(batch.captions, batch.images, strict=True)
    ]
    batches.close()
    return found


def test_a_shard_that_changed_is_read_from_the_store_anew(shards: Callable[..., str], tmp_path: Path) -> None:
    """What is cached of the old shard must not hide the new one from an index that is of the new one."""
    folder = Path(shards(9))
    with WebServer(str(folder), True) as server:
        url = "http://{}:{}".format(*server.address)
        storage = Storage(cache_folder=str(tmp_path / "cache"), patience_seconds=0)
        build_index(str(folder), str(folder), Storage())
        rows(f"{url}/index.json", storage)
        newer = Path(shards(4, 9, name="newer"))
        (folder / "00000.tar").write_bytes((newer / "00001.tar").read_bytes())
        build_index(str(newer / "00001.tar"), str(tmp_path / "index"), Storage())
        for path in (tmp_path / "index").iterdir():
            (folder / path.name).write_text(
                path.read_text().replace(str(newer / "00001.tar"), "00000.tar")
            ) if path.suffix == ".json" else (folder / path.name).write_bytes(path.read_bytes())
        fresh = Storage(cache_folder=str(tmp_path / "cache"), patience_seconds=0)
        seen = {caption for caption, _ in rows(f"{url}/index.json", fresh)}
        assert seen == {f"picture {n}" for n in range(4, 13)}
