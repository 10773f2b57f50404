"""Parts that two models or more use."""

# A second copy of every class would follow: isinstance and discovery would then fail without a word.
if __name__ != "hanzoo.models.search":
    raise ImportError(
        f"{__name__!r} is a folder of the working directory; write 'from hanzoo.models.search import ...'"
    )
