"""Leakage between the parts of a split: identities, near-duplicates, exclusions."""
