r"""Train on each kind of advertisement, test on every kind: what does unseen content cost?

    fer-jax build neurobiosense/folds --source=NeuroBioSense
    fer-jax study --config=configs/study_contents.py --workdir=runs/study_contents
    fer-jax build demo/controlled                                    # without NeuroBioSense
    fer-jax study --config=configs/study_contents.py:demo/controlled --workdir=runs/study_contents

The variant is the dataset. A model is trained on people of one content group and tested on other
people of every group. The difference (train A, test unseen people of A) - (train A, test B) is the
cost of unseen content, because both test on unseen people. For 2 CPU cores: 72 px, a narrow
Xception.
"""

from fer_jax.config import Config, default_study

CONTENTS = ("food_market", "cosmetics_fashion", "car_tech")


def get_config(dataset: str = "neurobiosense/folds") -> Config:
    """Returns the study; the variant is a dataset that is split by people."""
    config = default_study()
    config.question = "Does a model generalize to advertisements of an unseen kind?"
    config.protocol = (
        "train, validation and test are different people of each content group; checkpoints are "
        "selected on the group that is trained on"
    )
    parts = {"train": "train", "validation": "validation", "test": "test"}
    if dataset.endswith("/folds"):
        parts = {"train": "fold_0+fold_1+fold_2", "validation": "fold_3", "test": "fold_4"}
    groups = {
        content: {"name": dataset}
        | {part: f"{split}[content={content}]" for part, split in parts.items()}
        for content in CONTENTS
    }
    config.scenarios = tuple(
        {"name": content, "sources": (group,)} for content, group in groups.items()
    )
    config.test_sets = tuple(groups.values())
    config.seeds = (0, 1, 2)
    run = config.run
    run.batch_size = 32
    run.num_epochs = 20.0
    run.validate_every_epochs = 4.0
    run.mixture.balance_classes = True
    run.model.update(
        image_size=72, width=0.25, num_middle_blocks=0, dropout=0.3, batch_norm_momentum=0.95
    )
    run.optimizer.update(learning_rate=2e-3, weight_decay=1e-2)
    run.augment.update(
        rotation_degrees=15.0, shift=0.1, shear=0.1, zoom=0.15, brightness=0.2, contrast=0.2
    )
    run.ema_decay = 0.99
    return config
