from dataclasses import dataclass
from typing import Literal

import pytest

from efface.base.config import field_docs, from_mapping, parse_assignments
from efface.base.errors import InputError, UnknownName


@dataclass(frozen=True)
class Config:
    mu: float = 1.0
    """Strength of the edit."""
    grid: tuple[float, ...] = (1.0,)
    """Several strengths."""
    mode: Literal["raw", "gain"] = "raw"
    layers: int | None = None


def test_values_are_read_and_cast():
    config = from_mapping(Config, parse_assignments(["mu=4", "grid=[4, 7]", "mode=gain", "layers=3"]))
    assert config == Config(4.0, (4.0, 7.0), "gain", 3)
    assert isinstance(config.mu, float)
    assert from_mapping(Config, parse_assignments(["mu=1e-4"])).mu == 1e-4


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["muu=4"], "nearest: mu"),
        (["mode=grain"], "nearest: gain"),
        (["mu=lots"], "a number expected"),
        (["layers=true"], "bool|int"),
        (["mu"], "key=value"),
    ],
)
def test_what_does_not_fit_is_named(pairs, message):
    with pytest.raises(InputError, match=message):
        from_mapping(Config, parse_assignments(pairs))


def test_unknown_names_say_the_nearest():
    assert "layers" in str(UnknownName("key", "layer", ["layers", "mode"]))


def test_docs_come_from_the_fields():
    assert field_docs(Config) == {"mu": "Strength of the edit.", "grid": "Several strengths."}
