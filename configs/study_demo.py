"""The demo's study: does adding social or synthetic faces help? In minutes, on rendered faces.

    fer-jax demo                                                     # builds the datasets first
    fer-jax study --config=configs/study_demo.py --workdir=runs/study_demo

Four runs with one seed and equal steps: the baseline is trained on the controlled faces; the others
add social faces, synthetic faces, or both. The network is shallower than that of configs/demo.py
and takes half of its steps. The synthetic faces come from the generator of
configs/stylegan_demo.py, which was trained on the baseline's training people only.
"""

from fer_jax.config import Config, default_study


def get_config(task: str = "emotion") -> Config:
    """Returns the study; the variant is the task, "emotion" or "interest"."""
    config = default_study()
    config.question = "Do faces of other sources make the model generalize to unseen faces?"
    config.protocol = (
        "train, validation and test are different people, rendered or synthetic; checkpoints are "
        "selected on the validation people of the sources that are trained on"
    )
    controlled, social, synthetic = "demo/controlled", "demo/social", "demo_synthetic/grouped"
    config.scenarios = (
        {"name": "baseline", "sources": (controlled,)},
        {"name": "social", "sources": (controlled, social)},
    )
    config.test_sets = (controlled, social)
    if task == "emotion":  # the generator's classes are emotions
        config.scenarios += (
            {"name": "synthetic", "sources": (controlled, synthetic)},
            {"name": "all", "sources": (controlled, social, synthetic)},
        )
        config.test_sets += (synthetic,)
    run = config.run
    run.task = task
    run.batch_size = 64
    run.num_epochs = 18.0
    run.validate_every_epochs = 3.0
    run.model.update(
        image_size=72, width=0.25, num_middle_blocks=0, dropout=0.0, batch_norm_momentum=0.9
    )
    run.optimizer.learning_rate = 3e-3
    # Rendered faces are upright, and the run is short.
    run.augment.update(rotation_degrees=0.0, shift=0.1, shear=0.0, zoom=0.0)
    return config
