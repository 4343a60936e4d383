"""Ours and what users would take instead, in one run on one machine."""
