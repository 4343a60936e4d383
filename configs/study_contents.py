r"""Every content against every content: is it the new advertisement that costs, or the new people?

    fer-jax build neurobiosense/folds --source=NeuroBioSense
    fer-jax study --config=configs/study_contents.py --workdir=runs/study_contents
    fer-jax build demo/controlled                                    # without a collection
    fer-jax study --config=configs/study_contents.py:demo/controlled --workdir=runs/study_contents

The variant is the dataset. A model learns from the people of one content group and is tested on
other people of every group: (train A -> unseen people of A) - (train A -> B) is what new content
costs beside new people, whom both sides have. Sized for 2 CPU cores: 72 px, a narrow Xception.
"""

from fer_jax.config import Config, default_study

CONTENTS = ("food_market", "cosmetics_fashion", "car_tech")


def get_config(dataset: str = "neurobiosense/folds") -> Config:
    """The study; the variant is a dataset whose parts are people."""
    config = default_study()
    config.question = "Does a model hold on advertisements of a kind it has never seen?"
    config.protocol = (
        "train, validation and test are different people of each content group; a model is chosen "
        "on the group that it learns from"
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
    run.augment.brightness = 0.2
    run.augment.contrast = 0.2
    run.ema_decay = 0.99
    return config
