"""Hydra, with errors that name the key, the value and the remedy. A leaf: imports nothing else of this project."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "conf"


def command(
    config_name: str,
    run: Callable[[DictConfig], None],
    user_errors: tuple[type[Exception], ...],
    shown_in_help: tuple[str, ...] = (),
) -> None:
    """Runs a verb: composes conf/`config_name`.yaml with the command line's overrides and calls `run`.

    A wrong setting, and any of `user_errors`, ends the process with one message on stderr and status 2.
    Hydra's own flags (--help, --cfg job, ...) work as everywhere. `shown_in_help`: overrides that --help needs to
    show a whole configuration.
    """
    overrides = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("--")]
    if any(argument in ("--help", "-h") for argument in sys.argv[1:]):
        given = {override.partition("=")[0] for override in overrides}
        sys.argv += [override for override in shown_in_help if override.partition("=")[0] not in given]
    else:
        try:
            with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
                compose(config_name, overrides=overrides)
        except (HydraException, OmegaConfBaseException) as error:
            fail(_explain(error, config_name, overrides))

    def run_or_fail(config: DictConfig) -> None:
        try:
            run(config)
        except user_errors as error:
            fail(str(error))

    hydra.main(str(CONFIG_FOLDER), config_name, version_base="1.3")(run_or_fail)()


def fail(message: str) -> None:
    """Ends the process with a message and status 2, the status of a wrong use."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """Hydra's message in one line, with the override at fault and the nearest keys or choices."""
    text = " ".join(str(error).split())
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        folder = CONFIG_FOLDER / key
        if folder.is_dir() and not (folder / f"{value}.yaml").exists():
            choices = sorted(path.stem for path in folder.glob("*.yaml"))
            return (
                f"{key}={value}: there is no such {key}; choose one of {', '.join(choices)}{_nearest(value, choices)}"
            )
    keys = _all_keys(config_name, overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        if not key.startswith(("+", "~")) and keys and key not in keys and not (CONFIG_FOLDER / key).is_dir():
            return f"{key}={value}: there is no such setting{_nearest(key, keys)}; see `--cfg job` for all of them"
    return text


def _all_keys(config_name: str, overrides: Iterable[str]) -> list[str]:
    """Every dotted key of the configuration that the overrides choosing files lead to."""
    choosing = [o for o in overrides if (CONFIG_FOLDER / o.partition("=")[0]).is_dir()]
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose(config_name, overrides=choosing)
    except (HydraException, OmegaConfBaseException):
        return []
    return list(_dotted(OmegaConf.to_container(config, resolve=False), ""))


def _dotted(node: object, prefix: str) -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def _nearest(wrong: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(choices), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
