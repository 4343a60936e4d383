r"""Fine-tune a network of configs/fer2013.py on a small dataset.

    fer-jax build face_folder/grouped --name=mine --source=FACES
    fer-jax train --config=configs/finetune.py:mine/grouped --workdir=runs/finetuned \
      --config.init_from=runs/fer2013
    fer-jax evaluate --workdir=runs/finetuned

The variant is the dataset. `--config.freeze="all but head"` trains the last layer alone. A start
with other fields of config.model, such as `--config.model.width=0.25`, is refused by their names.
What a start saw counts as trained on: a test set with its people is refused.
"""

from pathlib import Path

from fer_jax.config import Config, load_config


def get_config(dataset: str = "mine/grouped") -> Config:
    """Returns the config; the variant is the name of the dataset."""
    config = load_config(str(Path(__file__).with_name("fer2013.py")))
    config.sources = config.test_sets = (dataset,)
    config.batch_size = 16
    config.num_epochs = 20.0
    config.input = "stream"
    config.optimizer.update(learning_rate=1e-3, layer_decay=0.8)
    config.augment.update(rotation_degrees=8.0, shift=0.04, shear=0.04, zoom=0.08)
    config.augment.update(brightness=0.2, contrast=0.2, erasing=0.1)
    # The averages of few steps would be those of the start.
    config.ema_decay = 0.0
    config.model.batch_norm_momentum = 0.95
    config.selection_metric = "validation_balanced_accuracy"
    config.log_every_steps = 20
    return config
