"""Text to numbers: documents, tag schemes, readers, vocabularies, vectors, batches. Knows no model."""

# A second copy of every class would follow: isinstance and discovery would then fail without a word.
if __name__ != "hanzoo.data":
    raise ImportError(f"{__name__!r} is a folder of the working directory; write 'from hanzoo.data import ...'")
