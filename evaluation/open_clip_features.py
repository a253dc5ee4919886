"""What a CLIP of open_clip makes of images and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evaluation.features import full_precision
from evaluation.metrics.metric import Pictures
from evaluation.weights import read_weights_file


class OpenClip:
    """Embeddings of images, and the cosines between them and their captions' embeddings.

    Args:
        model: any of open_clip's, such as ViT-L-14.
        weights: path or URL of its state dict.
        sha256: that the file must have; None: any, which the results tell.
        device: where the network runs.

    Raises ValueError on an unknown model, and when the weights can't be read, are others or of another model.
    """

    def __init__(
        self, model: str, weights: str | None, sha256: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        import open_clip

        if model not in open_clip.list_models():
            raise ValueError(f"open_clip has no model {model!r}; choose one of {', '.join(open_clip.list_models())}")
        if weights is None:
            raise ValueError(
                f"clip_weights=null: the measures of CLIP need {model}'s weights; set it to the path or URL of its "
                "state dict (open_clip_pytorch_model.bin or open_clip_model.safetensors on huggingface.co)"
            )
        found = read_weights_file(weights, sha256)
        network, _, self._view = open_clip.create_model_and_transforms(model, load_weights=False)
        try:
            network.load_state_dict(found.state)
        except RuntimeError as error:
            raise ValueError(f"clip_weights={weights}: not the weights of {model}: {error}") from error
        self._network = network.eval().requires_grad_(False).to(device)
        self._tokens = open_clip.get_tokenizer(model)
        self.widths: Mapping[str, int] = {"features": int(network.visual.output_dim)}
        self.description = f"open_clip {model}, weights sha256 {found.sha256}"
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
