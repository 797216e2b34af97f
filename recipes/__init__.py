"""Recipes: one YAML file per reproducible run; `trivium train NAME` finds them here."""
