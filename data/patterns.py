"""What the URLs of shards stand for: braces, patterns, folders, lists."""

import fnmatch
from collections.abc import Callable, Sequence

from braceexpand import braceexpand

from data.errors import DataError

_PATTERN = "*?["


def expand(
    urls: str | Sequence[str], list_folder: Callable[[str], list[str]], read: Callable[[str], bytes]
) -> list[str]:
    """URLs of shards from URLs with {00..99} or {a,b} braces, with *?[] in the last part, of folders and of lists.

    A folder stands for its *.tar, a .json (an index) for itself, a .txt for what its lines name: URLs as here, from the
    list's own folder where they have none; # begins a comment. Order is kept; sorted within a pattern. What follows a ?
    in a URL of the web is no pattern. list_folder: the URLs of the objects in a folder. read: the bytes of an object.
    Raises DataError for patterns in other parts.
    """
    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        for url in braceexpand(pattern):
            name, folder = name_of(url), folder_of(url)
            if _is_pattern(name):
                found += [shard for shard in list_folder(folder) if fnmatch.fnmatchcase(name_of(shard), name)]
            elif name.endswith(".txt"):
                found += expand(_lines(read(url).decode(), url), list_folder, read)
            elif name.endswith((".tar", ".json")):
                found.append(url)
            else:
                found += [shard for shard in list_folder(url) if shard.endswith(".tar")]
    return found


def is_folder(url: str) -> bool:
    """Whether a URL stands for what lies in it: no shard, no list, no index, no pattern and no braces."""
    name = name_of(url)
    return "{" not in url and not _is_pattern(name) and not name.endswith((".tar", ".txt", ".json"))


def folder_of(url: str) -> str:
    """The folder that has to be there: of the URL's last part, or of the first one with braces.

    Raises DataError for a pattern in it, which nothing would expand.
    """
    protocol, mark, path = path_of(url).rpartition("://")
    if set(path.rstrip("/").rpartition("/")[0]) & set("*?"):
        raise DataError(
            f"{url}: *, ? and [] are for the last part of a URL alone; name its folders with braces, such as "
            "{a,b}/*.tar, or one a line in a list (.txt)"
        )
    parent, slash, _ = path.split("{")[0].rpartition("/")
    return protocol + mark + (parent if slash else path if mark else ".")


def path_of(url: str) -> str:
    """A URL without the query that one of the web may have: https://host/0.tar of https://host/0.tar?download=true."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def name_of(url: str) -> str:
    """The last part of a URL's path."""
    return path_of(url).rstrip("/").rsplit("/", 1)[-1]


def beside(shard_url: str, extension: str) -> str:
    """The URL of a shard with another extension than .tar: 00000.parquet of 00000.tar."""
    path = path_of(shard_url)
    return path.removesuffix(".tar") + extension + shard_url[len(path) :]


def _lines(text: str, url: str) -> list[str]:
    """What a list at `url` names."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    folder = path_of(url).removesuffix(name_of(url))
    return [line if "://" in line or line.startswith("/") else folder + line for line in lines if line]


def _is_pattern(name: str) -> bool:
    return any(character in name for character in _PATTERN)
