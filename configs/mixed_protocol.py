r"""The mixed protocol: train on 80 % of three sources, validate on the mixed 10 %, test on each.

    fer-jax build neurobiosense/grouped --source=NeuroBioSense
    fer-jax build youtube/grouped --source=videos
    fer-jax build synthetic/grouped --source=synthetic
    fer-jax train --config=configs/mixed_protocol.py --workdir=runs/mixed
    fer-jax evaluate --workdir=runs/mixed

The same on the demo's datasets: --data_dir=runs/study_demo/data. The variant is the task, "emotion"
or "interest". Sources are sampled by their size. Xception with the published head, batch 16, Adam
at 1e-3, halved after 20 validations without improvement, up to 300 epochs. configs/study_demo.py
compares the mixtures of these sources.
"""

from fer_jax.config import Config, default_config

SOURCES = ("neurobiosense/grouped", "youtube/grouped", "synthetic/grouped")


def get_config(task: str = "emotion") -> Config:
    """Returns the config; the variant is the task."""
    config = default_config()
    config.task = task
    config.sources = config.test_sets = SOURCES
    config.batch_size = 16
    config.num_epochs = 300.0
    config.early_stopping_patience = 50
    config.model.head = "mlp"
    config.optimizer.update(name="adam", weight_decay=0.0)
    config.schedule.update(name="plateau", warmup_epochs=0.0)
    config.selection_metric = "validation_loss"
    config.loss.class_weights = "balanced"
    return config
