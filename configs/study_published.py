"""The published protocol: train on food advertisements, choose on cosmetics, test on cars.

    fer-jax build neurobiosense/content --source=NeuroBioSense
    fer-jax build youtube/grouped --source=videos
    fer-jax build synthetic/grouped --source=made
    fer-jax study --config=configs/study_published.py:interest --workdir=runs/study_published

The variant is the label space, "emotion" or "interest". Laboratory video alone is the baseline;
the others add social media, generated faces, or both. Xception with the published head, batch 16,
Adam at 1e-3 that halves after 20 validations without a gain, up to 300 epochs; start it from
ImageNet with --config.run.init_from=FILE.h5. Twelve runs: one a job with --run=N.
"""

from fer_jax.config import Config, default_study


def get_config(task: str = "interest") -> Config:
    """The study; the variant is the label space."""
    config = default_study()
    config.question = (
        "Does adding social media or generated faces to laboratory video make the model hold on "
        "advertisements of a kind it has never seen?"
    )
    config.protocol = (
        "train food_market, validation cosmetics_fashion, test car_tech; every person is in one "
        "category, so the test is of new people and of new content"
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
    # As published: the epochs are each scenario's own, until its validation stops it.
    config.equal_steps = False
    if task == "interest":
        config.published.pr_auc = 0.94
        config.published.roc_auc = 0.94
        config.published.source = "reported with the published protocol"
    run = config.run
    run.task = task
    run.batch_size = 16
    run.num_epochs = 300.0
    run.early_stopping_patience = 50
    run.model.head = "mlp"
    run.optimizer.name = "adam"
    run.optimizer.weight_decay = 0.0
    run.schedule.name = "plateau"
    run.schedule.warmup_epochs = 0.0
    run.selection_metric = "validation_loss"
    run.loss.class_weights = "balanced"
    return config
