"""What a CLIP of open_clip makes of images and captions."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.features import full_precision
from evaluation.metrics.metric import Pictures
from evaluation.weights import read_weights_file

KNOWN = {"9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4": "laion2b_s32b_b79k"}
"""sha256 of published files, and open_clip's name of the weights in them."""
VIEW = ("mean", "std", "interpolation", "resize_mode")


class OpenClip:
    """Embeddings of images, and the cosines between them and their captions' embeddings.

    Args:
        model: any of open_clip's, such as ViT-L-14.
        weights: path or URL of its state dict.
        sha256: that the file must have; None: any, which the results tell.
        device: where the network runs.
        pretrained: open_clip's name of these weights, such as openai: those of one model may be used to differently
            scaled images, or have another activation. None: one of KNOWN, or any, where all are alike.

    Raises ValueError on an unknown model, when the weights can't be read, are others or of another model, and when it
    isn't known how they see images.
    """

    def __init__(
        self,
        model: str,
        weights: str | None,
        sha256: str | None = None,
        device: torch.device | str = "cpu",
        pretrained: str | None = None,
    ) -> None:
        import open_clip

        if model not in open_clip.list_models():
            raise ValueError(f"open_clip has no model {model!r}; choose one of {', '.join(open_clip.list_models())}")
        if weights is None:
            raise ValueError(
                f"clip_weights=null: the measures of CLIP need {model}'s weights; set it to the path or URL of its "
                "state dict (open_clip_pytorch_model.bin or open_clip_model.safetensors on huggingface.co)"
            )
        if pretrained is not None:
            view_of(model, pretrained)  # said before the weights are read
        found = read_weights_file(weights, sha256)
        view = view_of(model, pretrained or KNOWN.get(found.sha256))
        logging.disable(logging.WARNING)  # it warns that the weights, which come next, are random
        try:
            network, _, self._view = open_clip.create_model_and_transforms(model, load_weights=False, **view)
        finally:
            logging.disable(logging.NOTSET)
        try:
            network.load_state_dict(_as_named_now(network, found.state))
        except RuntimeError as error:
            _, first, *others = str(error).splitlines()
            told = f"{first.strip()} (and {len(others)} more)" if others else first.strip()
            raise ValueError(f"clip_weights={weights}: not the weights of {model}: {told}") from error
        self._network = network.eval().requires_grad_(False).to(device)
        self._tokens = open_clip.get_tokenizer(model)
        self.widths: Mapping[str, int] = {"features": int(network.visual.output_dim)}
        named = model if pretrained is None else f"{model} ({pretrained})"
        self.description = f"open_clip {named}, weights sha256 {found.sha256}"
        self.device = torch.device(device)

    @torch.no_grad()
    def outputs(self, pictures: Pictures) -> Mapping[str, Tensor]:
        """features: image embeddings float32 [B, D]; score: their cosines with the captions' [B], where there are."""
        from PIL import Image

        # open_clip's own view of an image, as its models were trained and are compared with.
        views = [self._view(Image.fromarray(image.permute(1, 2, 0).cpu().numpy())) for image in pictures.images]
        with full_precision(self.device):
            features = self._network.encode_image(torch.stack(views).to(self.device))  # [B, D]
            if not pictures.captions:
                return {"features": features}
            captions = self._network.encode_text(self._tokens(list(pictures.captions)).to(self.device))  # [B, D]
            return {"features": features, "score": torch.cosine_similarity(features, captions, dim=1)}

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, of unit length: float32 [len(texts), D]."""
        with full_precision(self.device):
            return self._network.encode_text(self._tokens(list(texts)).to(self.device), normalize=True)


def view_of(model: str, pretrained: str | None) -> dict[str, Any]:
    """How published weights of a model see an image, as open_clip's arguments image_mean, ..., image_resize_mode.

    pretrained: their name; None: any, if it is the same for all. Raises ValueError where it isn't, on an unknown name,
    and for weights of another activation than the model's.
    """
    import open_clip

    names = open_clip.list_pretrained_tags_by_model(model)
    configs = {name: open_clip.get_pretrained_cfg(model, name) for name in names}
    if pretrained is None:
        ways = {json.dumps([[config.get(key) for key in VIEW], _quick(config)]) for config in configs.values()}
        if len(ways) > 1:
            raise ValueError(
                f"{model}'s published weights differ in how they see images, or in their activation; say which these "
                f"are with pretrained=NAME (of a metric's network; clip_pretrained of zero_shot): {', '.join(names)}"
            )
        pretrained = next(iter(names), None)
        if pretrained is None:  # nobody's: as open_clip trains
            return {}
    if pretrained not in configs:
        raise ValueError(f"open_clip knows no weights {pretrained!r} of {model}; choose one of {', '.join(names)}")
    config = configs[pretrained]
    if _quick(config) != _quick(open_clip.get_model_config(model) or {}):
        other = model.removesuffix("-quickgelu") + ("-quickgelu" if _quick(config) else "")
        raise ValueError(f"the weights {pretrained} of {model} have the activation of {other}; choose that model")
    return {f"image_{key}": config[key] for key in VIEW if config.get(key) is not None}


def _quick(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quick_gelu"))


def _as_named_now(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the names that open_clip gives parameters today."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(network, state)
    if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    return state
