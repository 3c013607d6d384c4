"""Fitted gates of several concepts: read at once, each as if alone, opened by any."""

import json

import pytest
import torch
from t2i._kit import changed, draw, tiny_image_host
from t2i._planted import concept, word_sae

from efface.base.errors import ArtefactError, InputError, MatchedNothing
from efface.deactivate import Edit, Gate, erase, load_gate
from efface.deactivate.union_gate import UnionGate
from efface.t2i.methods.itd import fitted as module
from efface.t2i.methods.itd.config import ItdConfig
from efface.t2i.methods.itd.fitted import fitted_gates

PROMPTS = ["a big dog", "the cat", "a red apple", "the blue bus", "a dog and a cat"]
CONFIG = ItdConfig(preset="efface", fpr=0.0)


def both():
    return [concept("dog", "bus"), concept("cat", "apple")]


def test_prompts_of_all_concepts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host, calls = tiny_image_host("sd"), []
    plain = module.read_peaks
    monkeypatch.setattr(module, "read_peaks", lambda *a: calls.append(a[2]) or plain(*a))
    edit = erase("itd", host, both(), [word_sae(host)], preset="efface", fpr=0.0)
    assert len(calls) == 1
    assert len(set(calls[0])) == len(calls[0])
    assert edit.parts[0].features == (0, 1)
    base = draw(host, PROMPTS)
    with edit.applied(host):
        assert changed(draw(host, PROMPTS), base).tolist() == [True, True, False, False, True]


def test_each_concept_decides_as_it_does_alone_whatever_the_order() -> None:
    host = tiny_image_host("sd")
    sae, concepts = word_sae(host), both()
    made = fitted_gates(host, sae, concepts, CONFIG)
    gates = list(made.gates.values())
    alone = [fitted_gates(host, sae, [c], CONFIG).gate() for c in concepts]
    assert [g.digest for g in gates] == [g.digest for g in alone]
    union = made.gate()
    assert isinstance(union, UnionGate)
    other = UnionGate(dict(zip("cd", gates[::-1], strict=True)), union.calibration)
    rows = host.reader(union.hook_points()).token_ids(PROMPTS)
    margins = union.margins(host, rows)
    for i, gate in enumerate(gates):
        c = gate.require_threshold()
        torch.testing.assert_close(margins[:, i], gate.score_rows(host, rows) - c.threshold + c.dead_band, rtol=0, atol=1e-5)
        assert torch.equal(margins[:, i] >= 0, gate.fires(gate.score_rows(host, rows)))
    assert torch.equal(union.score_rows(host, rows), margins.amax(1))
    assert torch.equal(union.score_rows(host, rows), other.score_rows(host, rows))
    assert union.fires(union.score(host, PROMPTS)).tolist() == [True, True, False, False, True]
    rated = union.rated(host, ["the dog", "the cat"], ["a green tree", "the blue bus"], fpr=0.0).require_threshold()
    assert (rated.target.mean, rated.pool.mean, rated.threshold) == (1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="no threshold yet"):
        UnionGate(made.gates).fires(union.score(host, PROMPTS))


def test_rates_of_several_are_of_all_together() -> None:
    """What opens the one is the other's general prompt here: neither is a false trigger, and both count as found."""
    host = tiny_image_host("sd")
    dog = concept("dog", "bus", general={"train": ["a green tree"], "validation": ["the green tree", "the cat", "a big house"]})
    made = fitted_gates(host, word_sae(host), [dog, concept("cat", "apple")], CONFIG)
    c = made.gate().require_threshold()
    assert (c.target.n, c.target.mean) == (4, 1.0)  # the dog, a red dog, the cat, a red cat
    erased = {"the dog", "a red dog", "the cat", "a red cat"}
    pool = {"the green tree", "the cat", "a big house", *concept("cat", "apple").general["validation"]} - erased
    assert (c.pool.n, c.pool.mean) == (len(pool), 0.0)
    rows = host.reader(made.gate().hook_points()).token_ids(sorted(pool))
    assert not made.gate().fires(made.gate().score_rows(host, rows)).any()


def test_it_comes_back_from_its_folder_and_not_from_an_altered_one(tmp_path) -> None:
    host = tiny_image_host("sd")
    edit = erase("itd", host, both(), [word_sae(host)], preset="efface", fpr=0.0)
    edit.save(tmp_path / "edit")
    again = Edit.load(tmp_path / "edit").gate
    assert isinstance(again, UnionGate)
    assert again.digest == edit.gate.digest
    assert torch.equal(again.score(host, PROMPTS), edit.gate.score(host, PROMPTS))
    edit.gate.save(tmp_path / "gate")
    assert [p.name for p in (tmp_path / "gate").iterdir() if p.is_dir()] == ["sae-0"]  # one SAE, kept once
    assert "2 concepts" in again.summary()
    manifest = tmp_path / "gate" / "gate.json"
    values = json.loads(manifest.read_text())
    values["gates"][1]["calibration"]["threshold"] -= 1
    manifest.write_text(json.dumps(values))
    with pytest.raises(ArtefactError, match="altered"):
        load_gate(tmp_path / "gate")


def test_what_can_be_no_part_of_it(tmp_path) -> None:
    host = tiny_image_host("sd")
    gate = fitted_gates(host, word_sae(host), both()[:1], CONFIG).gate()
    with pytest.raises(MatchedNothing, match="no concept"):
        UnionGate({})
    with pytest.raises(InputError, match=r"'dog'.*calibrated"):
        UnionGate({"dog": Gate(gate.sources)})
    with pytest.raises(InputError, match=r"'dog' is given twice"):
        fitted_gates(host, word_sae(host), both()[:1] * 2, CONFIG)
    with pytest.raises(MatchedNothing, match="no feature fires"):
        fitted_gates(host, word_sae(host), [concept("sea", "cat")], CONFIG)


def test_prompts_to_preserve_count_as_what_is_not_the_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    host, seen = tiny_image_host("sd"), []
    plain = module.fitted_weights
    monkeypatch.setattr(module, "fitted_weights", lambda train, v: seen.append(len(train["general"])) or plain(train, v))
    for preserve in ((), ("an old tree", "a big dog")):  # the second is the concept's own
        fitted_gates(host, word_sae(host), both()[:1], CONFIG, preserve)
    assert seen[1] == seen[0] + 1
