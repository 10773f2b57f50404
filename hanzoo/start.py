"""Starts a command from a checkout; says what to do where the dependencies are not installed."""

from __future__ import annotations

import sys
from typing import NoReturn


def start(command: str) -> NoReturn:
    """Run `hanzoo.cli.<command>` and exit with its code."""
    try:
        from hanzoo import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "hanzoo":
            raise
        sys.exit(
            f"{command}.py: {package} is not installed for {sys.executable}. Run `make demo` once: it installs everything into "
            f".venv and shows a first model; then use .venv/bin/python {command}.py."
        )
    sys.exit(getattr(cli, command)())
