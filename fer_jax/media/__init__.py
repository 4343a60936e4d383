"""Read images and videos, and find and align the faces in them."""
