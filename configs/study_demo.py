"""What adding sources is worth, on drawn faces: the embedded default, in minutes.

    fer-jax demo                                                     # makes the faces first
    fer-jax study --config=configs/study_demo.py --workdir=runs/study_demo

Four runs of one seed and of as many steps, a shallower network than that of configs/demo.py and
half its steps: the baseline sees the controlled faces only, the others social ones, synthetic
ones, or both beside them. The synthetic ones are of configs/stylegan_demo.py's network, which has
learned from the baseline's training people alone. What neither the baseline nor a scenario has seen
says what the scenario is worth there.
"""

from fer_jax.config import Config, default_study


def get_config(task: str = "emotion") -> Config:
    """The study; the variant is the task, "emotion" or "interest"."""
    config = default_study()
    config.question = "Do faces of other sources make the model hold on faces it never saw?"
    config.protocol = (
        "train, validation and test are different people, drawn or made up; checkpoints are "
        "chosen on the validation people of the sources that are trained on"
    )
    controlled, social, synthetic = "demo/controlled", "demo/social", "demo_synthetic/grouped"
    config.scenarios = (
        {"name": "baseline", "sources": (controlled,)},
        {"name": "social", "sources": (controlled, social)},
    )
    config.test_sets = (controlled, social)
    if task == "emotion":  # what the network's classes are
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
    run.model.image_size = 72
    run.model.width = 0.25
    run.model.num_middle_blocks = 0
    run.model.dropout = 0.0
    run.model.batch_norm_momentum = 0.9
    run.optimizer.learning_rate = 3e-3
    # Drawn faces stand straight, and a run this short has no time for others.
    run.augment.rotation_degrees = 0.0
    run.augment.shift = 0.1
    run.augment.shear = 0.0
    run.augment.zoom = 0.0
    return config
