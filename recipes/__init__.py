"""Recipes: one YAML file says all of a training."""

# A second copy of every class would follow: isinstance and discovery would then fail without a word.
if __name__ != "hanzoo.recipes":
    raise ImportError(f"{__name__!r} is a folder of the working directory; write 'from hanzoo.recipes import ...'")
