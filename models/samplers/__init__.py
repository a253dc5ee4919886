"""Samplers: from noise z_T to a latent z_0, one file each."""
