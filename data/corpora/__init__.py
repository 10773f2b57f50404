"""The corpus that comes with hanzoo, written for it: see README.md beside this file."""

if __name__ != "hanzoo.data.corpora":
    raise ImportError(f"'{__name__}' is this folder imported from the working directory; use hanzoo.data.corpora")
