"""Convert NVIDIA's StyleGAN2 files and Keras' Xception weights."""
