"""Recipes: one file each, `recipe() -> Run`; the docstring says what came out of it, measured."""
