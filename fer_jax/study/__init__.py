"""Runs to answers: the demo, the report."""
