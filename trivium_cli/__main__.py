"""`python -m trivium_cli` is `trivium`."""

from trivium_cli import app

app()
