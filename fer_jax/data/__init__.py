"""Records and batches: splits, building, reading, mixing, augmentation."""
