"""Files, folders, clips, a camera and a web page to predictions."""
