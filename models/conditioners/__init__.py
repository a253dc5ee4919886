"""What conditions the denoiser: each conditioner maps its input to a context [B, L, D]."""
