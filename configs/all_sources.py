r"""The training parts of all datasets, sampled equally often by dataset and class.

    fer-jax build face_folder/given --name=fer2013 --source=fer2013.zip
    fer-jax build face_folder/grouped --name=ck48 --namespace=ck --source=ck48.zip
    fer-jax build face_folder/grouped --name=lfw_gray --source=lfw_gray.zip
    fer-jax build face_folder/folds --name=jaffe --source=jaffe.zip --detector=yunet
    fer-jax build face_folder/folds --name=yale --source=yale.zip --detector=yunet
    fer-jax build face_folder/grouped --name=web96 --source=web96.zip --detector=yunet
    fer-jax build face_folder/grouped --name=synth_sd --source=synth_sd.zip --detector=yunet \
      --label_source=prompt
    fer-jax audit --config=configs/all_sources.py --workdir=runs/all_audit \
      --write_exclusions=runs/all_exclusions.csv
    fer-jax train --config=configs/all_sources.py --workdir=runs/all_sources \
      --config.exclusions=runs/all_exclusions.csv
    fer-jax evaluate --workdir=runs/all_sources

The recipe is that of configs/fer2013.py. Datasets with another framing than FER2013 go through the
face detector, which aligns them to it. configs/study_leave_one_out.py measures the contribution of
each dataset.
"""

from pathlib import Path

from fer_jax.config import Config, load_config


def get_config() -> Config:
    """Returns the config."""
    config = load_config(str(Path(__file__).with_name("fer2013.py")))
    folds = {"train": "fold_0+fold_1+fold_2", "validation": "fold_3", "test": "fold_4"}
    config.sources = (
        # FER2013's validation part is the test here, so checkpoints are selected on another part.
        {
            "name": "fer2013/given",
            "train": "train[:95%]",
            "validation": "train[95%:]",
            "test": "validation",
        },
        {"name": "ck48/grouped"},
        {"name": "lfw_gray/grouped"},
        {"name": "jaffe/folds", **folds},
        {"name": "yale/folds", **folds},
        {"name": "web96/grouped"},
        {"name": "synth_sd/grouped"},
    )
    config.test_sets = config.sources
    config.mixture.update(balance_sources=True, balance_classes=True)
    config.selection_metric = "validation_balanced_accuracy"
    return config
