"""What the URLs of shards stand for: braces, patterns, folders, lists."""

import fnmatch
from collections.abc import Callable, Sequence

from braceexpand import braceexpand


def expand(
    urls: str | Sequence[str], list_folder: Callable[[str], list[str]], read: Callable[[str], bytes]
) -> list[str]:
    """URLs of shards from URLs with {00..99} or {a,b} braces, with *?[] in the last part, of folders and of lists.

    A folder stands for its *.tar, a .json (an index) for itself, a .txt for what its lines name: URLs as here, those
    without a folder beside the list; # begins a comment. Order is kept; sorted within a pattern.
    list_folder: the URLs of the objects in a folder. read: the bytes of an object.
    """
    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        for url in braceexpand(pattern):
            name = _name(url.rstrip("/"))
            if any(character in name for character in "*?["):
                folder = url[: -len(name)].rstrip("/")
                found += [shard for shard in list_folder(folder or ".") if fnmatch.fnmatchcase(_name(shard), name)]
            elif name.endswith(".txt"):
                found += expand(_lines(read(url).decode(), url), list_folder, read)
            elif name.endswith((".tar", ".json")):
                found.append(url)
            else:
                found += [shard for shard in list_folder(url) if shard.endswith(".tar")]
    return found


def _lines(text: str, url: str) -> list[str]:
    """What a list at `url` names."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    folder = url[: -len(_name(url))]
    return [line if "/" in line else folder + line for line in lines if line]


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]
