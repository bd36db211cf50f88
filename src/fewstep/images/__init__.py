"""Images in and out of files, as tensors (n, channels, height, width) in [0, 1]."""
