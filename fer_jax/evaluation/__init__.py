"""A split to a predictions table; tables to metrics."""
