"""Apply a trained network to files, folders, clips, a camera and a web page."""
