"""A run that fails again and again at the same step is stopped: to make it again would fail again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from training.errors import ConfigurationError
from training.starts import FAILED, FINISHED, KILLED, STARTS, Start

KILLS_A_FAILURE = 3
"""So many starts that came no further count as one failure where they did not fail alike: nodes may die so often."""


def refuse_crash_loop(
    starts: Sequence[Start], folder: Path, job: str | None, settings: str, step: int, most: int
) -> None:
    """Raises ConfigurationError when the last `most` starts failed alike and the run is still at `step`.

    Alike: with the same error, or at the same step. Only starts of this job with these settings count: whoever
    submits another job, or changes a setting, wants it tried. Starts that were asked to stop don't count.
    """
    failed = []
    for start in reversed(starts):
        if (start.job, start.settings, start.step) != (job, settings, step) or start.end == FINISHED:
            break
        if start.end in (FAILED, KILLED):
            failed.append(start)
    alike = list(itertools.takewhile(lambda start: _alike(start, failed[0]), failed))
    if len(alike) < most and len(failed) < most * KILLS_A_FAILURE:
        return
    count = len(alike) if len(alike) >= most else len(failed)
    errors = dict.fromkeys(f"'{start.error or 'killed without a word'}' at step {start.last_step}" for start in failed)
    raise ConfigurationError(
        "run.max_failures",
        most,
        f"the last {count} starts went on from step {step} and failed: {'; '.join(list(errors)[:most])}. Another one "
        f"isn't made. {folder / STARTS} tells of each start, and {folder / 'failures'} what its ranks left. With the "
        f"cause mended submit a new job, or give run.max_failures={count + 1} to try once more",
    )


def _alike(one: Start, other: Start) -> bool:
    if one.end == other.end == FAILED and one.error == other.error:
        return True
    return None not in (one.trained, other.trained) and one.last_step == other.last_step
