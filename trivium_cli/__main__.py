"""Entry point of `python -m trivium_cli`, which is equivalent to `trivium`."""

from trivium_cli import app

app()
