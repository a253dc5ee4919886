"""How sure a share is."""

from __future__ import annotations

import math

Z = 1.959964
"""Of 95 %."""


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Ends of the 95 % confidence interval of a share, for answers that don't hang together (Wilson 1927).

    Unlike the usual ± it stays in [0, 1] and holds for few answers, and for none or all. Raises ValueError when there
    are no answers, or more successes than answers.
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} of {count}: a share is of at least one, and of no more than all")
    share, z2 = successes / count, Z * Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # At the ends exact, where rounding would leave them a little off.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == count else middle + half
