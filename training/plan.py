"""`ldm plan`: what a run will need of some machines, before it is submitted. Needs no data, no weights and no GPU."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from training import compose
from training.errors import ConfigurationError

UNSET = {"data.url": "UNSET", "task.perceptual_weights": "UNSET"}
"""Settings that training can't do without and a plan doesn't need, and what they are taken for."""


def main() -> None:
    """Entry point of `ldm plan` and `python -m training.plan`."""
    compose.command("plan", run, (ConfigurationError,), shown_in_help=("experiment=demo",))


def run(config: DictConfig) -> None:
    """Checks the settings, counts, and prints the plan."""
    for key, value in UNSET.items():
        if OmegaConf.is_missing(OmegaConf.select(config, key.rpartition(".")[0]), key.rpartition(".")[2]):
            OmegaConf.update(config, key, value)

    from training.planning.plan import make_plan
    from training.planning.table import lines

    print("\n".join(lines(make_plan(config))))


if __name__ == "__main__":
    main()
