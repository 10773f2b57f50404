"""What hanzoo raises when the input, and not the code, is at fault.

Each message follows one form: `<where>: <name> must be <what>, but is <value>. <What to do.>`
The command line prints it without a traceback and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HanzooError(ValueError):
    """A mistake in what was given: said once, clearly, with its place and its cure."""


class RecipeError(HanzooError):
    """A recipe, a setting on the command line, or a combination of settings is wrong."""


class DataError(HanzooError):
    """A data, vector or text file is missing or does not hold what its format promises."""


class RunError(HanzooError):
    """A run directory, or a checkpoint in it, is missing, incomplete, damaged, or in the way."""


class StorageError(HanzooError):
    """Nothing could be written: no room, no permission. What was there before is still there."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to `name`, or an empty string where none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
