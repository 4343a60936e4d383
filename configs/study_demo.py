r"""The demo's study: do other sources make a network generalize? In minutes, on rendered people.

    fer-jax demo                                # films, collects and builds the datasets first
    fer-jax study --config=configs/study_demo.py --workdir=runs/study_demo \
      --data_dir=runs/study_demo/data

The four scenarios of the paper and the mixed protocol of configs/mixed_protocol.py, with equal
steps and one seed: the baseline is trained on laboratory video; the others add social video, faces
of a generator that saw the baseline's training people only, or both. Every scenario is selected on
the validation parts of its own sources. The last test set is of a platform that none is trained on.
"""

from pathlib import Path

from fer_jax.config import Config, default_study, load_config


def get_config() -> Config:
    """Returns the study."""
    config = default_study()
    config.question = (
        "Do social video and synthetic faces make a network of laboratory video generalize?"
    )
    config.protocol = (
        "train on 80 % of each source's people, select on the validation people of the sources "
        "that are trained on, test on other people; nobody trains on the calls"
    )
    mixed = load_config(str(Path(__file__).with_name("mixed_protocol.py")))
    laboratory, social, synthetic = mixed.sources
    config.scenarios = (
        {"name": "baseline", "sources": (laboratory,)},
        {"name": "+YouTube", "sources": (laboratory, social)},
        {"name": "+StyleGAN2", "sources": (laboratory, synthetic)},
        {"name": "all", "sources": mixed.sources},
    )
    config.test_sets = (*mixed.sources, {"name": "calls/folds", "test": "all"})
    run = config.run
    run.batch_size = 64
    run.num_epochs = 12.0
    run.validate_every_epochs = 2.0
    run.model.update(
        image_size=72, width=0.25, num_middle_blocks=0, dropout=0.0, batch_norm_momentum=0.9
    )
    run.optimizer.learning_rate = 3e-3
    # The run is short.
    run.augment.update(rotation_degrees=5.0, shift=0.1, shear=0.0, zoom=0.1)
    return config
