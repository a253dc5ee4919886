"""What watches a run while it trains, put together."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from training.alerts import Alerts
from training.distributed import Distributed
from training.engine import Engine
from training.goodput import GoodputMeter
from training.meter import Meter
from training.tracker import Tracker
from training.utilisation import ideal_step_seconds
from training.watchdog import Watchdog


@dataclass(frozen=True)
class Instruments:
    """tracker: where metrics go. meter: how long steps take. goodput: what share of all time they are. alerts: tell a
    person what looks wrong. watchdog: ends what hangs."""

    tracker: Tracker
    meter: Meter
    goodput: GoodputMeter
    alerts: Alerts
    watchdog: Watchdog

    def record(self, step: int, row: dict[str, float]) -> None:
        """Keeps a step's row, goodput added, and raises the alarms that it calls for."""
        row |= self.goodput.row(row["speed/step_seconds"], row["data/wait_seconds"])
        self.tracker.log(step, row)
        self.alerts.look(step, row)


def build_instruments(
    config: DictConfig,
    engines: Mapping[str, Engine],
    ranks: Distributed,
    start: int,
    step: int,
    whereabouts: Callable[[int], str],
) -> Instruments:
    """Those of start number `start` of a run, which goes on from `step`. A collective.

    whereabouts: where the samples of a step lie, `Loader.whereabouts`.
    """
    folder = Path(config.run.folder)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = config.tracker
    tracker = Tracker(
        folder,
        ranks.is_main,
        plain,  # type: ignore[arg-type]
        settings.project,
        settings.mode,
        settings.x_axis,
        settings.rewind,
        step,
    )
    ideal_seconds = ideal_step_seconds(config, ranks.world) if ranks.is_main else None
    hosts = ranks.gather_objects(socket.gethostname())
    return Instruments(
        tracker,
        Meter(engines, ranks.device, settings.detail_every, ideal_seconds),
        GoodputMeter(folder, ranks.is_main),
        Alerts(instantiate(config.alerts), tracker, hosts, ranks.is_main),
        Watchdog(config.watchdog.seconds, folder, start, ranks.rank, ranks.world, whereabouts),
    )
