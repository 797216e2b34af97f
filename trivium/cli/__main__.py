"""`python -m trivium.cli` is `trivium`."""

from trivium.cli import app

app()
