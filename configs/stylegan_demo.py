"""The demo's generator: a StyleGAN2-ADA of 32 px on the training part of the drawn faces.

    fer-jax build demo/controlled
    fer-jax train --config=configs/stylegan_demo.py --workdir=runs/stylegan_demo
    cp runs/stylegan_demo/generator/* data_builders/demo/generator/

58 minutes on 2 busy CPU cores. With seed 0 the least kernel distance on pixels is that of step
8750: 0.0044, with a Frechet distance of 7.1 and a recall of 0.47. `fer-jax demo` makes its third
source with this network; to keep 1,260 faces it makes 3,108, for 1,840 are too like another.
"""

from fer_jax.config import Config, default_generator


def get_config() -> Config:
    """The config."""
    config = default_generator()
    config.sources = ("demo/controlled",)
    config.num_images = 400_000
    config.model.image_size = 32
    config.model.channel_base = 1024
    config.model.channel_max = 64
    config.model.latent_dim = 64
    config.input = "device"
    # As in configs/stylegan_small.py; but 1,008 faces are soon learned by heart.
    config.path_weight = 0.0
    config.style_mixing = 0.0
    config.class_weight = 1.0
    config.measure.every_images = 20_000
    config.measure.images = 1_000
    return config
