"""How long it takes to choose samples by their metadata: by the .json in tars, and by the parquet files beside them.

    python -m tests.benchmarks.filters
    python -m tests.benchmarks.filters --shards 4 --samples 10000 --picture-bytes 30000

Makes shards as img2dataset writes them in a temporary folder, and builds the index of those that fulfil conditions on
three fields; in this process alone, of files that are in the machine's memory. CPU seconds, since others may use this
machine; and bytes that were read, in the pieces in which a store is asked for them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data.indexing import build_index
from data.stream import Storage
from data.where import Where

WHERE = {"similarity": {"at_least": 0.3}, "shorter_side": {"at_least": 256}, "NSFW": {"among": ["UNLIKELY"]}}


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10_000, help="of each shard")
    parser.add_argument("--picture-bytes", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tables, bare = Path(place) / "tables", Path(place) / "bare"
        make_shards(tables, arguments.shards, arguments.samples, arguments.picture_bytes)
        bare.mkdir()
        for tar in tables.glob("*.tar"):
            (bare / tar.name).hardlink_to(tar)
        cost(bare)  # brings the files into memory
        ways = {"by .json": cost(bare), "by parquet": cost(tables)}
        for folder, way in ((bare, "by .json, shards indexed before"), (tables, "by parquet, shards indexed before")):
            build_index(str(folder), str(folder), Storage())
            ways[way] = cost(folder)
        total = arguments.shards * arguments.samples
        for way, (taken, read) in ways.items():
            ratio = ways["by .json"][0] / taken
            speed = f"{taken:.2f} s, {total / taken:,.0f} samples/s, x {ratio:.1f}"
            print(f"{way}: {speed}; {read / total:,.0f} bytes a sample")


def cost(folder: Path) -> tuple[float, int]:
    """CPU seconds of an index with conditions, of the shards in a folder, the least of three; and the bytes read."""
    found = []
    for url in (str(folder),) * 3 + (f"local://{folder}",):  # in which nothing is taken for a file of this machine
        output, storage = folder.parent / "index", Storage()
        began = time.process_time()
        build_index(url, str(output), storage, Where(WHERE))
        found.append(time.process_time() - began)
        shutil.rmtree(output)
    return min(found[:3]), storage.traffic.take().bytes_read


def make_shards(folder: Path, shards: int, samples: int, picture_bytes: int) -> None:
    """Tars with .jpg, .txt and .json, and a parquet of the same metadata beside each; pictures are noise."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
    from made_files import make_tar
    from pyarrow import Table, parquet

    folder.mkdir()
    choose = random.Random(0)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        rows: list[dict[str, Any]] = []
        for number in range(samples):
            key = f"{shard:05d}{number:04d}"
            row = {
                "caption": f"picture {number} " + "of something that somebody has described " * 2,
                "url": f"https://example.org/pictures/{choose.getrandbits(128):032x}.jpg",
                "key": key,
                "status": "success",
                "error_message": None,
                "width": choose.randint(200, 512),
                "height": choose.randint(200, 512),
                "original_width": choose.randint(200, 4000),
                "original_height": choose.randint(200, 4000),
                "exif": "{}",
                "sha256": f"{choose.getrandbits(256):064x}",
                "similarity": choose.uniform(0.2, 0.4),
                "NSFW": choose.choice(["UNLIKELY", "UNLIKELY", "UNSURE", "NSFW"]),
            }
            rows.append(row)
            members[f"{key}.jpg"] = choose.randbytes(picture_bytes)
            members[f"{key}.json"] = json.dumps(row, indent=4).encode()
            members[f"{key}.txt"] = str(row["caption"]).encode()
        (folder / f"{shard:05d}.tar").write_bytes(make_tar(members))
        parquet.write_table(Table.from_pylist(rows), folder / f"{shard:05d}.parquet")


if __name__ == "__main__":
    main()
