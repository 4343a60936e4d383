"""The published protocol: train on food advertisements, validate on cosmetics, test on cars.

    fer-jax build neurobiosense/content --source=NeuroBioSense
    fer-jax build youtube/grouped --source=videos
    fer-jax build synthetic/grouped --source=synthetic
    fer-jax study --config=configs/study_published.py:interest --workdir=runs/study_published

The variant is the task, "emotion" or "interest". The baseline is trained on laboratory video; the
others add social media, synthetic faces, or both. Xception with the published head, batch 16, Adam
at 1e-3, halved after 20 validations without improvement, up to 300 epochs.
Where the synthetic faces are of a network that does not say whom it saw, such as NVIDIA's, add
--config.run.allow_unknown_people=true. --config.run.init_from=FILE.h5 starts from ImageNet weights.
--run=N runs one of the twelve runs.
"""

from fer_jax.config import Config, default_study


def get_config(task: str = "interest") -> Config:
    """Returns the study; the variant is the task."""
    config = default_study()
    config.question = (
        "Does adding social media or synthetic faces to laboratory video make the model generalize "
        "to advertisements of an unseen kind?"
    )
    config.protocol = (
        "train food_market, validation cosmetics_fashion, test car_tech; every person is in one "
        "category, so the test has unseen people and unseen content"
    )
    lab, social, synthetic = "neurobiosense/content", "youtube/grouped", "synthetic/grouped"
    config.scenarios = (
        {"name": "baseline", "sources": (lab,)},
        {"name": "social", "sources": (lab, social)},
        {"name": "synthetic", "sources": (lab, synthetic)},
        {"name": "all", "sources": (lab, social, synthetic)},
    )
    config.test_sets = (lab, social)
    config.seeds = (0, 1, 2)
    # As published: each scenario runs until its own early stopping.
    config.equal_steps = False
    if task == "interest":
        config.published.update(
            pr_auc=0.94, roc_auc=0.94, source="reported with the published protocol"
        )
    run = config.run
    run.task = task
    run.batch_size = 16
    run.num_epochs = 300.0
    run.early_stopping_patience = 50
    run.model.head = "mlp"
    run.optimizer.update(name="adam", weight_decay=0.0)
    run.schedule.update(name="plateau", warmup_epochs=0.0)
    run.selection_metric = "validation_loss"
    run.loss.class_weights = "balanced"
    return config
