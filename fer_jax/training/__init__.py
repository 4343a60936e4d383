"""Train classifiers and face generators: the loop, the step, optimizers, checkpoints of a run."""
