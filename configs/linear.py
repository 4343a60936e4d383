r"""Train a linear head on frozen features: seconds, without augmentation.

    fer-jax build face_folder/grouped --name=mine --source=FACES
    fer-jax train --config=configs/linear.py:mine/grouped --workdir=runs/linear \
      --config.features=runs/fer2013
    fer-jax evaluate --workdir=runs/linear

The variant is the dataset. The features are those of a run or an export, or an array of any other
model: X.npy or X.safetensors, float [records, features], with X.csv beside it, whose column
`record_id` names the rows. What such a model was trained on is unknown, and the report says so;
what a run was trained on is checked.
"""

from fer_jax.config import Config, default_config


def get_config(dataset: str = "mine/grouped") -> Config:
    """Returns the config; the variant is the name of the dataset."""
    config = default_config()
    config.sources = config.test_sets = (dataset,)
    config.allow_unknown_people = True
    return config
