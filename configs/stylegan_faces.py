r"""A conditional StyleGAN2-ADA of 128 px on one's own faces: for a GPU.

    fer-jax train --config=configs/stylegan_faces.py --workdir=runs/stylegan_faces \
      --config.sources=NAME/grouped
    fer-jax synthesize --network=runs/stylegan_faces/generator --out=synthetic --count=1000

The published recipe for few images (Karras et al. 2020, ADA): 5 million images seen. It has not run
to its end. Short runs need what configs/stylegan_small.py changes: of 64 px, 4,096 / 128 channels,
on FER2013's faces, this recipe saw 445,000 images in 6 minutes of an H200 shared by two more runs,
and collapsed (recall 0) to the same faces for every class. `--config.init_from=FILE.pkl
--config.freeze_blocks=2` goes on from a published network of 128 px with the same classes;
`--config.measure.features=RUN` measures on features of a trained classifier instead of pixels.
`configs/stylegan_small.py` needs no GPU.
"""

from fer_jax.config import Config, default_generator


def get_config() -> Config:
    """The config."""
    config = default_generator()
    config.sources = ("neurobiosense/grouped",)
    config.num_images = 5_000_000
    config.model.image_size = 128
    config.model.dtype = "bfloat16"
    config.mixture.balance_classes = True
    config.input = "device"
    config.measure.every_images = 200_000
    config.measure.images = 5_000
    return config
