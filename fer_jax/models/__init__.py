"""Networks as pure modules: arrays in, arrays out."""
