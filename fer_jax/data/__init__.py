"""Build and read datasets of face records: splits, mixtures, batches, augmentation, the audit."""
