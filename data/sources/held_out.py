"""Which pictures of a data set are held out, by one setting that all sources share."""

import fnmatch
import hashlib

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN
from data.stream import Storage


class HeldOut:
    """Tells a picture's split by its name.

    held_out: a number is the share of pictures that are held out, chosen by a hash of their names, so that a name's
    split stays what it is when others are added; 0: none, 1: all. Text is a pattern of names, such as "val/*" (* also
    stands for slashes), or, when it ends in .txt, the URL of a list of names. Raises DataError.
    """

    def __init__(self, held_out: float | str, storage: Storage) -> None:
        if isinstance(held_out, bool) or (not isinstance(held_out, str) and not 0 <= held_out <= 1):
            raise DataError(f"held_out={held_out}: give a share from 0 to 1, a pattern such as val/*, or a list (.txt)")
        self.setting = held_out
        self._listed: frozenset[str] | None = None
        if isinstance(held_out, str) and held_out.endswith(".txt"):
            lines = storage.read(held_out).decode(errors="replace").splitlines()
            self._listed = frozenset(line.strip() for line in lines if line.strip())
            self.setting = hashlib.sha256("\n".join(sorted(self._listed)).encode()).hexdigest()

    def split(self, name: str) -> str:
        """TRAIN or HELD_OUT."""
        if self._listed is not None:
            held_out = name in self._listed or name.rpartition("/")[2] in self._listed
        elif isinstance(self.setting, str):
            held_out = fnmatch.fnmatchcase(name, self.setting)
        else:
            held_out = place_of(name) < self.setting
        return HELD_OUT if held_out else TRAIN


def place_of(name: str) -> float:
    """A number from 0 to 1 by a hash of a name: evenly spread, and the same for ever."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
