"""Train on each dataset, test on every dataset: how well does each generalize to the others?

    fer-jax build face_folder/folds --name=jaffe --source=jaffe.zip --detector=yunet
    fer-jax build face_folder/folds --name=yale --source=yale.zip --detector=yunet
    fer-jax build face_folder/grouped --name=ck48 --namespace=ck --source=ck48.zip
    fer-jax build face_folder/grouped --name=lfw_gray --source=lfw_gray.zip
    fer-jax build face_folder/given --name=fer2013 --source=fer2013.zip
    fer-jax build face_folder/grouped --name=synth_sd --source=synth_sd.zip --detector=yunet \
      --label_source=prompt
    fer-jax study --config=configs/study_sources.py --workdir=DIR --write_exclusions=leave_out.csv
    fer-jax study --config=configs/study_sources.py --workdir=DIR \
      --config.run.exclusions=leave_out.csv

FER2013 has near-duplicates across its official parts; the first command leaves them out of
training. For 2 CPU cores: an eighth of FER2013, 72 px, a narrow Xception, equal steps. yale and
ck48 lack classes, so only happiness, sadness and surprise are evaluated.
"""

from fer_jax.config import Config, default_study


def get_config() -> Config:
    """Returns the study."""
    config = default_study()
    config.question = "How well does a model of one dataset generalize to the others?"
    config.protocol = (
        "parts by person where people are known; jaffe and yale: two folds for training, one for "
        "validation, two for the test; fer2013: an eighth of its training part for training, the "
        "official validation part as the test"
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
    run.model.update(
        image_size=72, width=0.25, num_middle_blocks=0, dropout=0.3, batch_norm_momentum=0.95
    )
    run.optimizer.update(learning_rate=2e-3, weight_decay=1e-2)
    run.augment.update(rotation_degrees=15.0, shift=0.1, shear=0.1, zoom=0.15)
    # The datasets differ in light, and one has colour; the model must not learn these.
    run.augment.update(brightness=0.2, contrast=0.2, saturation=1.0)
    run.loss.label_smoothing = 0.1
    run.ema_decay = 0.99
    return config
