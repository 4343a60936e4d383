r"""What does each ingredient of configs/fer2013.py contribute? The recipe without each in turn.

    fer-jax study --config=configs/study_recipe.py --workdir=DIR --write_exclusions=leave_out.csv
    fer-jax study --config=configs/study_recipe.py --workdir=DIR \
      --config.run.exclusions=leave_out.csv

Tests on FER2013's validation part (the official PublicTest), on which the recipe was selected; a
twentieth of the training part selects the checkpoints. One seed, ten runs.
"""

from pathlib import Path

from fer_jax.config import Config, default_study, load_config

WITHOUT = {
    "label_smoothing": {"loss.label_smoothing": 0.0},
    "average": {"ema_decay": 0.0},
    "flip_at_test": {"test_time_flip": False},
    "erasing": {"augment.erasing": 0.0},
    "light": {"augment.brightness": 0.0, "augment.contrast": 0.0},
    "geometry": {
        "augment.rotation_degrees": 0.0,
        "augment.shift": 0.0,
        "augment.shear": 0.0,
        "augment.zoom": 0.0,
    },
    "dropout": {"model.dropout": 0.0},
    "weight_decay": {"optimizer.weight_decay": 0.0},
    "bfloat16": {"model.dtype": "float32"},
}


def get_config() -> Config:
    """Returns the study."""
    recipe = load_config(str(Path(__file__).with_name("fer2013.py")))
    source = {
        "name": "fer2013/given",
        "train": "train[:95%]",
        "validation": "train[95%:]",
        "test": "validation",
    }
    config = default_study()
    config.question = "What does each ingredient of the recipe for FER2013 contribute?"
    config.protocol = (
        "train on the first 95 % of FER2013's training part, select checkpoints on the rest, test "
        "on the official validation part"
    )
    config.scenarios = (
        {"name": "recipe", "sources": (source,)},
        *({"name": f"without_{name}", "sources": (source,)} | how for name, how in WITHOUT.items()),
    )
    config.test_sets = (source,)
    recipe.sources = ()
    config.run = recipe
    return config
