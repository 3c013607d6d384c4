"""PISCES as a whole: signs, search, the fit, what is saved; the invariants of its mathematics stand in test_pisces.py."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from planted import MAGIC, concept_ids, magic, planted_sae, trained_host
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing
from efface.deactivate.edit import Edit
from efface.llm.evaluation.scoring import score_questions
from efface.llm.methods.pisces import PiscesConfig
from efface.llm.methods.pisces.fit import fit
from efface.llm.methods.pisces.math import LayerProblem, scales
from efface.llm.methods.pisces.search import Cell, Objective, prunes, search
from efface.llm.methods.pisces.surgery import (
    PrefixCache,
    activation_signs,
    saes_by_layer,
    trial,
)

GIVEN = PiscesConfig(features=("1:0:+", "1:3:-"), filters=False, tau=0.5, mu=3.0)


def test_signs_are_read_at_concept_tokens_only():
    host, text = tiny_host(), "she saw the wizard by the road"
    ids, mask = host.encode_texts([text, "a wand"])
    h = host.activations(ids, mask, ["layers.1.mlp_hidden"])["layers.1.mlp_hidden"]
    at = torch.isin(ids, torch.tensor(concept_ids(host)))
    counts = activation_signs(host, [text, "a wand"], [1], concept_ids(host))[1]
    assert counts.n == int(at.sum()) == 2
    assert torch.equal(counts.majority(), h[at].sign().sum(0).sign().double())
    assert activation_signs(host, [text], [1], [])[1].n == 7


def test_unknown_rows_and_own_scales_are_the_presets_choice():
    s = torch.tensor([[1.0, 0.1], [0.9, 0.2]])
    assert scales(s, per_feature=False).tolist() == [1.0, 1.0]
    assert scales(s, per_feature=True).tolist() == pytest.approx([1.0, 0.2])
    g = torch.tensor([0.0, 1.0])
    paper = LayerProblem(s, s, torch.eye(2), -torch.ones(2), g)
    ours = dataclasses.replace(paper, skip_unknown=True)
    assert paper.Q(0.5, 3.0)[0, 0] == -1.0  # coefficient 0
    assert ours.Q(0.5, 3.0)[0, 0] == 0.0
    assert torch.equal(paper.Q(0.5, 3.0)[1], ours.Q(0.5, 3.0)[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_prefix_cache_is_the_whole_forward_to_the_bit(family):
    host = tiny_host(family)
    prompts, options = ["she saw the", "the wizard has a long"], [" wand", " road"]
    plain = host.token_logprobs(prompts, options)
    Q, D = torch.randn(64, 1), torch.randn(1, 32)
    with trial(host, {2: (Q, D)}):
        whole = host.token_logprobs(prompts, options)
    with PrefixCache(host, 2) as cached:
        assert all(map(torch.equal, host.token_logprobs(prompts, options), plain))
        with trial(host, {2: (Q, D)}):
            again = host.token_logprobs(prompts, options)
            written = host.generate(prompts, 0, 4, greedy=True)
        assert cached.hits >= cached.misses > 0
    assert all(map(torch.equal, again, whole))
    assert not all(map(torch.equal, again, plain))
    with trial(host, {2: (Q, D)}):
        assert host.generate(prompts, 0, 4, greedy=True) == written
    with (
        PrefixCache(host, 2),
        trial(host, {0: (Q, D)}),
    ):  # below the layer: outside its promise, but a fresh store sees it
        assert not all(map(torch.equal, host.token_logprobs(prompts, options), plain))
    assert all("forward" not in layer.__dict__ for layer in host.layers)


def test_search_prunes_only_what_an_outcome_settles():
    config = PiscesConfig()
    weak, strong = Cell(0.5, 10.0, 8, 0.1, 1.0, 1.0, 0.2), Cell(0.5, 10.0, 8, 0.9, 0.5, 1.0, 0.7)
    assert prunes(weak, (0.7, 7.0, 8), config)
    assert not prunes(weak, (0.3, 7.0, 8), config)
    assert not prunes(weak, (0.7, 7.0, 4), config)
    assert prunes(strong, (0.3, 18.0, 8), config)
    assert not prunes(strong, (0.7, 18.0, 8), config)
    assert not prunes(Cell(0.5, 10.0, 8, 0.9, 0.9, 1.0, 0.9), (0.3, 18.0, 8), config)


def test_search_prefers_a_cell_within_the_bounds_to_a_better_one_beyond():
    class Table(Objective):
        def __init__(self) -> None:
            self.host = tiny_host()

        def cell(self, tau: float, mu: float, n: int) -> Cell:
            return Cell(tau, mu, n, 0.9, 0.5, 1.0, 0.8) if mu == 2.0 else Cell(tau, mu, n, 0.4, 0.95, 1.0, 0.6)

    config = PiscesConfig(grid_mu=(1.0, 2.0), grid_tau=(0.5,), min_kept=0.9)
    found = search(Table(), lambda *key: {}, config, 0, [4])
    assert (len(found.cells), found.best.mu) == (2, 1.0)
    beyond = dataclasses.replace(config, grid_mu=(2.0,))
    assert search(Table(), lambda *key: {}, beyond, 0, [4]).best.mu == 2.0


def evidence(edit: Edit) -> list[dict[str, Any]]:
    assert isinstance(edit.evidence, Mapping)
    return edit.evidence["concepts"]


def test_fit_finds_filters_searches_and_lowers_the_margin():
    host = trained_host()
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    config = PiscesConfig(
        n_features=3,
        search=True,
        grid_mu=(4.0, 16.0),
        grid_tau=(0.5, 0.2),
        n_probe=6,
        probe_mu=4.0,
        max_text_harm=1.0,
        max_neighbour_harm=1.0,
        min_kept=0.1,  # what a tiny model loses besides depends on how its processor rounds
        min_coherence=0.1,
    )
    edit = fit(host, [magic()], config=config, saes=saes)
    (found,) = evidence(edit)
    assert any(f["id"] == 0 for f in found["features"])
    assert all("concept" in f["effects"] for f in found["features"])
    assert len(found["search"]["cells"]) + found["search"]["pruned"] == 4
    assert found["mu"] == found["search"]["best"]["mu"]
    base = score_questions(host, magic().questions["validation"], "cloze").margin
    with edit.applied(host):
        edited = score_questions(host, magic().questions["validation"], "cloze").margin
    assert edited < base
    assert fit(host, [magic()], config=config, saes=saes).digest == edit.digest


def test_an_edit_is_not_left_to_features_that_do_not_detect():
    host = trained_host()
    config = PiscesConfig(n_probe=4, max_text_harm=-1.0)
    with pytest.raises(MatchedNothing, match="probe_mu"):
        fit(host, [magic()], config=config, saes=[planted_sae(host)])


def test_saved_and_loaded_edit_is_the_same(tmp_path):
    host = tiny_host()
    edit = fit(host, [magic()], config=GIVEN, saes=[planted_sae(host)]).bound(host)
    edit.save(tmp_path / "edit")
    loaded = Edit.load(tmp_path / "edit")
    with edit.applied(host):
        digest = host.digest
    with loaded.applied(host):
        assert host.digest == digest
    assert evidence(loaded)[0]["features"][0]["id"] == 0


def test_bad_input_names_the_field():
    host = tiny_host()
    sae = planted_sae(host)
    for change, message in (
        ({"features": ("1:0:x",)}, "layer:id"),
        ({"features": ("2:0:+",)}, "SAEs given are of layers"),
        ({"features": ("1:99:+",)}, "beyond the SAE"),
        ({"tau": 1.0}, "selects no row"),
        ({"features": (), "min_auroc": 2.0}, "min_auroc"),
        ({"tau": -0.1}, "tau must be"),
        ({"n_features": 0}, "n_features"),
    ):
        with pytest.raises(InputError, match=message):
            fit(host, [magic()], config=dataclasses.replace(GIVEN, **change), saes=[sae])
    with pytest.raises(MatchedNothing, match="no concept"):
        fit(host, [], config=GIVEN, saes=[sae])
    sae.card["hook_point"] = "layers.1.resid_post"
    with pytest.raises(InputError, match="MLP's output"):
        saes_by_layer([sae])
    with pytest.raises(InputError, match="validation"):
        fit(host, [magic(questions=None)], config=dataclasses.replace(GIVEN, search=True), saes=[planted_sae(host)])
    assert len(MAGIC) == 8
