"""What went wrong between this machine and a store: error kinds, and the remedy for each."""

import errno
import os
import ssl
from contextlib import suppress
from typing import Any

from aiohttp import ClientError, ClientResponseError

from data.errors import DataError, NotFound, Refused, StoreUnavailable

REFUSED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "Forbidden",
    "ExpiredToken",
    "InvalidToken",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "PermissionError",
    "TokenRefreshRequired",
    "401",
    "403",
}
MISSING = {"NoSuchBucket", "NoSuchKey", "FileNotFoundError", "NotADirectoryError", "404", "410"}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_LASTING = {errno.EEXIST, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}


def kinds(error: BaseException) -> set[str]:
    """Class names and S3 error codes of an error and of those that caused it."""
    found: set[str] = set()
    seen: BaseException | None = error
    while seen is not None:
        found |= {kind.__name__ for kind in type(seen).__mro__}
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code", "")))
        found.add(str(getattr(seen, "status", "")))  # of HTTP
        seen = seen.__cause__  # not __context__: what was handled on the way is no cause
    return found


def cause_of(error: Exception) -> Exception:
    """fsspec says of anything on the web that doesn't answer that it isn't there; what was wrong is the cause."""
    return error.__cause__ if isinstance(error.__cause__, ClientError) else error


def lasting(url: str, error: Exception) -> DataError | None:
    """What to raise for an error that asking again can't change; None for one that may pass."""
    found = kinds(error)
    if found & MISSING:
        return NotFound(f"{url} does not exist: {error}")
    if found & REFUSED:
        told = f"{type(error).__name__}: {error}. Some stores say so, too, of what isn't there"
        return Refused(f"{url} cannot be used: {told}")
    if isinstance(error, (DataError, ValueError, ImportError, NotImplementedError)):
        return DataError(f"{url} cannot be used: {type(error).__name__}: {error}")
    if getattr(error, "errno", None) in _FULL:
        return StoreUnavailable(f"{url} cannot be written: {error}. The disk is full: make room, then run again")
    if getattr(error, "errno", None) in _LASTING:
        return DataError(f"{url} cannot be used: {error}. Check the path: is there a file in place of a folder?")
    return None


def ask(fs: Any, folder: str) -> None:
    """One small question that tells a missing bucket from an empty one."""
    path = fs._strip_protocol(folder)
    if hasattr(fs, "call_s3"):
        bucket, _, prefix = path.partition("/")
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    elif "https" in fs.protocol:
        with suppress(ClientResponseError):  # servers have what lies in folders that they say nothing of
            fs.exists(path, strict=True)
    elif not fs.exists(path):
        raise FileNotFoundError(path)


def remedy(url: str, endpoint_url: str | None, profile: str | None, anonymous: bool, error: DataError) -> DataError:
    """The error of `Storage.check` for the first of `urls`, with what to do about it."""
    if error.__cause__ is None:  # no store was asked
        return error
    endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL") or "the protocol's own endpoint"
    if kinds(error) & REFUSED:
        who = "anonymous access" if anonymous else f"the credentials (profile={profile})"
        return DataError(
            f"the store at {endpoint} refused {who} for {url}: {error.__cause__}. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a profile, that may list and read it"
        )
    if isinstance(error, NotFound):
        return DataError(f"{url} is missing: its bucket or folder does not exist. Check the name, or create it")
    if isinstance(error.__cause__, ImportError):
        return DataError(f"{url} needs a package that isn't part of the installation: {error.__cause__}")
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return DataError(
            f"{url} cannot be used: {error.__cause__}. If that server is to be trusted, name a file with "
            "its authority's certificate in SSL_CERT_FILE"
        )
    if isinstance(error.__cause__, ValueError):  # no store was asked
        return DataError(
            f"{url} cannot be used: {error.__cause__}. Check the URL's protocol, and the endpoint URL ({endpoint})"
        )
    return StoreUnavailable(
        f"the store at {endpoint} cannot be reached for {url}: {error.__cause__}. Check the endpoint URL, "
        "and that the store is up and reachable from this machine"
    )
