"""Predict a split, and compute metrics, intervals and comparisons from the predictions."""
