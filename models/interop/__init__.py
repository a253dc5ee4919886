"""Other people's checkpoints, one file a format."""
