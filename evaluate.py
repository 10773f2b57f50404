"""Evaluate runs: python evaluate.py RUN [RUN ...]. See --help."""

from hanzoo.start import start

if __name__ == "__main__":
    start("evaluate")
