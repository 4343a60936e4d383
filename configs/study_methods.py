r"""Which method makes a mixture of real sources hold on sources that it has never seen?

The datasets are built as configs/study_sources.py and configs/faces_small.py say.

    fer-jax study --config=configs/study_methods.py --workdir=DIR --write_exclusions=leave_out.csv
    fer-jax study --config=configs/study_methods.py --workdir=DIR \
      --config.run.exclusions=leave_out.csv

Laboratory, press and web faces are learned from, drawn equally often by source and class; generated
portraits, stock photos and a laboratory that was not among them are only tested on. Every scenario
is the baseline and one word more, or less. Sized for 2 CPU cores.
"""

from fer_jax.config import Config, default_study

BALANCED = {"mixture.balance_sources": True, "mixture.balance_classes": True}


def get_config() -> Config:
    """The study."""
    config = default_study()
    config.question = "Which method makes a mixture of sources hold on sources it has never seen?"
    config.protocol = (
        "train, validation and test parts by person where people are named; yale, web96 and "
        "synth_sd are only tested on, whole"
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
    run.model.image_size = 48
    run.model.stem_stride = 1
    run.model.grayscale = True
    run.model.width = 0.25
    run.model.num_middle_blocks = 2
    run.model.dropout = 0.3
    run.model.batch_norm_momentum = 0.95
    run.optimizer.learning_rate = 2e-3
    run.optimizer.weight_decay = 1e-2
    run.augment.rotation_degrees = 12.0
    run.augment.shift = 0.08
    run.augment.shear = 0.08
    run.augment.zoom = 0.15
    run.augment.brightness = 0.2
    run.augment.contrast = 0.2
    return config
