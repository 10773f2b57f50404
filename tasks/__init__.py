"""Tasks: what a kind of model is trained on and judged by."""

# A second copy of every class would follow: isinstance and discovery would then fail without a word.
if __name__ != "hanzoo.tasks":
    raise ImportError(f"{__name__!r} is a folder of the working directory; write 'from hanzoo.tasks import ...'")
