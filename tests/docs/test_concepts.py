"""The examples of the page on concept files, read as they stand."""

import re
from pathlib import Path

import pytest
import yaml

from efface.base.errors import InputError, UnknownName
from efface.deactivate.concept import KEYS, Concept

PAGE = Path(__file__).parents[2] / "docs" / "concepts.md"


def blocks() -> list[dict[str, object]]:
    return [yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)]


def test_the_small_example_is_a_concept() -> None:
    small = blocks()[1]
    concept = Concept.from_mapping(small)
    assert all(len(texts) >= 4 for texts in concept.target.values())
    with pytest.raises(InputError, match="add to its file"):
        concept.require("questions", "validation")
    with pytest.raises(UnknownName):
        Concept.from_mapping({**small, "targets": {}})


def test_the_overview_names_every_key_of_a_language_concept() -> None:
    overview = blocks()[0]
    assert set(KEYS) - set(overview) == {"anchor", "judge"}  # of image models
    assert set(overview) <= set(KEYS)
