"""The registry is lazy, complete and unlike in its names; `erase` checks before it fits."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deactivate._kit import low_rank, tiny_host

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate import registry
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.erasing import erase
from efface.deactivate.parts import WeightsPart

ROW: dict[str, Any] = {
    "name": "toy",
    "domain": "llm",
    "parts": ["weights"],
    "config": "a:B",
    "fit": "a:b",
    "paper": "A paper (2020)",
}


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    size: float = 0.3
    """Size."""


def toy_fit(host: Any, concepts: Any, preserve: Any, config: ToyConfig, saes: Any = ()) -> Edit:
    return Edit([WeightsPart(low_rank(host, 0, 1, size=config.size))], "toy", dataclasses.asdict(config), concepts)


def concept(name: str) -> Concept:
    return Concept.from_mapping({"format": 1, "name": name, "target": {"train": [name]}})


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys; from efface.deactivate.registry import methods; [m.as_dict() for m in methods()]; "
    code += "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    env = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"


def test_pisces_row() -> None:
    row = registry.method("pisces")
    assert row.fit == "efface.llm.methods.pisces.fit:fit"
    assert row.config == "efface.llm.methods.pisces.config:PiscesConfig"
    assert "2025" in row.as_dict()["paper"]
    assert row in registry.methods("llm")
    assert row not in registry.methods("t2i")
    assert dataclasses.is_dataclass(row.load_config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "pisces"}, "registered already"),
        ({"name": "Toy"}, "lower-case"),
        ({"paper": " "}, "paper is missing"),
        ({"fit": "a.b"}, "module:name"),
        ({"parts": []}, "at least one"),
        ({"parts": ["weight"]}, "nearest: weights"),
        ({"domain": "lm"}, "nearest: llm"),
        ({"needs": ["saes"]}, "nearest: sae"),
    ],
)
def test_refuses_a_row(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.register(**{**ROW, **changes})
    registry.register(**ROW)
    with pytest.raises(InputError, match="registered already"):
        registry.register(**ROW)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="nearest: pisces"):
        registry.method("PISCES")


def test_erase_binds_seeds_and_checks() -> None:
    registry.register(**{**ROW, "config": f"{__name__}:ToyConfig", "fit": f"{__name__}:toy_fit"})
    sys.modules.setdefault(__name__, sys.modules[toy_fit.__module__])
    host, dogs = tiny_host(), concept("dogs")
    edit = erase("toy", host, dogs, seed=7, size=1)
    assert edit.seeds == {"fit": 7}
    assert edit.config == {"size": 1.0}
    assert edit.concepts[0] == {"name": "dogs", "digest": dogs.digest}
    assert edit.weights[0].base
    assert edit.host["digest"] == host.digest
    for bad, message in (
        (lambda: erase("toy", host, [dogs, concept("cats")]), "takes one concept"),
        (lambda: erase("toy", host, [dogs, dogs]), "named twice"),
        (lambda: erase("toy", host, dogs, sizes=1), "nearest: size"),
        (lambda: erase("toys", host, dogs), "nearest: toy"),
        (lambda: erase("pisces", host, dogs), "needs an SAE"),
    ):
        with pytest.raises(InputError, match=message):
            bad()
    with pytest.raises(MatchedNothing):
        erase("toy", host, [])
