"""Which settings and words are credentials, and the same without them. A leaf: imports nothing else of this project.

Keys of a store come from the environment or an AWS profile. What is shown, kept with a run or sent away is masked here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"
REMEDY = (
    "credentials don't belong into a configuration; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name an AWS "
    "profile in data.storage.profile, and in place of a signed URL name s3://bucket/... or a file of your own"
)
SHORTEST = 6
"""Shorter values of environment variables are words that may stand anywhere."""

_NAME = re.compile(r"secret|key_?id|token|passw(or)?d|api_?key|access_?key|credential", re.IGNORECASE)
_NO_NAME = re.compile(r"^tokenizers?(_|$)|tokens$|^token_std$", re.IGNORECASE)
_USER_OF_URL = re.compile(r"(?<=://)[^/?#\s]+@")
_SIGNATURE = re.compile(
    r"([?&;][a-z0-9_-]*(?:signature|credential|token|key|key_?id|sig|secret|password)=)(?!\*\*\*)[^&#;\s'\"]+",
    re.IGNORECASE,
)
_VALUE = r"[^\s,'\"&{}\[\]]*[^\s,'\"&{}\[\]:;.]"
_ASSIGNED = re.compile(rf"([\w.-]+)(=['\"]?)({_VALUE})")
_IN_BRACES = re.compile(rf"((?:[{{,]\s*)['\"]?)([\w.-]+)(['\"]?:\s*['\"]?)({_VALUE})")


def is_credential(name: str) -> bool:
    """Whether a setting or variable of this name holds a key, a password or a token."""
    return bool(_NAME.search(name)) and not _NO_NAME.search(name)


def masked(settings: Any, name: str = "") -> Any:
    """The same settings with *** for each value whose name is a credential's, and in URLs for users and signatures."""
    if isinstance(settings, dict):
        return {key: masked(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [masked(value, name) for value in settings]
    if settings is not None and not isinstance(settings, bool) and is_credential(name):
        return MASK
    return masked_urls(settings) if isinstance(settings, str) else settings


def credentials_in(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of the settings that `masked` changes, and what it makes of each."""
    for name, value in settings.items():
        key = f"{above}{name}"
        if isinstance(value, dict):
            yield from credentials_in(value, f"{key}.")
        elif (shown := masked(value, str(name))) is not value and shown != value:  # NaN is not even itself
            yield key, shown


def credential_in_override(override: str) -> tuple[str, str] | None:
    """Key and masked value of a `key=value` that holds a credential, whether it can be read or not; else None."""
    key, _, value = override.lstrip("+~").partition("=")
    if value not in ("", "null", "true", "false") and is_credential(_last(key)):
        return key, MASK
    return (key, shown) if (shown := masked_urls(value)) != value else None


def masked_urls(text: str) -> str:
    """The same with *** for users and signatures of URLs."""
    return _SIGNATURE.sub(rf"\1{MASK}", _USER_OF_URL.sub(f"{MASK}@", text))


def masked_text(text: str) -> str:
    """A message with *** for what may be a credential: the value of an environment variable or of a setting so named,
    and in URLs users and signatures."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and is_credential(name):
            text = text.replace(value, MASK)
    text = _ASSIGNED.sub(lambda m: f"{m[1]}{m[2]}{MASK}" if is_credential(_last(m[1])) else m[0], masked_urls(text))
    return _IN_BRACES.sub(lambda m: f"{m[1]}{m[2]}{m[3]}{MASK}" if is_credential(m[2]) else m[0], text)


def _last(key: str) -> str:
    return key.rpartition(".")[2]
