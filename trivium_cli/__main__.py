"""Entry point of `python -m trivium_cli`, the same as `trivium`."""

from trivium_cli import app

app()
