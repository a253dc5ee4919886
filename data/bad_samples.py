"""Account of samples that can't be used."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.batch import Fault
from data.errors import DataError

log = logging.getLogger(__name__)
_JUDGED_SAMPLES = 64  # the share of bad samples means nothing before
_LOGGED_FAULTS = 5  # of each reason


class BadSamples:
    """Counts them by reason, names the first ones in the log, and ends in a DataError where they are too many.

    max_share: of the samples seen. quarantine: a file to which every one is added, one JSON object a line; or None.
    """

    def __init__(self, max_share: float, quarantine: Path | None) -> None:
        self.max_share = max_share
        self.quarantine = quarantine
        self.counts: Counter[str] = Counter()
        self.seen = 0

    def judge(self, samples: int, faults: Sequence[Fault]) -> None:
        """Takes account of further samples, and of what was wrong with some of them. Raises DataError."""
        self.seen += samples
        if faults and self.quarantine is not None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            with self.quarantine.open("a") as file:
                file.writelines(json.dumps(asdict(fault)) + "\n" for fault in faults)
        for fault in faults:
            self.counts[fault.reason] += 1
            count = self.counts[fault.reason]
            if count <= _LOGGED_FAULTS:
                last = "; further ones are counted only" if count == _LOGGED_FAULTS else ""
                told = f"{fault.key} in {fault.url}, replaced" + (f"; {fault.detail}" if fault.detail else "")
                log.warning("bad sample (%s): %s%s", fault.reason, told, last)
        total = self.counts.total()
        if self.seen >= _JUDGED_SAMPLES and total > self.max_share * self.seen:
            last_fault = faults[-1] if faults else "in an earlier batch"
            raise DataError(
                f"{total} of {self.seen} samples are bad ({dict(self.counts)}), above max_bad_share={self.max_share}; "
                f"the last: {last_fault}. Mend the shards or raise the limit"
            )
