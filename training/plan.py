"""`ldm plan`: what a run will need of some machines, before it is submitted. Needs no data, no weights and no GPU."""

from __future__ import annotations

import copy

from omegaconf import DictConfig, OmegaConf

from training import compose
from training.checks import check_settings
from training.errors import ConfigurationError
from training.planning.cluster import cluster_of

NOT_NEEDED = ("data.url", "data.train", "data.held_out", "task.perceptual_weights")
"""Settings that training can't do without and a plan can."""


def main() -> None:
    """Entry point of `ldm plan` and `python -m training.plan`."""
    compose.command("plan", run, (ConfigurationError,), shown_in_help=("experiment=demo",))


def run(config: DictConfig) -> None:
    """Checks the settings, counts, and prints the plan."""
    for key in NOT_NEEDED:
        group, _, name = key.rpartition(".")
        if OmegaConf.is_missing(OmegaConf.select(config, group), name):
            OmegaConf.update(config, key, "UNSET")
    check_assumed(config)
    cluster = cluster_of(config)
    check_settings(_as_checked(config), world=1)
    # Wrong numbers are told before torch is loaded.
    from training.planning.plan import make_plan
    from training.planning.table import lines

    print("\n".join(lines(make_plan(config, cluster))))


def _as_checked(config: DictConfig) -> DictConfig:
    """With what would only be wrong here and now: a micro-batch, which is planned, and a file, which is elsewhere."""
    config = copy.deepcopy(config)
    config.batch.micro_size = 1
    if OmegaConf.select(config, "task.perceptual_weights") is not None:
        config.task.perceptual_weights = None
    return config


def check_assumed(config: DictConfig) -> None:
    """Raises ConfigurationError for assumptions that can't be."""
    for key, value in config.assume.items():
        if (
            key == "samples"
            and value is not None
            and (not isinstance(value, int) or isinstance(value, bool) or value < 1)
        ):
            raise ConfigurationError("assume.samples", value, "it must be a whole number of at least 1, or null")
        if key == "samples":
            continue
        zero = key in ("reserved_bytes", "fragmentation", "egress_dollars_per_gigabyte")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (value == 0 and not zero):
            remedy = f"it must be a number {'of at least 0' if zero else 'above 0'}"
            raise ConfigurationError(f"assume.{key}", value, remedy)
    if config.assume.utilisation > 1:
        raise ConfigurationError("assume.utilisation", config.assume.utilisation, "it must be a share, up to 1")


if __name__ == "__main__":
    main()
