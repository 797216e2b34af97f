"""Built-in recipes for `trivium train NAME`: one YAML file per reproducible run."""
