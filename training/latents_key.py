"""Whether latents that were written once are those that a configuration asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from data.index import INDEX_NAME
from data.latents import LatentsKey
from data.stream import Storage, join
from models.latent_diffusion import FirstStage
from training.components import component
from training.data_sources import SourceSettings, image_sources_of, latents_folder
from training.errors import ConfigurationError


def weights_digest(first_stage: FirstStage) -> str:
    """SHA-256 of a first stage's weights as they are computed with, whatever precision the file has."""
    digest = hashlib.sha256()
    for name, tensor in sorted(first_stage.autoencoder.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def wanted_key(
    config: DictConfig, source: SourceSettings, first_stage: str, precision: str, samples: str
) -> LatentsKey:
    """The key of the latents of a source of images. first_stage: digest of its weights. samples: of its index."""
    scale = config.first_stage.scale
    return LatentsKey(
        first_stage,
        None if scale is None else float(scale),
        config.data.image_size,
        None if config.data.reducing_gap is None else float(config.data.reducing_gap),
        config.data.flip,
        precision,
        dict(source.where.predicates),
        samples,
    )


def check_latents(config: DictConfig, storage: Storage) -> None:
    """Raises ConfigurationError, naming the setting and what it must be, unless all sources have finished latents of
    this first stage at this scale, preprocessed as configured. Samples may fulfil conditions that weren't asked for
    when the latents were written, and mirrored pictures may be left unused."""
    url = config.data.latents
    storage.check_writable_place(url)  # asks the store at all, without patience
    first_stage = weights_digest(component(config, "first_stage"))
    for source in image_sources_of(config):
        folder = latents_folder(url, source.name)
        found = LatentsKey.read(folder, storage)
        if found is None or not storage.exists(join(folder, INDEX_NAME)):
            state = "no latents are there" if found is None else "the latents there aren't finished"
            remedy = f"{state}; write them with `ldm prepare latents` and the same settings"
            raise ConfigurationError("data.latents", folder, remedy)
        wanted = wanted_key(config, source, first_stage, found.precision, found.samples)
        free = {"mirrored"} if found.mirrored else set()
        same_key(config, source, found, wanted, free if found.where else free | {"where"})


def same_key(
    config: DictConfig, source: SourceSettings, found: LatentsKey, wanted: LatentsKey, free: set[str] | None = None
) -> None:
    """Raises ConfigurationError for the first thing in which a source's latents aren't what is wanted.

    free: what may differ.
    """
    folder = latents_folder(config.data.latents, source.name)
    own = f"{source.key.removesuffix('.url')}.where" if source.name else "data.where"
    settings: Mapping[str, tuple[str, Any]] = {
        "first_stage": ("first_stage.weights", config.first_stage.weights),
        "scale": ("first_stage.scale", wanted.scale),
        "image_size": ("data.image_size", wanted.image_size),
        "reducing_gap": ("data.reducing_gap", wanted.reducing_gap),
        "mirrored": ("data.flip", wanted.mirrored),
        "precision": ("precision", wanted.precision),
        "where": (own, dict(wanted.where) or None),
        "samples": (source.key, source.urls),
    }
    for field, (key, value) in settings.items():
        before, now = getattr(found, field), getattr(wanted, field)
        if before == now or field in (free or set()):
            continue
        reason = f"the latents in {folder} were made with {_told(before)}; set that"
        if field == "first_stage":
            reason = f"its weights (sha256 {now[:12]}) aren't those ({before[:12]}) that made the latents in {folder}"
            reason += "; name the file of those"
        elif field == "samples":
            reason = f"these shards aren't those that the latents in {folder} are of; name those"
        remedy = f"{reason}, or have `ldm prepare latents` write to another data.latents"
        raise ConfigurationError(key, _told(value), remedy)


def _told(value: object) -> str:
    """A value as one types it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
