r"""Five datasets together, small enough for 2 CPU cores; each is tested separately.

    fer-jax build face_folder/folds --name=jaffe --source=jaffe.zip --detector=yunet
    fer-jax build face_folder/folds --name=yale --source=yale.zip --detector=yunet
    fer-jax build face_folder/grouped --name=lfw_gray --source=lfw_gray.zip
    fer-jax build face_folder/grouped --name=synth_sd --source=synth_sd.zip --detector=yunet \
      --label_source=prompt
    fer-jax build face_folder/given --name=fer2013 --source=fer2013.zip
    fer-jax audit --config=configs/faces_small.py --workdir=runs/faces_audit \
      --write_exclusions=runs/faces_exclusions.csv
    fer-jax train --config=configs/faces_small.py --workdir=runs/faces_small \
      --config.exclusions=runs/faces_exclusions.csv
    fer-jax evaluate --workdir=runs/faces_small

Trains on three of five folds of the laboratory datasets and the training parts of the others, all
sampled equally often, at 72 px with a narrow Xception. The exclusions are near-duplicates within
FER2013; the audit ends with exit code 1 because it finds them.
"""

from fer_jax.config import Config, default_config


def get_config() -> Config:
    """Returns the config."""
    config = default_config()
    folds = {"train": "fold_0+fold_1+fold_2", "validation": "fold_3", "test": "fold_4"}
    # FER2013's validation part is the test here, so checkpoints are selected on other images.
    official = {"train": "train[:95%]", "validation": "train[95%:]", "test": "validation"}
    config.sources = (
        {"name": "jaffe/folds", **folds},
        {"name": "yale/folds", **folds},
        {"name": "lfw_gray/grouped"},
        {"name": "synth_sd/grouped"},
        {"name": "fer2013/given", **official},
    )
    config.test_sets = config.sources
    config.mixture.balance_sources = True
    config.batch_size = 64
    config.num_epochs = 5.0
    config.model.update(
        image_size=72, width=0.25, num_middle_blocks=2, dropout=0.3, batch_norm_momentum=0.95
    )
    config.optimizer.update(learning_rate=2e-3, weight_decay=1e-2)
    config.schedule.warmup_epochs = 0.2
    config.augment.update(
        rotation_degrees=15.0, shift=0.1, shear=0.1, zoom=0.15, brightness=0.2, contrast=0.2
    )
    config.loss.label_smoothing = 0.1
    config.ema_decay = 0.99
    config.log_every_steps = 50
    config.validate_every_epochs = 0.5
    return config
