"""One cluster for all tests of this folder: three nodes without GPUs, two that claim two GPUs each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, reason_to_skip


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Running daemons. Skips, with the reason, where there can be none."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with Cluster({"node1": 0, "node2": 0, "gpu1": 2, "gpu2": 2, "node3": 0}) as running:
        yield running
