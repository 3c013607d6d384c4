"""The registry is lazy, complete and unlike in its names; `erase` checks before it fits."""

import dataclasses
import json
import os
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


def test_erasers_of_installed_packages_are_found_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    for name, module in (("mine", "mine_rows"), ("broken", "broken_rows")):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{registry.PLUGINS}]\n{name} = {module}\n")
    (tmp_path / "broken_rows.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "mine_rows.py").write_text(
        f"from efface.deactivate import register\nregister(**{ {**ROW, 'name': 'mine', 'config': 'mine_config:C'} })\n"
    )
    (tmp_path / "mine_config.py").write_text(
        'from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n    size: int = 3\n    """How large."""\n'
    )
    code = """
import sys
from efface.cli.main import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules
"""
    path = {"PYTHONPATH": f"{tmp_path}:{Path(registry.__file__).parents[2]}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *words], env={**os.environ, **path}, capture_output=True, text=True, timeout=60)

    listed, shown, none = run("methods", "--json"), run("erase", "mine", "--help"), run("erase", "broken", "--help")
    assert {"mine", "pisces"} <= {m["name"] for m in json.loads(listed.stdout)["methods"]}
    assert "erasers of broken are left out" in listed.stderr
    assert "a_module_that_is_not_there" in listed.stderr
    assert "How large." in shown.stdout
    assert none.returncode == 2
