"""What `data.train` and `data.held_out` say: URLs, or sources by name with their weights and conditions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from omegaconf import DictConfig, OmegaConf

from data.buckets import Buckets
from data.errors import DataError
from data.mixture import Turns
from data.stream import join
from data.where import BadCondition, Where
from training.errors import ConfigurationError

SETTINGS = ("url", "weight", "where")
BUCKETS = ("step", "largest_aspect")
BAD_SHARDS = ("replace", "error")
NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class SourceSettings:
    """key: the setting that names the URLs. where: which of their samples. name: "" for the only source.
    weight: share of the samples, in any unit. buckets: sizes that its pictures are cut to; None: all are squares."""

    key: str
    urls: str | list[str]
    where: Where
    name: str = ""
    weight: float = 1.0
    buckets: Buckets | None = None


def sources_of(config: DictConfig) -> list[SourceSettings]:
    """What is trained on: the URLs of data.train as one source, or the sources that it names; of each its latents,
    where data.latents names a folder of them.

    Raises ConfigurationError for a source that can't be.
    """
    images, latents = image_sources_of(config), config.data.latents
    if latents is None:
        return images
    return [replace(source, key="data.latents", urls=latents_folder(latents, source.name)) for source in images]


def latents_folder(latents: str, name: str) -> str:
    """Where a source's latents lie below data.latents: in the folder itself those of the only source."""
    return join(latents, name) if name else latents


def without_latents(config: DictConfig) -> DictConfig:
    """The configuration as if it trained on the images themselves."""
    images: DictConfig = OmegaConf.merge(config, {"data": {"latents": None}})  # type: ignore[assignment]
    return images


def image_sources_of(config: DictConfig) -> list[SourceSettings]:
    """The sources of images: the URLs of data.train as one, or those that it names."""
    named, everywhere, buckets = config.data.train, config.data.where, buckets_of(config)
    if not OmegaConf.is_dict(named):
        where = where_of(everywhere, "data.where")
        return [SourceSettings("data.train", urls_of(named), where, buckets=buckets)]
    if not named:
        raise ConfigurationError("data.train", "{}", "name at least one source, or give a URL")
    sources = [replace(_source(name, named[name], everywhere), buckets=buckets) for name in named]
    try:
        Turns([source.weight for source in sources], seed=0)
    except ValueError as error:
        raise ConfigurationError("data.train", list(named), str(error)) from error
    return sources


def held_out_source(config: DictConfig) -> SourceSettings:
    """What is looked at and never trained on."""
    return SourceSettings("data.held_out", urls_of(config.data.held_out), Where({}))


def _source(name: object, settings: object, everywhere: object) -> SourceSettings:
    key = f"data.train.{name}"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigurationError(
            key, settings, "a source's name has letters, digits, - and _ alone, as metrics have it"
        )
    if not isinstance(settings, DictConfig) or "url" not in settings:
        raise ConfigurationError(key, settings, "a source is {url: ..., weight: ...}")
    for unknown in set(settings) - set(SETTINGS):
        raise ConfigurationError(
            f"{key}.{unknown}", settings[unknown], f"there is no such setting; a source has {', '.join(SETTINGS)}"
        )
    weight = settings.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ConfigurationError(f"{key}.weight", weight, "it must be a number above 0; sources share by their weights")
    own = settings.get("where")
    where = where_of(everywhere, "data.where") if own is None else where_of(own, f"{key}.where")
    return SourceSettings(f"{key}.url", urls_of(settings.url), where, name, weight)


def where_of(predicates: object, key: str) -> Where:
    """The conditions of a setting. Raises ConfigurationError naming `key` for those that can't be."""
    plain = OmegaConf.to_container(predicates) if OmegaConf.is_config(predicates) else predicates
    if plain is not None and not isinstance(plain, dict):
        raise ConfigurationError(key, plain, "give conditions by field, such as {similarity: {at_least: 0.3}}; or null")
    try:
        return Where(plain or {})
    except BadCondition as error:
        raise ConfigurationError(f"{key}.{error.place}", error.value, error.remedy) from error


def buckets_of(config: DictConfig) -> Buckets | None:
    """The sizes of data.buckets, which have the pixels of data.image_size; None where it is null.

    Raises ConfigurationError for those that can't be.
    """
    return (
        None if config.data.buckets is None else sizes_of(config.data.buckets, config.data.image_size, "data.buckets")
    )


def sizes_of(settings: object, image_size: int, key: str) -> Buckets:
    """The sizes of {step, largest_aspect}. Raises ConfigurationError naming `key` for those that can't be."""
    plain = OmegaConf.to_container(settings) if OmegaConf.is_config(settings) else settings
    if not isinstance(plain, dict) or set(plain) != set(BUCKETS):
        raise ConfigurationError(
            key, plain, f"give {' and '.join(BUCKETS)}, such as {{step: 64, largest_aspect: 2}}; or null"
        )
    step, aspect = (plain[name] for name in BUCKETS)
    for name, value, kinds in (("step", step, int), ("largest_aspect", aspect, (int, float))):
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ConfigurationError(f"{key}.{name}", value, "it must be a number; a step is one of whole pixels")
    try:
        return Buckets(image_size, step, aspect)
    except DataError as error:
        raise ConfigurationError(key, plain, str(error)) from error


def urls_of(value: object) -> str | list[str]:
    """One URL, or a list of them."""
    return [str(url) for url in value] if OmegaConf.is_list(value) else str(value)  # type: ignore[attr-defined]
