"""Every field of a config: its default, what it means, and which values it takes.

`config.default_config`, `default_generator` and `default_study` are built from these tables;
`--help` and configs/README.md print them.
"""

from typing import Any, NamedTuple

AT_LEAST_0, AT_LEAST_1, ABOVE_0 = "at least 0", "at least 1", "above 0"
PROBABILITY, BELOW_1, ABOVE_0_TO_1 = "in [0, 1]", "in [0, 1)", "in (0, 1]"


class Field(NamedTuple):
    """One field."""

    default: Any
    meaning: str
    # Choices as a tuple, or a key of `config.RANGES`; empty where other rules hold.
    allowed: tuple[str, ...] | str = ""


# Fields by their dotted names.
Fields = dict[str, Field]

_DATA: Fields = {
    "task": Field("emotion", "whose classes are used", ("emotion", "interest")),
    "sources": Field((), "datasets to train on, mixed: names, or blocks as in configs/README.md"),
    "test_sets": Field((), "datasets to evaluate on, one by one; their people are not trained on"),
    "exclusions": Field("", "records to leave out: a file of `audit --write_exclusions`"),
    "corrupt_records": Field(
        "stop", "what to do with damaged records in training", ("stop", "skip")
    ),
    "allow_leaks": Field(False, "train although people or images are in more than one split"),
    "allow_unknown_people": Field(
        False, "train on synthetic images although it is unknown whose faces are behind them"
    ),
    "seed": Field(0, "seed of initialization, sampling and augmentation", AT_LEAST_0),
    "input": Field(
        "stream",
        "decode images as needed, or once: to WORKDIR/decoded or to device memory",
        ("stream", "memmap", "device"),
    ),
    "mixture.balance_sources": Field(False, "sample every dataset equally often"),
    "mixture.balance_classes": Field(False, "sample every class of a dataset equally often"),
}
_RUN: Fields = {
    "profile": Field("", 'steps to trace to WORKDIR/profile, such as "20-24"'),
    "log_every_steps": Field(20, "steps from one line of metrics.jsonl to the next", AT_LEAST_1),
    "keep_checkpoints": Field(2, "newest checkpoints to keep, at least 2; the best is always kept"),
}

CLASSIFIER: Fields = {
    **_DATA,
    "batch_size": Field(128, "images per step, over all devices", AT_LEAST_1),
    "num_epochs": Field(50.0, "passes over the training data", ABOVE_0),
    "model.width": Field(1.0, "factor on the number of channels"),
    "model.num_middle_blocks": Field(8, "blocks of the middle flow"),
    "model.head": Field("gap", "pooling, or the published 512-512 layers", ("gap", "mlp")),
    "model.image_size": Field(224, "of the network's input, in pixels"),
    "model.stem_stride": Field(2, "of the first convolution; 1 for small images, such as 48 px"),
    "model.grayscale": Field(False, "convert the input to grey: for training on grey images"),
    "model.dropout": Field(0.5, "dropout probability", BELOW_1),
    "model.dtype": Field(
        "float32",
        "of the computation; float16 for GPUs without bfloat16",
        ("float32", "bfloat16", "float16"),
    ),
    "model.batch_norm_momentum": Field(0.99, "of the moving statistics", BELOW_1),
    "model.remat": Field(False, "recompute activations: less GPU memory, a third more work"),
    "init_from": Field("", "a run, an export or Keras' Xception weights to start from"),
    "features": Field("", "a run, an export or a file whose features a linear head is trained on"),
    "freeze": Field(
        "none",
        "layers that keep what they start with, BatchNorm's statistics included",
        ("none", "stem", "all but head"),
    ),
    "frozen_statistics": Field(False, "BatchNorm keeps the statistics it starts with"),
    "augment.rotation_degrees": Field(30.0, "rotation, uniform in +- this"),
    "augment.shift": Field(0.2, "shift, uniform in +- this share of width and height"),
    "augment.shear": Field(0.2, "horizontal shear, uniform in +- this (pixels per pixel)"),
    "augment.zoom": Field(0.2, "width and height scaled by a factor uniform in 1 +- this"),
    "augment.horizontal_flip": Field(True, "mirror half of the images"),
    "augment.brightness": Field(0.0, "factor uniform in 1 +- this"),
    "augment.contrast": Field(0.0, "factor about the mean grey, uniform in 1 +- this"),
    "augment.saturation": Field(0.0, "factor about each pixel's grey, uniform in 1 +- this"),
    "augment.erasing": Field(0.0, "probability of erasing one rectangle"),
    "augment.mixup": Field(0.0, "alpha of mixup; 0: off"),
    "augment.cutmix": Field(0.0, "alpha of CutMix; 0: off"),
    "loss.label_smoothing": Field(0.0, "share of the label spread over all classes", BELOW_1),
    "loss.class_weights": Field(
        "none", "weight classes by their inverse frequency", ("none", "balanced")
    ),
    "loss.soft_labels": Field(False, "use annotators' votes as labels where there are any"),
    "optimizer.name": Field("adamw", "the optimizer", ("adamw", "adam", "sgd")),
    "optimizer.learning_rate": Field(1e-3, "peak learning rate", ABOVE_0),
    "optimizer.weight_decay": Field(1e-4, "weight decay", AT_LEAST_0),
    "optimizer.momentum": Field(0.9, "of sgd (Nesterov)", BELOW_1),
    "optimizer.max_gradient_norm": Field(0.0, "clip the global norm; 0: off", AT_LEAST_0),
    "optimizer.layer_decay": Field(
        1.0, "factor on the learning rate from each block to the one before it", ABOVE_0_TO_1
    ),
    "schedule.name": Field("cosine", "of the learning rate", ("cosine", "constant", "plateau")),
    "schedule.warmup_epochs": Field(1.0, "epochs of linear warmup", AT_LEAST_0),
    "schedule.plateau_patience": Field(20, "validations without improvement", AT_LEAST_1),
    "schedule.plateau_factor": Field(0.5, "on the learning rate at a plateau", ABOVE_0),
    "method.mixstyle": Field(0.0, "probability of MixStyle after each early block", PROBABILITY),
    "method.coral": Field(0.0, "weight of the CORAL penalty between datasets", AT_LEAST_0),
    "method.sam": Field(0.0, "radius of SAM, such as 0.05; 0: off", AT_LEAST_0),
    "test_time_flip": Field(False, "average the probabilities of an image and its mirror image"),
    "accumulation_steps": Field(1, "parts of a batch whose gradients are added", AT_LEAST_1),
    "ema_decay": Field(0.0, "of the exponential average of the weights; 0: off", BELOW_1),
    "weight_average": Field("none", "SWAD: average over the valley of the loss", ("none", "swad")),
    "sharding": Field("data_parallel", "of the parameters", ("data_parallel", "fsdp")),
    **_RUN,
    "validate_every_epochs": Field(1.0, "epochs from one validation to the next", ABOVE_0),
    "selection_metric": Field(
        "validation_balanced_accuracy",
        "chooses the best checkpoint",
        (
            *("validation_loss", "validation_accuracy"),
            *("validation_balanced_accuracy", "validation_macro_f1"),
        ),
    ),
    "early_stopping_patience": Field(
        0, "validations without improvement before a run ends; 0: off", AT_LEAST_0
    ),
}

GENERATOR: Fields = {
    **_DATA,
    "batch_size": Field(32, "images per step, over all devices", AT_LEAST_1),
    "num_images": Field(1_000_000, "real images to train on, repetitions counted", AT_LEAST_1),
    "model.image_size": Field(64, "in pixels, a power of two"),
    "model.conditional": Field(True, "generate faces of a given class"),
    "model.channel_base": Field(16384, "a layer of resolution r has channel_base / r channels"),
    "model.channel_max": Field(512, "channels of a layer at most"),
    "model.latent_dim": Field(512, "dimensions of z and w", AT_LEAST_1),
    "model.mapping_layers": Field(2, "layers from z to w", AT_LEAST_1),
    "model.dtype": Field("float32", "of the computation", ("float32", "bfloat16")),
    "init_from": Field("", "NVIDIA's file, the output of `convert` for it, or a run's workdir"),
    "freeze_blocks": Field(0, "blocks of the discriminator to freeze (FreezeD)", AT_LEAST_0),
    "grayscale": Field(False, "train on grey images: where grey and coloured datasets are mixed"),
    "horizontal_flip": Field(True, "mirror half of the images"),
    "learning_rate": Field(2e-3, "of both networks", ABOVE_0),
    "r1_gamma": Field(0.0, "R1 weight; 0: 0.0002 image_size^2 / batch_size", AT_LEAST_0),
    "r1_interval": Field(16, "steps from one R1 penalty to the next", AT_LEAST_1),
    "path_weight": Field(2.0, "of the path length penalty; 0: off", AT_LEAST_0),
    "path_interval": Field(4, "steps from one path length penalty to the next", AT_LEAST_1),
    "style_mixing": Field(0.9, "probability of mixing two latents", PROBABILITY),
    "class_weight": Field(0.0, "weight of a class loss in both networks; 0: off", AT_LEAST_0),
    "average_images": Field(10_000.0, "half-life of the averaged generator, in images", ABOVE_0),
    "average_rampup": Field(
        0.05, "upper limit of the half-life, as a share of the images seen", AT_LEAST_0
    ),
    "augment.groups": Field(("blit", "geometry", "colour"), "adaptive augmentation (ADA)"),
    "augment.target": Field(0.6, "mean sign of the logits of real images; 0: off", PROBABILITY),
    "augment.images": Field(
        500_000.0, "images over which the probability p may rise from 0 to 1", ABOVE_0
    ),
    "measure.every_images": Field(50_000, "images between two measurements", AT_LEAST_1),
    "measure.images": Field(2_000, "real and synthetic images that are compared"),
    "measure.features": Field("pixels", 'what is compared: "pixels", or a classifier\'s workdir'),
    **_RUN,
}

STUDY: Fields = {
    "question": Field("Which sources make the model generalize to unseen content?", "in words"),
    "protocol": Field("", "description of the training, validation and test people"),
    "scenarios": Field(
        (), "blocks of name, sources, oracle (uses data like the test sets') and fields of run"
    ),
    "baseline": Field("", "scenario that the others are compared with; empty: the first"),
    "test_sets": Field((), "datasets that every scenario is evaluated on"),
    "seeds": Field((0,), "of the runs of every scenario"),
    "equal_steps": Field(True, "all scenarios take as many steps as the baseline"),
    "shared_classes": Field(False, "evaluate only classes of all scenarios and test sets"),
    "variants": Field((), "predictions beside the plain ones, such as label_shift"),
    "published.accuracy": Field(0.0, "reported by others for the protocol; 0: not reported"),
    "published.pr_auc": Field(0.0, "likewise"),
    "published.roc_auc": Field(0.0, "likewise"),
    "published.source": Field("", "where they were reported"),
    **{f"run.{name}": field for name, field in CLASSIFIER.items()},
}
