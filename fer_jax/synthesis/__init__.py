"""Generate synthetic faces from a StyleGAN2 network, and label, filter and measure them."""

from fer_jax.synthesis.generator import Generator, latents, load_generator

__all__ = ["Generator", "latents", "load_generator"]
