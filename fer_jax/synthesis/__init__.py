"""Generated faces: a network file to images."""

from fer_jax.synthesis.generator import Generator, latents, load_generator

__all__ = ["Generator", "latents", "load_generator"]
