"""What all tests stand on: a torch that gives the same bits twice, and is given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import tiny

# how long an example takes says how busy the machine is
settings.register_profile("hanzoo", deadline=None)
settings.load_profile("hanzoo")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """HANZOO_ENCODERS with two small encoders, tiny-bert and tiny-albert."""
    folder = tmp_path_factory.mktemp("encoders")
    tiny.write_encoder(folder / "tiny-bert")
    tiny.write_encoder(folder / "tiny-albert", "albert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANZOO_ENCODERS", str(folder))
        yield folder


@pytest.fixture(scope="session")
def lexicons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """HANZOO_LEXICONS with a word list, tiny-words."""
    folder = tmp_path_factory.mktemp("lexicons")
    tiny.write_lexicon(folder / "tiny-words.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANZOO_LEXICONS", str(folder))
        yield folder


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Deterministic algorithms and one thread, as the train command sets them."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = filled
