r"""Train on synthetic faces alone, test on real people.

    fer-jax synthesize --network=FILE.pkl --out=synthetic --count=1000 --teacher=runs/teacher
    fer-jax build synthetic/grouped --source=synthetic
    fer-jax train --config=configs/synthetic_to_real.py --workdir=runs/synthetic_to_real \
        --config.allow_unknown_people=true
    fer-jax evaluate --workdir=runs/synthetic_to_real

The variant names another synthetic dataset: --config=configs/synthetic_to_real.py:synth_sd/grouped.
The real datasets are built as in configs/faces_small.py and have the same test parts, which makes
results comparable. The teacher must not be trained on these test parts.
"""

from fer_jax.config import Config, default_config


def get_config(synthetic: str = "synthetic/grouped") -> Config:
    """Returns the config; the variant is the synthetic dataset."""
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
    config.model.update(
        image_size=80, width=0.25, num_middle_blocks=2, dropout=0.3, batch_norm_momentum=0.95
    )
    config.optimizer.update(learning_rate=2e-3, weight_decay=1e-2)
    config.augment.update(rotation_degrees=15.0, shift=0.1, shear=0.1, zoom=0.15)
    # The real datasets are grey and differ in light; the model must not learn colour.
    config.augment.update(brightness=0.2, contrast=0.2, saturation=1.0)
    config.loss.label_smoothing = 0.1
    config.ema_decay = 0.99
    config.validate_every_epochs = 4.0
    return config
