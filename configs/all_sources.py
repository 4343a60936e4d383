r"""Every source's training part together, drawn equally often by source and class.

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

The recipe is that of configs/fer2013.py. Sets that are framed otherwise than FER2013 go through the
detector, which aligns them to its framing. configs/study_leave_one_out.py says what each source is
worth.
"""

from pathlib import Path

from fer_jax.config import Config, load_config


def get_config() -> Config:
    """The config."""
    config = load_config(str(Path(__file__).with_name("fer2013.py")))
    folds = {"train": "fold_0+fold_1+fold_2", "validation": "fold_3", "test": "fold_4"}
    config.sources = (
        # FER2013's own validation part is the test here, so another part chooses.
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
    config.mixture.balance_sources = True
    config.mixture.balance_classes = True
    config.selection_metric = "validation_balanced_accuracy"
    return config
