"""Where networks come from: our own modules, and the folder that a model is saved in."""
