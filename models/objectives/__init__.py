"""What a matcher is trained towards: one objective, one file; none imports another.

They take tensors and know no model: most take similarities, so that a bi-encoder's cosines, ColBERT's MaxSim and a cross-encoder's
scores can be trained towards the same. `losses` gives un-reduced values, a mapping from a part to one value a unit. Where
`decomposes` is True a unit is a pair or a triple by itself, and a batch may be cut; where it is False the units of a batch depend
on one another, and it may not. `divergence` is what R-Drop adds, part by part; objectives for which it means nothing refuse it.
"""

# A second copy of every class would follow: isinstance and discovery would then fail without a word.
if __name__ != "hanzoo.models.objectives":
    raise ImportError(
        f"{__name__!r} is a folder of the working directory; write 'from hanzoo.models.objectives import ...'"
    )
