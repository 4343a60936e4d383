"""Files to faces: image codecs, frames of videos, face detection and alignment."""
