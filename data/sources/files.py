"""Picture files below a folder, as candidates of a source; names from other people's files are not trusted."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from data.errors import DataError, NotFound
from data.sources import LARGEST_SAMPLE_BYTES, LeftOut, Sample
from data.sources.held_out import HeldOut
from data.stream import Storage, join
from data.transforms import IMAGE_EXTENSIONS, BadSample

_NOT_IN_KEYS = re.compile(r"[^\w-]", re.ASCII)
_LONGEST_KEY = 400  # bytes


class PictureFiles:
    """Files below a folder that a data set lists.

    folder: a path or any fsspec URL. names: of the files, relative to it, in the order of the data set; None: every
    picture below it, by name. held_out: see HeldOut. Raises DataError when there is no file.
    """

    def __init__(
        self, folder: str, storage: Storage, held_out: float | str, names: Sequence[str] | None = None
    ) -> None:
        self.folder = folder
        self.storage = storage
        self.held_out = HeldOut(held_out, storage)
        self.names = pictures_below(folder, storage) if names is None else list(names)
        if not self.names:
            raise DataError(f"no picture ({', '.join(IMAGE_EXTENSIONS)}) in {folder}: check the path")
        self.keys = keys_of(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def settings(self) -> dict[str, object]:
        """What tells this list from another one."""
        return {"files": digest(self.names), "held_out": self.held_out.setting}

    def sample(
        self,
        position: int,
        caption: str = "",
        metadata: Mapping[str, object] | None = None,
        members: Mapping[str, bytes] | None = None,
    ) -> Sample:
        """The picture at a position with what is known of it. Raises LeftOut "unsafe_name", BadSample "missing"."""
        name = self.names[position]
        extension = name.rpartition(".")[2].lower()
        image = read_below(self.folder, name, self.storage)
        split = self.held_out.split(name)
        return Sample(self.keys[position], image, extension, caption, metadata or {}, members or {}, split)


def pictures_below(folder: str, storage: Storage) -> list[str]:
    """Names of the pictures anywhere below a folder, relative to it, sorted. Raises DataError when there are none."""
    start = len(join(folder, ""))
    names = [url[start:] for url in storage.list(folder, below=True)]
    found = [name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    if not found:
        raise DataError(f"no picture ({', '.join(IMAGE_EXTENSIONS)}) in {folder}: check the path")
    return found


def read_below(folder: str, name: str, storage: Storage) -> bytes:
    """A file below a folder, by a name that somebody else wrote; of one that is too large for a sample a byte too many.
    Raises LeftOut "unsafe_name", BadSample "missing"."""
    if not is_safe(name):
        raise LeftOut("unsafe_name")
    try:
        return storage.read(join(folder, name), 0, LARGEST_SAMPLE_BYTES + 1)
    except NotFound as error:
        raise BadSample("missing", str(error)) from error


def is_safe(name: str) -> bool:
    """Whether a relative name stays below its folder, whatever the file system."""
    parts = name.split("/")
    return not (".." in parts or "" in parts or any(character in name for character in "\\:\0") or name != name.strip())


def keys_of(names: Sequence[str]) -> list[str]:
    """Keys of samples by the names of their files: the name without its extension, and dots and slashes as _.

    Names that would have the same key, or a very long one, get a hash of the name behind it.
    """
    keys = [_NOT_IN_KEYS.sub("_", name.rpartition(".")[0] or name) for name in names]
    counts = Counter(keys)
    return [
        shortened(key, name) if counts[key] == 1 else _hashed(key, name) for key, name in zip(keys, names, strict=True)
    ]


def shortened(key: str, name: str) -> str:
    """A key; of a very long one its start, with a hash of the sample's name behind it."""
    return key if len(key.encode(errors="surrogatepass")) <= _LONGEST_KEY else _hashed(key, name)


def _hashed(key: str, name: str) -> str:
    start = key.encode(errors="surrogatepass")[:_LONGEST_KEY].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def digest(content: object) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
