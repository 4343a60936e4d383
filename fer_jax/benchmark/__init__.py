"""Speed comparisons with PyTorch, Keras and others, measured in turn on one machine."""
