"""Train on controlled footage, test on unseen people of every source. The embedded default.

    fer-jax demo                                                  # all of it, with a report
    fer-jax train --config=configs/demo.py --workdir=runs/demo    # this part alone
    fer-jax train --config=configs/demo.py:interest --workdir=runs/demo_interest

Drawn faces of 72 px through a narrow Xception.
"""

from fer_jax.config import Config, default_config


def get_config(task: str = "emotion") -> Config:
    """The demo's config; the variant is the task, "emotion" or "interest"."""
    config = default_config()
    config.task = task
    config.sources = ("demo/controlled",)
    config.test_sets = ("demo/controlled", "demo/social")
    config.batch_size = 64
    config.num_epochs = 24.0
    config.model.image_size = 72
    config.model.width = 0.25
    config.model.num_middle_blocks = 2
    config.model.dropout = 0.2
    # A run of a few hundred steps: statistics that remember the last ten, not the last hundred.
    config.model.batch_norm_momentum = 0.9
    config.optimizer.learning_rate = 3e-3
    config.augment.rotation_degrees = 10.0
    config.augment.shift = 0.1
    config.augment.shear = 0.1
    config.augment.zoom = 0.1
    config.validate_every_epochs = 3.0
    return config
