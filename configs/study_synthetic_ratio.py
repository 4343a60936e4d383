"""How many generated faces to each real one: from none to five, and none but generated ones.

    fer-jax demo                    # makes its faces
    fer-jax study --config=configs/study_synthetic_ratio.py --workdir=runs/study_ratio
    fer-jax study --config=configs/study_synthetic_ratio.py:REAL,SYNTHETIC,OTHER --workdir=DIR

The variant names datasets: the real one, the synthetic one, and others that are only tested on;
the default is the demo's faces. Every run takes the same number of steps, so what synthetic faces
add is not more training: at 1:5 each real face is seen a sixth as often. Three seeds.
"""

from fer_jax.config import Config, default_study


def get_config(datasets: str = "demo/controlled,demo_synthetic/grouped,demo/social") -> Config:
    """The study; the variant is REAL,SYNTHETIC[,OTHER...]."""
    real, synthetic, *others = datasets.split(",")
    config = default_study()
    config.question = "How many synthetic faces to each real one serve the model best?"
    config.protocol = "real and synthetic faces mixed by weight, as many steps for every ratio"
    config.scenarios = (
        {"name": "1to0", "sources": (real,)},
        *(
            {
                "name": f"1to{ratio}",
                "sources": (
                    {"name": real, "weight": 1.0},
                    {"name": synthetic, "weight": float(ratio)},
                ),
            }
            for ratio in (1, 2, 3, 4, 5)
        ),
        {"name": "0to1", "sources": (synthetic,)},
    )
    # Nothing of the others is trained on, so all of them tests.
    config.test_sets = (real, *({"name": other, "test": "all"} for other in others))
    config.seeds = (0, 1, 2)
    run = config.run
    run.batch_size = 64
    run.num_epochs = 24.0
    run.validate_every_epochs = 3.0
    run.model.image_size = 72
    run.model.width = 0.25
    run.model.num_middle_blocks = 2
    run.model.dropout = 0.2
    run.model.batch_norm_momentum = 0.9
    run.optimizer.learning_rate = 3e-3
    run.augment.rotation_degrees = 10.0
    run.augment.shift = 0.1
    run.augment.shear = 0.1
    run.augment.zoom = 0.1
    return config
