"""A manifest with anything at all in the place of one of its values loads or is refused; it never ends in a traceback."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from deactivate._kit import CONCEPT, small_sae, tiny_host, weights_edit
from planted import magic_values
from result_cards import result

from efface.base.errors import InputError
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation.results import Result
from efface.deactivate.gate import Gate, GateSource
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.ledger import apply_edits, read_ledger
from efface.deactivate.stepwise import StepFeatures, StepwisePart
from efface.sae import SAE, ActivationStore
from efface.sae.formats import saelens

VALUES = (None, -1, 1.5, "x", True, [], {}, [None], {"x": 1}, 10**30)
LOADERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "sae": ("sae/efface.json", lambda r: SAE.load(r / "sae")),
    "sae-lens": ("sae/cfg.json", lambda r: saelens.read(r / "sae")),
    "edit": ("edit/edit.json", lambda r: Edit.load(r / "edit")),
    "stepwise edit": ("stepwise/edit.json", lambda r: Edit.load(r / "stepwise")),
    "gate": ("gate/gate.json", lambda r: Gate.load(r / "gate")),
    "ledger": ("applied/efface_ledger.json", lambda r: read_ledger(r / "applied")),
    "result": ("result.json", lambda r: Result.load(r / "result.json")),
    "store": ("store/manifest.json", lambda r: list(ActivationStore(r / "store"))),
    "concept": ("concept.json", lambda r: Concept.load(r / "concept.json")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything."""
    folder, host, sae = tmp_path_factory.mktemp("whole"), tiny_host(), small_sae()
    with torch.no_grad():
        sae.b_enc.add_(0.5)
    sae.save(folder / "sae")
    Gate([GateSource(sae, (1, 2))]).calibrated(host, ["the dog", "a dog"], ["the sea", "a car by the road"] * 30, fpr=0.1).save(
        folder / "gate"
    )
    edit = weights_edit(host)
    Edit([*edit.parts, DeactivationPart(sae, (1,))], "x", {"a": 1}, [CONCEPT], host=edit.host).save(folder / "edit")
    steps = (StepFeatures(9.0, (1,), (-1.0,), (0.5,)), StepFeatures(1.0, (), (), ()))
    Edit([StepwisePart(sae, steps, (0.0, 9.0))], "x", {}, [CONCEPT], host=edit.host).save(folder / "stepwise")
    apply_edits(host, [edit], folder / "applied")
    result().save(folder / "result.json")
    ActivationStore.write(folder / "store", [torch.ones(10, 3)], 10)
    (folder / "concept.json").write_text(json.dumps(magic_values()))
    return folder


def paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Where values stand, four levels deep, two of each list."""
    yield path
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:2] if isinstance(value, list) else ()
    for key, inner in items if len(path) < 4 else ():
        yield from paths(inner, (*path, key))


def changed(value: object, path: tuple) -> Iterator[object]:
    """`value` with something else at `path`, and with nothing there."""
    if not path:
        yield from VALUES
        return
    for new in (*VALUES, KeyError):
        whole = copy.deepcopy(value)
        place = whole
        for key in path[:-1]:
            place = place[key]
        if new is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = new
        yield whole


@pytest.mark.parametrize("kind", LOADERS)
def test_anything_in_a_manifest(kind: str, root: Path) -> None:
    name, load = LOADERS[kind]
    file = root / name
    good = file.read_text()
    load(root)  # the control
    refused = 0
    try:
        for path in paths(json.loads(good)):
            for bad in changed(json.loads(good), path):
                file.write_text(json.dumps(bad))
                try:
                    load(root)
                except InputError as e:
                    refused += 1
                    told = str(e)
                    if len(told.splitlines()) > 2:
                        pytest.fail(f"{path}: {told}")
                except Exception as e:
                    pytest.fail(f"{path} {bad!r:.200}: {type(e).__name__}: {e}")
    finally:
        file.write_text(good)
    assert refused > 50
