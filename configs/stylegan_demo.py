r"""The demo's generator: a 32-px StyleGAN2-ADA, trained on the filmed people of its laboratory.

    fer-jax demo                                # films its laboratory
    fer-jax train --config=configs/stylegan_demo.py --workdir=runs/stylegan_demo \
      --data_dir=runs/study_demo/data
    cp runs/stylegan_demo/generator/* data_builders/demo/generator/

Took 62 minutes on 2 CPU cores that other programs used, too, or about 45 CPU-minutes. With seed 0
the kernel distance on pixels is lowest at step 5000: 0.0081, with a Frechet distance of 10.6 and a
recall of 0.32. `fer-jax demo` generates its third source with this network: it keeps 1,260 of 3,406
faces and drops 2,146 near-duplicates.
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
