"""Deprecated alias of `trivium_cli`, kept for `python -m trivium.cli`."""

import warnings

from trivium_cli import app

warnings.warn("trivium.cli is deprecated: use trivium_cli instead.", FutureWarning, stacklevel=2)

if __name__ == "__main__":
    app()
