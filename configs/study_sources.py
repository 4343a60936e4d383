"""Every source against every source: what does a model of one kind of face know of another?

    fer-jax build face_folder/folds --name=jaffe --source=jaffe.zip
    fer-jax build face_folder/folds --name=yale --source=yale.zip
    fer-jax build face_folder/grouped --name=ck48 --namespace=ck --source=ck48.zip
    fer-jax build face_folder/grouped --name=lfw_gray --source=lfw_gray.zip
    fer-jax build face_folder/given --name=fer2013 --source=fer2013.zip
    fer-jax build face_folder/grouped --name=synth_sd --source=synth_sd.zip --label_source=prompt
    fer-jax study --config=configs/study_sources.py --workdir=DIR --write_exclusions=leave_out.csv
    fer-jax study --config=configs/study_sources.py --workdir=DIR \
      --config.run.exclusions=leave_out.csv

FER2013 shows the same pictures in its official parts, so the copies are left out of training
first. Sized for 2 CPU cores: an eighth of FER2013, 72 px, a narrow Xception, as many steps for
every source. yale and ck48 lack classes, so happiness, sadness and surprise are what is scored.
"""

from fer_jax.config import Config, default_study


def get_config() -> Config:
    """The study."""
    config = default_study()
    config.question = "What does a model that learned from one source know of the others?"
    config.protocol = (
        "train, validation and test parts by person where people are named; jaffe and yale: two "
        "folds train, one validates, two test; fer2013: an eighth of its training part trains, "
        "and the official validation part tests"
    )
    folds = {"train": "fold_0+fold_1", "validation": "fold_2", "test": "fold_3+fold_4"}
    sources = (
        {"name": "jaffe/folds", **folds},
        {"name": "yale/folds", **folds},
        {"name": "ck48/grouped"},
        {"name": "lfw_gray/grouped"},
        {
            "name": "fer2013/given",
            "train": "train[:12%]",
            "validation": "train[12%:16%]",
            "test": "validation",
        },
        {"name": "synth_sd/grouped"},
    )
    config.scenarios = (
        *({"name": one["name"].split("/")[0], "sources": (one,)} for one in sources),
        {"name": "all", "sources": sources, "mixture.balance_sources": True},
    )
    config.baseline = "fer2013"
    config.test_sets = sources
    config.seeds = (0,)
    config.shared_classes = True
    run = config.run
    run.batch_size = 32
    run.num_epochs = 3.0
    run.mixture.balance_classes = True
    run.model.image_size = 72
    run.model.width = 0.25
    run.model.num_middle_blocks = 0
    run.model.dropout = 0.3
    run.model.batch_norm_momentum = 0.95
    run.optimizer.learning_rate = 2e-3
    run.optimizer.weight_decay = 1e-2
    run.augment.rotation_degrees = 15.0
    run.augment.shift = 0.1
    run.augment.shear = 0.1
    run.augment.zoom = 0.15
    # The sets are differently lit, and one is in colour: neither must be what is learned.
    run.augment.brightness = 0.2
    run.augment.contrast = 0.2
    run.augment.saturation = 1.0
    run.loss.label_smoothing = 0.1
    run.ema_decay = 0.99
    return config
