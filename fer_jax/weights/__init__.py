"""Other people's files to our parameters."""
