"""Short names of emoji in the words that a person would type: ":man_running_dark_skin_tone:" is
"man running, dark skin tone", ":Japan:" is "flag of japan"."""

import re
from dataclasses import dataclass

_TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")
_ARTICLE = re.compile(
    r"^(united |british |u\.s\. |isle of |netherlands|philippines|bahamas|maldives|gambia|seychelles|comoros)"
    r"|\b(islands|territories|territory|republic|lands)$"
)
_REGIONS = {
    "hong kong sar china": "hong kong",
    "macao sar china": "macao",
    "myanmar (burma)": "myanmar",
    "cocos (keeling) islands": "the cocos islands",
    "congo-kinshasa": "the democratic republic of the congo",
    "congo-brazzaville": "the republic of the congo",
    "european union": "the european union",
    "u.s. outlying islands": "the us outlying islands",
    "u.s. virgin islands": "the us virgin islands",
    "heard island & mcdonald islands": "heard island and the mcdonald islands",
    "south georgia & south sandwich islands": "south georgia and the south sandwich islands",
    "st. helena ascension & tristan da cunha": "saint helena, ascension and tristan da cunha",
    "st. vincent & grenadines": "saint vincent and the grenadines",
}
_HAIR = {
    "red hair": "with red hair",
    "curly hair": "with curly hair",
    "white hair": "with white hair",
    "blond hair": "with blond hair",
    "beard": "with a beard",
}
_SIGNS = (
    "aries",
    "taurus",
    "gemini",
    "cancer",
    "leo",
    "virgo",
    "libra",
    "scorpio",
    "sagittarius",
    "capricorn",
    "aquarius",
    "pisces",
    "ophiuchus",
)
_HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_WHOLE = {
    "keycap #": "keycap button with the hash sign",
    "keycap *": "keycap button with an asterisk",
    "a button (blood type)": "blood type a button",
    "b button (blood type)": "blood type b button",
    "o button (blood type)": "blood type o button",
    "ab button (blood type)": "blood type ab button",
    "zzz": "zzz, sleeping symbol",
    "bald": "bald head",
    "e-mail": "email envelope",
    "eye in speech bubble": "eye in a speech bubble",
    "man in suit levitating": "man in a suit levitating",
    "person in suit levitating": "person in a suit levitating",
    "mx claus": "person as santa claus",
    "mrs. claus": "mrs claus",
}


@dataclass(frozen=True, slots=True)
class Words:
    """caption: lower-case phrase. concept: the caption without skin tone and direction. toned: it names a skin tone."""

    caption: str
    concept: str
    toned: bool = False


def words(short_name: str, text: str) -> Words:
    """Words for the emoji `text`, whose short name (CLDR, with underscores and colons) is given."""
    name = short_name.strip(":").replace("_", " ").replace("\u2019", "'").lower()
    if _is_flag(text):
        caption = f"flag of {_region(name)}"
        return Words(caption, caption)
    tones = [tone.removesuffix(" skin tone") for tone in _TONE.findall(name)]
    name = re.sub(r"\s+", " ", _TONE.sub("", name)).strip(" ,:")
    if not name:
        caption = f"{tones[0]} skin tone swatch"
        return Words(caption, "skin tone swatch", toned=True)
    concept, facing_right = _phrase(name.removesuffix(" facing right")), name.endswith(" facing right")
    caption = concept
    if facing_right:
        caption += ", facing right"
    if tones:
        caption += f", {_join_words(list(dict.fromkeys(tones)))} skin tone{'s' if len(set(tones)) > 1 else ''}"
    return Words(caption, concept, bool(tones))


def _is_flag(text: str) -> bool:
    regional = len(text) == 2 and all(0x1F1E6 <= ord(character) <= 0x1F1FF for character in text)
    return regional or (text[0] == "\U0001f3f4" and text[-1] == "\U000e007f")  # or a black flag with a tag


def _region(name: str) -> str:
    if name in _REGIONS:
        return _REGIONS[name]
    article = "the " if _ARTICLE.search(name) else ""
    return article + name.replace("&", "and").replace("st. ", "saint ")


def _phrase(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    if name in _SIGNS:
        return f"{name} zodiac sign"
    if name.startswith("keycap "):
        return f"keycap button with the number {name.removeprefix('keycap ')}"
    hour = re.match(rf"^({'|'.join(_HOURS)})( o'clock|-thirty)$", name)
    if hour:
        return f"clock showing {name.replace('-', ' ')}"
    person, _, rest = name.partition(" ")
    if person in ("man", "woman", "person") and rest in _HAIR:
        return f"{person} {_HAIR[rest]}"
    if person in ("man", "woman", "person") and rest == "bald":
        return f"bald {person}"
    if person == "family" and rest:
        return f"family with {_join_words(_members(rest.split()))}"
    for pair in ("couple with heart", "kiss"):
        people = name.removeprefix(f"{pair} ").split()
        if name.startswith(f"{pair} ") and len(people) == 2:
            return f"{pair}, {' and '.join(people)}"
    if name.startswith("japanese ") and name.endswith(" button"):
        return f"japanese button for {name.removeprefix('japanese ').removesuffix(' button')}"
    if name.endswith(" arrow") and name.split()[0].rstrip("!") in ("back", "end", "on", "soon", "top"):
        return f"arrow with the word {name.split()[0].rstrip('!')}"
    return name.replace(" (", ", ").replace(")", "").replace("!", "")


def _members(people: list[str]) -> list[str]:
    """["woman", "girl", "girl"] -> ["a woman", "two girls"]."""
    plural = {
        "man": "men",
        "woman": "women",
        "boy": "boys",
        "girl": "girls",
        "adult": "adults",
        "child": "children",
    }
    counted = {person: people.count(person) for person in people}
    article = {"adult": "an"}
    return [
        f"two {plural[person]}" if count == 2 else f"{article.get(person, 'a')} {person}"
        for person, count in counted.items()
    ]


def _join_words(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
