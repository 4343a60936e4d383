"""Train on mixtures of datasets and compare the results on every test set."""
