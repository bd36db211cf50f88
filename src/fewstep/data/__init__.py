"""Where images come from, one file per format; all give the same `Dataset`, and from it batches."""
