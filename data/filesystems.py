"""Clients of stores: one fsspec file system a protocol, with our time limits and nobody else's retries."""

from typing import Any


def open_filesystem(
    protocol: str,
    endpoint_url: str | None,
    profile: str | None,
    anonymous: bool,
    timeout_seconds: float,
    connections: int,
) -> Any:
    """A new client, shared with nobody. timeout_seconds: to connect, and between two pieces of an answer.

    connections: requests at the same time that it should be ready for. Endpoint, profile and anonymous are s3's.
    """
    import fsspec

    if protocol in ("s3", "s3a"):
        filesystem = fsspec.filesystem(
            "s3",
            endpoint_url=endpoint_url,
            profile=profile,
            anon=anonymous,
            skip_instance_cache=True,
            use_listings_cache=False,  # another process may write what this one has found missing
            config_kwargs={
                "connect_timeout": timeout_seconds,
                "read_timeout": timeout_seconds,
                "retries": {"mode": "standard", "total_max_attempts": 1},
                "max_pool_connections": connections + 2,
            },
        )
        filesystem.retries = 1  # one layer of retries, ours: nested ones multiply to minutes before an error
        return filesystem
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout_seconds, sock_read=timeout_seconds)
        options["client_kwargs"] = {"timeout": limits}
    return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
