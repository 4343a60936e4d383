r"""How many synthetic faces per real face: from none to five, and synthetic faces alone.

    fer-jax demo                    # builds its datasets
    fer-jax study --config=configs/study_synthetic_ratio.py --workdir=runs/study_ratio \
      --data_dir=runs/study_demo/data
    fer-jax study --config=configs/study_synthetic_ratio.py:REAL,SYNTHETIC,OTHER --workdir=DIR

The variant names datasets: the real one, the synthetic one, and others that are only tested on; the
default is the demo's. All runs take equal steps, so synthetic faces do not mean more training: at
1:5 a batch has a sixth as many real faces. Three seeds.
"""

from fer_jax.config import Config, default_study

DEMO = "neurobiosense/grouped,synthetic/grouped,youtube/grouped"


def get_config(datasets: str = DEMO) -> Config:
    """Returns the study; the variant is REAL,SYNTHETIC[,OTHER...]."""
    real, synthetic, *others = datasets.split(",")
    config = default_study()
    config.question = "Which ratio of synthetic to real faces is best?"
    config.protocol = "real and synthetic faces mixed by weight, equal steps for every ratio"
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
    # The others are not trained on, so all of their records are in the test.
    config.test_sets = (real, *({"name": other, "test": "all"} for other in others))
    config.seeds = (0, 1, 2)
    run = config.run
    run.batch_size = 64
    run.num_epochs = 24.0
    run.validate_every_epochs = 3.0
    run.model.update(
        image_size=72, width=0.25, num_middle_blocks=2, dropout=0.2, batch_norm_momentum=0.9
    )
    run.optimizer.learning_rate = 3e-3
    run.augment.update(rotation_degrees=10.0, shift=0.1, shear=0.1, zoom=0.1)
    return config
