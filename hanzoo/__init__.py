"""hanzoo: a zoo of Chinese NER and text-matching models on one trainer.

    import hanzoo
    tagger = hanzoo.load("runs/cluener_bilstm_crf")
    tagger.predict(["浙商银行企业信贷部叶老桂博士"])[0].entities

Importing this module imports nothing heavy: torch comes with the first use of `load`, `train` or `evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load", "train"]

if TYPE_CHECKING:
    from hanzoo.build import evaluate, load, train


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "load", "train"):
        from hanzoo import build

        return getattr(build, name)
    raise AttributeError(f"module 'hanzoo' has no attribute {name!r}")
