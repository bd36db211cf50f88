"""How parts of text-to-image models are trained, by the same trainer as all networks here."""
