"""Load a trained network and run it on images (the Python API)."""
