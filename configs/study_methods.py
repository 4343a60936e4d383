r"""Which method makes a mixture of datasets generalize to unseen datasets?

The datasets are built as configs/study_sources.py and configs/faces_small.py say.

    fer-jax study --config=configs/study_methods.py --workdir=DIR --write_exclusions=leave_out.csv
    fer-jax study --config=configs/study_methods.py --workdir=DIR \
      --config.run.exclusions=leave_out.csv

Trains on laboratory, press and web faces, sampled equally often by dataset and class. Synthetic
portraits, stock photos and another laboratory's faces are only tested on. Each scenario changes one
field of the baseline. For 2 CPU cores.
"""

from fer_jax.config import Config, default_study

BALANCED = {"mixture.balance_sources": True, "mixture.balance_classes": True}


def get_config() -> Config:
    """Returns the study."""
    config = default_study()
    config.question = "Which method makes a mixture of datasets generalize to unseen datasets?"
    config.protocol = (
        "parts by person where people are known; all of yale, web96 and synth_sd are only tested on"
    )
    sources = (
        {
            "name": "jaffe/folds",
            "train": "fold_0+fold_1+fold_2",
            "validation": "fold_3",
            "test": "fold_4",
        },
        {"name": "ck48/grouped"},
        {"name": "lfw_gray/grouped"},
        {
            "name": "fer2013/given",
            "train": "train[:12%]",
            "validation": "train[12%:16%]",
            "test": "validation",
        },
    )
    plain = {"sources": sources}
    balanced = plain | BALANCED
    config.scenarios = (
        {"name": "balanced", **balanced},
        {"name": "as_they_come", **plain},
        {"name": "ema", **balanced, "ema_decay": 0.99},
        {"name": "swad", **balanced, "weight_average": "swad"},
        {"name": "mixstyle", **balanced, "method.mixstyle": 0.5},
        {"name": "coral", **balanced, "method.coral": 1.0},
        {"name": "sam", **balanced, "method.sam": 0.05},
        {"name": "label_smoothing", **balanced, "loss.label_smoothing": 0.1},
    )
    config.test_sets = (
        *sources,
        {"name": "yale/folds", "test": "all"},
        {"name": "web96/grouped", "test": "all"},
        {"name": "synth_sd/grouped", "test": "all"},
    )
    config.seeds = (0,)
    config.variants = ("adapted",)
    run = config.run
    run.batch_size = 64
    run.num_epochs = 8.0
    run.model.update(
        image_size=48,
        stem_stride=1,
        grayscale=True,
        width=0.25,
        num_middle_blocks=2,
        dropout=0.3,
        batch_norm_momentum=0.95,
    )
    run.optimizer.update(learning_rate=2e-3, weight_decay=1e-2)
    run.augment.update(
        rotation_degrees=12.0, shift=0.08, shear=0.08, zoom=0.15, brightness=0.2, contrast=0.2
    )
    return config
