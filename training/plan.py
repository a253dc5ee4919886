"""`ldm plan`: what a run will need of some machines, before it is submitted. Needs no data, no weights and no GPU."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from training import compose
from training.errors import ConfigurationError
from training.planning.cluster import cluster_of

UNSET = {"data.url": "UNSET", "task.perceptual_weights": "UNSET"}
"""Settings that training can't do without and a plan doesn't need, and what they are taken for."""
WHOLE_NUMBERS = ("steps", "batch.global_size", "checkpoint.every", "data.samples_per_shard")


def main() -> None:
    """Entry point of `ldm plan` and `python -m training.plan`."""
    compose.command("plan", run, (ConfigurationError,), shown_in_help=("experiment=demo",))


def run(config: DictConfig) -> None:
    """Checks the settings, counts, and prints the plan."""
    for key, value in UNSET.items():
        if OmegaConf.is_missing(OmegaConf.select(config, key.rpartition(".")[0]), key.rpartition(".")[2]):
            OmegaConf.update(config, key, value)

    check_numbers(config)
    cluster = cluster_of(config)
    # Wrong numbers are told before torch is loaded.
    from training.planning.plan import make_plan
    from training.planning.table import lines

    print("\n".join(lines(make_plan(config, cluster))))


def check_numbers(config: DictConfig) -> None:
    """Raises ConfigurationError for numbers that can't be."""
    for key in WHOLE_NUMBERS:
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(key, value, "it must be a whole number of at least 1")
    for key, value in config.assume.items():
        if value is None and key == "samples":
            continue
        zero = key in ("reserved_bytes", "fragmentation", "egress_dollars_per_gigabyte")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (value == 0 and not zero):
            remedy = f"it must be a number {'of at least 0' if zero else 'above 0'}"
            raise ConfigurationError(f"assume.{key}", value, remedy)
    if config.assume.utilisation > 1:
        raise ConfigurationError("assume.utilisation", config.assume.utilisation, "it must be a share, up to 1")


if __name__ == "__main__":
    main()
