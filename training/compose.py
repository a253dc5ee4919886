"""Hydra, with errors that name the key, the value and the remedy. A leaf, on two others alone."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training.closed_pipe import quiet_when_nobody_reads
from training.credentials import REMEDY, credential_in_override, credentials_in, masked_text

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "conf"
FLAGS_WITH_A_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-path", "-cp", "--config-name", "-cn")
SHOWING = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i")
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it

# ${times:4.5e-6,${batch.global_size}} in a configuration: a setting that grows with another.
OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
# ${choices:engine} in a help's text: the files of conf/engine.
OmegaConf.register_new_resolver("choices", lambda group: _listed(choices(group)), replace=True)


def command(
    config_name: str,
    run: Callable[[DictConfig], None],
    user_errors: tuple[type[Exception], ...],
    shown_in_help: tuple[str, ...] = (),
    named_freely: tuple[str, ...] = (),
) -> None:
    """Runs a verb: composes conf/`config_name`.yaml with the command line's overrides and calls `run`.

    A wrong setting, and any of `user_errors`, ends the process with one message on stderr and status 2.
    Hydra's own flags (--help, --cfg job, ...) work as everywhere. `shown_in_help`: overrides that --help needs to
    show a whole configuration. `named_freely`: settings below which any key may be given.
    """
    freely = tuple(f"{key}." for key in named_freely)
    sys.argv[1:] = [f"++{argument}" if argument.startswith(freely) else argument for argument in sys.argv[1:]]
    overrides = _overrides(sys.argv[1:])
    config = None
    if any(argument in ("--help", "-h") for argument in sys.argv[1:]):
        given = {override.partition("=")[0] for override in overrides}
        sys.argv += [override for override in shown_in_help if override.partition("=")[0] not in given]
    else:
        config = check_overrides(config_name, overrides)

    def run_or_fail(config: DictConfig) -> None:
        try:
            run(config)
        except user_errors as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED_STATUS) from None

    # Hydra would compose twice more, which takes as long as all other checks.
    plain = overrides == sys.argv[1:] and not any(override.lstrip("+~").startswith("hydra") for override in overrides)
    main = hydra.main(str(CONFIG_FOLDER), config_name, version_base="1.3")(run_or_fail)
    with quiet_when_nobody_reads():
        if plain:
            main(config)
        elif any(argument.partition("=")[0] in SHOWING for argument in sys.argv[1:]):
            _print_at_once(main)
        else:
            main(None)


def _print_at_once(main: Callable[[None], None]) -> None:
    """What Hydra shows, printed when it is all there: of an output that is closed it would make a traceback."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            main(None)
    finally:
        print(shown.getvalue(), end="")


def fail(message: str, status: int = 2) -> None:
    """Ends the process with a message, without credentials, and a status, which is 2 for a wrong use."""
    print(f"error: {masked_text(message)}", file=sys.stderr)
    raise SystemExit(status)


def _overrides(arguments: list[str]) -> list[str]:
    """The arguments that aren't Hydra's flags or their values."""
    before = ["", *arguments]
    return [
        argument
        for argument, previous in zip(arguments, before, strict=False)
        if not argument.startswith("-") and ("=" in argument or previous not in FLAGS_WITH_A_VALUE)
    ]


def check_overrides(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration. Ends the process when an override can't be read, is of no setting, or of another type, and
    when a setting holds credentials: configurations are shown, kept with runs and sent to dashboards."""
    for override in overrides:
        if found := credential_in_override(override):
            fail(f"{found[0]}={found[1]}: {REMEDY}")
    for override in overrides:
        try:
            OverridesParser.create().parse_overrides([override])
        except HydraException as error:
            reason = (
                str(error.__cause__ or error)
                .removeprefix(f"Error parsing override '{override}'")
                .strip()
                .splitlines()[0]
            )
            fail(
                f"{override}: can't be read as key=value ({reason}); a value with braces, brackets, commas or spaces "
                "needs quotes of its own: 'key=\"value\"'"
            )
    try:
        config = composed(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        fail(_explain(error, config_name, overrides))
    for key, shown in credentials_in(OmegaConf.to_container(config, resolve=False)):  # type: ignore[arg-type]
        fail(f"{key}={shown}: {REMEDY}")
    plain = composed(config_name, [override for override in overrides if _chooses_a_file(override)])
    defaults, values = (dict(_dotted(OmegaConf.to_container(c, resolve=False), "")) for c in (plain, config))
    last = {key: text for key, _, text in (override.partition("=") for override in overrides)}
    for key, text in last.items():
        if key in defaults and (wanted := _wrong_type(defaults[key], values.get(key))):
            fail(f"{key}={text}: it must be {wanted}")
    return config


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """conf/`config_name`.yaml with overrides, as a command line would have it. Raises Hydra's exceptions."""
    running = GlobalHydra.instance().hydra  # a verb's own, of which there can be only one at a time
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            return compose(config_name, overrides=overrides)
    finally:
        GlobalHydra.instance().hydra = running


def _chooses_a_file(override: str) -> bool:
    return (CONFIG_FOLDER / override.lstrip("+~").partition("=")[0].partition("@")[0]).is_dir()


def _wrong_type(default: object, value: object) -> str | None:
    """What the value of a setting must be, going by its default, when it is something else."""
    if default is None or value is None or default == "???":
        return None
    if isinstance(default, str | list | dict) and "${" in str(default):  # a reference, or URLs: one, many or by name
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return None if isinstance(value, int) and not isinstance(value, bool) else f"a whole number, such as {default}"
    if isinstance(default, float):
        right = isinstance(value, int | float) and not isinstance(value, bool)
        return None if right else f"a number, such as {default}"
    if isinstance(default, list):
        if not isinstance(value, list):
            return f"a list, such as {default}"
        wrong = default and any(_wrong_type(default[0], item) for item in value)
        return f"a list like {default}" if wrong else None
    if isinstance(default, dict):
        return None if isinstance(value, dict) else f"settings by name: {', '.join(map(str, default))}"
    return "text" if isinstance(value, dict) else None


def _explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """Hydra's message in one line, with the override at fault and the nearest keys or choices."""
    text = " ".join(str(error).split())
    if missing := re.match(r"You must specify '(\w+)'", text):
        return f"{missing[1]}=???: it has no value; choose one of {', '.join(choices(missing[1]))}"
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if _chooses_a_file(override) and value not in choices(key):
            there = choices(key)
            return (
                f"{key}={value}: there is no such {key.partition('@')[0]}; choose one of {', '.join(there)}"
                f"{_nearest(value, there)}"
            )
    keys = _all_keys(config_name, overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        if not key.startswith(("+", "~")) and keys and key not in keys and not _chooses_a_file(override):
            return f"{key}={value}: there is no such setting{_nearest(key, keys)}; see `--cfg job` for all of them"
    return text


def _listed(names: list[str]) -> str:
    return textwrap.fill(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def choices(group: str) -> list[str]:
    """Names of the files of a group."""
    return sorted(path.stem for path in (CONFIG_FOLDER / group.partition("@")[0]).glob("*.yaml"))


def _all_keys(config_name: str, overrides: Iterable[str]) -> list[str]:
    """Every dotted key of the configuration that the overrides choosing files lead to."""
    try:
        config = composed(config_name, [override for override in overrides if _chooses_a_file(override)])
    except (HydraException, OmegaConfBaseException):
        return []
    return [key for key, _ in _dotted(OmegaConf.to_container(config, resolve=False), "")]


def _dotted(node: object, prefix: str) -> Iterable[tuple[str, object]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}", value
            yield from _dotted(value, f"{prefix}{key}.")


def _nearest(wrong: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(choices), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
