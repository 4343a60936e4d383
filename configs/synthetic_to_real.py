"""Train on synthetic faces alone, test on real people: what synthetic faces are worth.

    fer-jax synthesize --network=FILE.pkl --out=made --count=1000 --teacher=runs/teacher
    fer-jax build synthetic/grouped --source=made
    fer-jax train --config=configs/synthetic_to_real.py --workdir=runs/synthetic_to_real
    fer-jax evaluate --workdir=runs/synthetic_to_real

The variant names another synthetic dataset: --config=configs/synthetic_to_real.py:synth_sd/grouped.
The real sets are built as configs/faces_small.py says, and their test parts are the same, so the
numbers of the two can be laid side by side. A teacher must not have seen these test parts.
"""

from ml_collections import ConfigDict

from fer_jax.config import default_config


def get_config(synthetic: str = "synthetic/grouped") -> ConfigDict:
    """The config; the variant is the synthetic dataset."""
    config = default_config()
    config.sources = (synthetic,)
    config.test_sets = (
        {"name": "jaffe/folds", "test": "fold_4"},
        {"name": "yale/folds", "test": "fold_4"},
        {"name": "lfw_gray/grouped", "test": "test"},
    )
    config.mixture.balance_classes = True
    config.batch_size = 64
    config.num_epochs = 40.0
    config.model.image_size = 80
    config.model.width = 0.25
    config.model.num_middle_blocks = 2
    config.model.dropout = 0.3
    config.model.batch_norm_momentum = 0.95
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.augment.rotation_degrees = 15.0
    config.augment.shift = 0.1
    config.augment.shear = 0.1
    config.augment.zoom = 0.15
    # The real sets are grey and differently lit: colour must not be what is learned.
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 1.0
    config.loss.label_smoothing = 0.1
    config.ema_decay = 0.99
    config.validate_every_epochs = 4.0
    return config
