from collections.abc import Callable

import pytest
import torch

from data.index import Index
from data.members import MemberReader
from data.offsets import Entry
from data.pictures import ImageReader
from data.shard_parts import Part, ShardParts
from data.stream import Storage
from data.transforms import BadSample, decode_image, image_of
from data.view import middle

SIZES = (5, 9, 2, 7)


def parts_of(folder: str, shards: list[int], size: int, workers: int = 0) -> tuple[Index, list[Part]]:
    storage = Storage()
    index = Index.load(folder, storage)
    data = ShardParts(index, MemberReader(storage, True), ImageReader(8, 8, False, 1, 10**6))
    return index, list(data.batches(shards, size, workers))


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (4, 0), (100, 0), (4, 2)])
def test_every_sample_of_the_wanted_shards_comes_once_and_in_order(
    size: int, workers: int, shards: Callable[..., str]
) -> None:
    index, parts = parts_of(shards(*SIZES), [3, 1], size, workers)
    places = [(part.shard, part.first + row) for part in parts for row in range(len(part))]
    assert places == [(3, n) for n in range(7)] + [(1, n) for n in range(9)]
    reader = MemberReader(index.storage, True)
    rows = [(part, row) for part in parts for row in range(len(part))]
    for (shard, position), (part, row) in zip(places, rows, strict=True):
        url, entry = index.sample(sum(SIZES[:shard]) + position)
        members = reader.read(url, entry)
        assert part.keys[row] == entry.key and part.views[row] == middle(8, 8, 8)
        assert part.members[row] == {name: data for name, data in members.items() if name != "png"}
        picture = torch.from_numpy(decode_image(image_of(members)[1])).permute(2, 0, 1)
        assert torch.equal(part.images[row], picture)
    assert all(not part.faults for part in parts)


def test_a_bad_sample_keeps_its_place(shards: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shards(*SIZES)
    read = MemberReader.read

    def damaged(self: MemberReader, url: str, entry: Entry) -> dict[str, bytes]:
        if entry.key == bad_key:
            raise BadSample("corrupt")
        return read(self, url, entry)

    bad_key = Index.load(folder, Storage()).sample(7)[1].key
    monkeypatch.setattr(MemberReader, "read", damaged)
    _, [part] = parts_of(folder, [1], 100)
    [(row, fault)] = part.faults.items()
    assert (row, fault.reason, fault.key, fault.number) == (2, "corrupt", bad_key, 7)
    assert part.members[row] == {} and part.views[row] is None and not part.images[row].any()
    assert len(part) == 9
