"""What the configurations of diffusers' models share: defaults, checks, and limits of what they can say."""

from collections.abc import Mapping
from typing import Any

from torch import nn

Config = dict[str, Any]

DEFAULTS: Config = {
    "dropout": 0.0,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "mid_block_add_attention": True,
    "vq_embed_dim": None,
    "scaling_factor": 0.18215,
}
"""What diffusers takes where an older folder doesn't say."""
WITHOUT_EFFECT = ("sample_size", "force_upcast")


def given_settings(config: Mapping[str, Any], fixed: Config) -> Config:
    """A configuration with what it leaves to defaults, without notes and what has no effect; tuples as lists."""
    said = {k: v for k, v in config.items() if not k.startswith("_") and k not in WITHOUT_EFFECT}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in {**DEFAULTS, **fixed, **said}.items()}


def needed(given: Config, key: str) -> Any:
    """The setting under a key. Raises ValueError when there is none."""
    if key not in given:
        raise ValueError(f"the configuration has no {key}; it has {sorted(given)}")
    return given[key]


def number(given: Config, key: str) -> Any:
    """The number under a key, or the one that a list there repeats. Raises ValueError when there is none."""
    value = one_number(needed(given, key))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key}={value}: only one number, the same at every level, can be imported")
    return value


def check_same(given: Config, ours: Config) -> None:
    """Raises ValueError when a setting says something else than our model does."""
    said = {k: v for k, v in given.items() if k in ours or k not in DEFAULTS}
    wrong = {k: v for k, v in said.items() if k not in ours or ours[k] != v}
    wrong |= {k: "absent" for k in ours if not k.startswith("_") and k not in said}
    if wrong:
        right = ", ".join(f"{k}={ours[k]}" if k in ours else f"no {k}" for k in wrong)
        raise ValueError(f"settings that can't be imported: {wrong}; only {right} can, with the others as they are")


def one_number(values: Any) -> Any:
    """The number that a list repeats, or the list as it is."""
    if not isinstance(values, list | tuple):
        return values
    return values[0] if len(set(values)) == 1 else list(values)


def level_widths(first: int, widths: list[int]) -> list[int]:
    """The widths of the levels, of which the first must be the stem's, else ValueError."""
    if widths[0] != first:
        raise ValueError(
            f"channel_multipliers begin with {widths[0] // first}: diffusers' models begin at the first level's width; "
            "only a first multiplier of 1 can be exported"
        )
    return widths


def group_count(model: nn.Module) -> int:
    """Groups of every group normalisation. Raises ValueError when they differ."""
    groups = {norm.num_groups for norm in model.modules() if isinstance(norm, nn.GroupNorm)}
    if len(groups) > 1:
        raise ValueError(
            f"normalisations have {sorted(groups)} groups by the layers' widths, and in diffusers' models all have one "
            "number: only a model with every width divisible by 32, or none, can be exported"
        )
    return groups.pop()
