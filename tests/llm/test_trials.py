"""Trials: one fit each, chosen on `validation`, kept for the cells that share them."""

import dataclasses

import pytest
import torch
from planted import magic, planted_sae, trained_host
from tuning_kit import SETTINGS

from efface.base.errors import InputError, MatchedNothing
from efface.base.files import read_json
from efface.deactivate import erasing
from efface.llm.evaluation.trials import Fits, Looking, choose, multiplied
from efface.llm.evaluation.validation import Validation

LOOKING = Looking(n_probe=4, max_tokens=16)
GRADDIFF = {**SETTINGS["graddiff"], "steps": 6}


@pytest.fixture(scope="module")
def known():
    return trained_host()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found, real = [], erasing.erase
    monkeypatch.setattr(erasing, "erase", lambda method, *a, **k: (found.append(method), real(method, *a, **k))[1])
    return found


def fits(host, folder, **reads: str) -> Fits:
    return Fits(folder, host, magic(), (), 0, {"concept": magic().digest, **reads})


def test_the_best_on_validation_is_taken_and_factors_share_a_fit(known, tmp_path, calls) -> None:
    factors = [{"factor": f} for f in (0.01, 0.5, 1.0)]
    found = choose(fits(known, tmp_path), "graddiff", GRADDIFF, factors, looking=LOOKING)
    assert calls == ["graddiff"]
    assert [t["trial"] for t in found.tried] == factors
    judge = Validation(known, magic(), LOOKING, LOOKING.max_tokens)
    whole = choose(fits(known, tmp_path), "graddiff", GRADDIFF).edit  # settings as they are: no look
    assert calls == ["graddiff"]
    seen = []
    for trial in factors:
        with multiplied(whole, trial["factor"]).applied(known):
            seen.append(judge.seen())
    assert [t["objective"] for t in found.tried] == pytest.approx([s.objective for s in seen])
    assert found.best == max(range(3), key=lambda i: seen[i].objective)
    assert seen[0].fall < seen[2].fall  # a factor is one
    name, delta = next(iter(found.edit.weights[0].deltas.items()))
    wanted = factors[found.best]["factor"] * whole.weights[0].deltas[name].delta()
    assert torch.allclose(delta.delta(), wanted, atol=1e-6)
    assert found.fits == 1
    assert found.seconds >= found.longest > 0
    (cost,) = tmp_path.glob("*/cost.json")
    assert read_json(cost)["seconds"] == found.longest


def test_what_is_kept_is_used_until_something_else_is_read(known, tmp_path, calls) -> None:
    for reads, n in (({}, 1), ({}, 1), ({"SAE": "other"}, 2)):
        choose(fits(known, tmp_path, **reads), "graddiff", GRADDIFF)
        assert len(calls) == n
    choose(fits(known, tmp_path), "graddiff", GRADDIFF | {"lr": 2e-2})
    assert len(calls) == 3
    choose(dataclasses.replace(fits(known, tmp_path), seed=1), "graddiff", GRADDIFF)
    assert len(calls) == 4


def test_a_gate_stands_in_front_in_the_trials_too(known, tmp_path) -> None:
    kept = dataclasses.replace(fits(known, tmp_path), saes=[planted_sae(known)])
    found = choose(kept, "graddiff", GRADDIFF, [{"factor": 1.0}], fpr=0.1, looking=LOOKING)
    assert found.edit.gate is not None
    bare = choose(kept, "graddiff", GRADDIFF, [{"factor": 1.0}], looking=LOOKING)
    assert bare.edit.gate is None
    assert found.tried[0] != bare.tried[0]
    assert (found.fits, bare.fits) == (1, 1)  # a gate is no fit


def test_trials_that_have_no_edit_are_named(known, tmp_path, monkeypatch) -> None:
    def refusing(method, host, concepts, saes, *, steps, seed, **settings):
        raise MatchedNothing(f"nothing after {steps} steps")

    with monkeypatch.context() as m:
        m.setattr(erasing, "erase", refusing)
        with pytest.raises(MatchedNothing, match=r"none of 2 trials has an edit.*after 3 steps"):
            choose(fits(known, tmp_path), "graddiff", {}, [{"steps": 2}, {"steps": 3}], looking=LOOKING)
    assert not list(tmp_path.iterdir())  # nothing half-made is kept
    with pytest.raises(InputError, match="search=true"):
        choose(fits(known, tmp_path), "graddiff", {"search": True}, [{}])


def test_a_projection_is_not_multiplied(known, tmp_path) -> None:
    settings = {"at": ["layers.1.resid_post"], "texts": 12, "probe": 0}
    with pytest.raises(InputError, match="part of kind projection"):
        choose(fits(known, tmp_path), "leace", settings, [{"factor": 0.5}], looking=LOOKING)
    assert choose(fits(known, tmp_path), "leace", settings, [{}], looking=LOOKING).best == 0
