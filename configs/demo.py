"""The demo's baseline: train on controlled faces, test on unseen people of both sources.

    fer-jax demo                                                  # the whole demo, with a report
    fer-jax train --config=configs/demo.py --workdir=runs/demo    # only this
    fer-jax train --config=configs/demo.py:interest --workdir=runs/demo_interest

Rendered faces of 72 px and a narrow Xception.
"""

from fer_jax.config import Config, default_config


def get_config(task: str = "emotion") -> Config:
    """Returns the config; the variant is the task, "emotion" or "interest"."""
    config = default_config()
    config.task = task
    config.sources = ("demo/controlled",)
    config.test_sets = ("demo/controlled", "demo/social")
    config.batch_size = 64
    config.num_epochs = 24.0
    config.model.update(image_size=72, width=0.25, num_middle_blocks=2, dropout=0.2)
    # In a run of a few hundred steps, statistics average over the last ten.
    config.model.batch_norm_momentum = 0.9
    config.optimizer.learning_rate = 3e-3
    config.augment.update(rotation_degrees=10.0, shift=0.1, shear=0.1, zoom=0.1)
    config.validate_every_epochs = 3.0
    return config
