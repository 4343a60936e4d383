"""The demo's generator: a 32-px StyleGAN2-ADA, trained on the rendered faces' training part.

    fer-jax build demo/controlled
    fer-jax train --config=configs/stylegan_demo.py --workdir=runs/stylegan_demo
    cp runs/stylegan_demo/generator/* data_builders/demo/generator/

Takes 58 minutes on 2 CPU cores. With seed 0 the kernel distance on pixels is lowest at step 8750:
0.0044, with a Frechet distance of 7.1 and a recall of 0.47. `fer-jax demo` generates its third
dataset with this network: it keeps 1,260 of 2,425 faces and drops 1,160 near-duplicates.
"""

from fer_jax.config import Config, default_generator


def get_config() -> Config:
    """Returns the config."""
    config = default_generator()
    config.sources = ("neurobiosense/grouped",)
    config.num_images = 240_000
    config.model.update(image_size=32, channel_base=1024, channel_max=64, latent_dim=64)
    config.input = "device"
    # As in configs/stylegan_small.py, but with ADA: 2,000 faces are soon memorized.
    config.path_weight = 0.0
    config.style_mixing = 0.0
    config.class_weight = 1.0
    config.measure.update(every_images=20_000, images=1_000)
    return config
