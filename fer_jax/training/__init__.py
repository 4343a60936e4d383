"""Batches to a trained network: state, optimizer, the step, the loop."""
