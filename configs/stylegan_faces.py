r"""A conditional 128-px StyleGAN2-ADA on your own faces, for a GPU.

    fer-jax train --config=configs/stylegan_faces.py --workdir=runs/stylegan_faces \
      --config.sources=NAME/grouped
    fer-jax synthesize --network=runs/stylegan_faces/generator --out=synthetic --count=1000

The published recipe for few images (Karras et al. 2020, ADA), 5 million images. It was not run to
its end. At 64 px with 4,096 / 128 channels on FER2013 it took 6 minutes for 445,000 images on an
H200 shared with two other runs, and collapsed (recall 0) to the same faces for every class; short
runs need the changes of configs/stylegan_small.py, which also needs no GPU.
`--config.init_from=FILE.pkl --config.freeze_blocks=2` starts from a published 128-px network with
the same classes; `--config.measure.features=RUN` measures on features of a trained classifier
instead of pixels.
"""

from fer_jax.config import Config, default_generator


def get_config() -> Config:
    """Returns the config."""
    config = default_generator()
    config.sources = ("neurobiosense/grouped",)
    config.num_images = 5_000_000
    config.model.update(image_size=128, dtype="bfloat16")
    config.mixture.balance_classes = True
    config.input = "device"
    config.measure.update(every_images=200_000, images=5_000)
    return config
