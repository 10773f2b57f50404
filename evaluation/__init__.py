"""Predictions and gold to figures. Knows no model."""

# A second copy of every class would follow: isinstance and discovery would then fail without a word.
if __name__ != "hanzoo.evaluation":
    raise ImportError(f"{__name__!r} is a folder of the working directory; write 'from hanzoo.evaluation import ...'")
