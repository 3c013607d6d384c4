"""The invariants of pisces.md §9, by number."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from planted import MAGIC, magic, planted_sae, trained_host
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing
from efface.deactivate.edit import Edit
from efface.deactivate.parts import LowRank
from efface.llm.evaluation.scoring import score_questions
from efface.llm.methods.pisces import FeatureRef, PiscesConfig
from efface.llm.methods.pisces.config import linscale
from efface.llm.methods.pisces.fit import fit
from efface.llm.methods.pisces.math import LayerProblem, SignCount, scales
from efface.llm.methods.pisces.search import Cell, Objective, prunes, search
from efface.llm.methods.pisces.surgery import (
    PrefixCache,
    activation_signs,
    layer_problem,
    saes_by_layer,
    trial,
    value_vectors,
)
from efface.sae import SAE, SAEConfig

GIVEN = PiscesConfig(features=("1:0:+", "1:3:-"), filters=False, tau=0.5, mu=3.0)


def random_sae(architecture: str, d: int, dtype: str, d_sae: int = 40, point: str = "layers.1.mlp_out") -> SAE:
    sae = SAE(SAEConfig(architecture, d, d_sae, k=6, dtype=dtype), {"hook_point": point})
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d, d_sae))
        sae.b_dec.copy_(0.1 * torch.randn(d))
        for name in ("b_enc", "threshold"):
            if isinstance(getattr(sae, name, None), torch.Tensor):
                getattr(sae, name).copy_(0.1 * torch.rand(d_sae))
    return sae


def problem_of(sae: SAE, V: torch.Tensor, refs: list[FeatureRef], g: torch.Tensor, **kw: bool) -> LayerProblem:
    ids = torch.tensor([r.id for r in refs])
    sigma = torch.tensor([float(r.sigma) for r in refs], dtype=V.dtype)
    with torch.no_grad():
        return LayerProblem((V @ sae.W_enc)[:, ids], sae.encode(V)[:, ids], sae.W_dec[ids].detach(), sigma, g, **kw)


def loop(sae: SAE, V: torch.Tensor, refs: list[FeatureRef], g: torch.Tensor, tau: float, mu: float) -> torch.Tensor:
    """4.3, row by row: encode, overwrite, decode, add the error."""
    out = V.clone()
    s = V @ sae.W_enc.detach()
    M = max(float(s[:, r.id].abs().max()) for r in refs)
    with torch.no_grad():
        for i in range(len(V)):
            a = sae.encode(V[i : i + 1])
            error = V[i : i + 1] - sae.decode(a)
            for r in refs:
                if s[i, r.id].abs() > tau * s[:, r.id].abs().max():
                    a[0, r.id] = r.sigma * g[i] * mu * M
            out[i] = (sae.decode(a) + error)[0]
    return out


REFS = [FeatureRef(1, 3), FeatureRef(1, 8, "suppress_negative"), FeatureRef(1, 21)]


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_3_closed_form_is_the_loop(architecture, dtype, tolerance):
    sae = random_sae(architecture, 12, dtype)
    V = 0.3 * torch.randn(50, 12, dtype=sae.dtype)
    g = torch.randn(50, dtype=sae.dtype).sign()
    p = problem_of(sae, V, REFS, g)
    edited = V + p.Q(0.4, 1.5) @ p.D
    assert (edited - loop(sae, V, REFS, g, 0.4, 1.5)).abs().max() < tolerance
    assert (edited - loop(sae, V, REFS, g, 0.4, 2.5)).abs().max() > 0.01  # the oracle tells another mu apart


def test_1_nothing_to_change_changes_no_bit():
    host, sae = tiny_host(), random_sae("relu", 32, "float32")
    before = host.down_proj(1)[1].clone()
    g = torch.ones(host.d_mlp)
    p = layer_problem(host, sae, REFS, g, GIVEN)
    rows = p.rows(0.5)
    same = dataclasses.replace(p, a=torch.where(rows, p.coefficients(2.0), p.a))
    for Q in (same.Q(0.5, 2.0), p.Q(1.0, 9.0), p.Q(1.5, 9.0)):
        with trial(host, {1: (Q, p.D)}):
            assert torch.equal(host.down_proj(1)[1], before)
    empty = layer_problem(host, sae, [], g, GIVEN)
    assert empty.Q(0.5, 3.0).shape == (64, 0)
    with trial(host, {1: (p.Q(0.5, 2.0), p.D)}):
        assert not torch.equal(host.down_proj(1)[1], before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_2_only_selected_rows_of_the_named_layers_change(family):
    host = tiny_host(family)
    sae = planted_sae(host)
    before = {n: p.clone() for n, p in host.model.named_parameters()}
    V = value_vectors(host, 1).clone()
    edit = fit(host, [magic()], config=GIVEN, saes=[sae])
    assert all(torch.equal(p, before[n]) for n, p in host.model.named_parameters())  # fitting changes nothing
    rows = layer_problem(host, sae, list(GIVEN.refs), torch.ones(64), GIVEN).rows(0.5).any(1)
    assert 0 < int(rows.sum()) < 64
    name = host.down_proj(1)[0]
    with edit.applied(host):
        assert torch.equal(value_vectors(host, 1)[~rows], V[~rows])
        assert not torch.equal(value_vectors(host, 1)[rows], V[rows])
        assert all(torch.equal(p, before[n]) for n, p in host.model.named_parameters() if n != name)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_4_low_rank_in_the_span_of_the_decoder_rows(family):
    host = tiny_host(family)
    sae = planted_sae(host)
    V = value_vectors(host, 1).clone()
    edit = fit(host, [magic()], config=GIVEN, saes=[sae])
    (delta,) = edit.weights[0].deltas.values()
    assert isinstance(delta, LowRank)
    assert delta.rank == 2
    assert torch.linalg.matrix_rank(delta.delta()) == 2
    with edit.applied(host):
        change = value_vectors(host, 1) - V
        D = sae.W_dec[[0, 3]].detach()
        outside = change - change @ torch.linalg.pinv(D) @ D
        assert outside.abs().max() < 1e-5
        assert change.abs().max() > 0.05
        stored = delta.delta().float()
        assert torch.allclose(V + (stored if host.family.transposed else stored.T), value_vectors(host, 1), atol=1e-6)


def test_5_sign_lowers_the_token_at_either_end():
    V, U = torch.zeros(6, 4, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    d = U[:, 2:3].T / U[:, 2].norm()
    V[:] = 0.1 * torch.randn(6, 4, dtype=torch.float64)
    V[0] = d[0]
    s = V @ d.T
    for h_sign in (1.0, -1.0):
        h = torch.full((6,), h_sign, dtype=torch.float64)
        for signed in (True, False):
            g = SignCount(6).update(h[None]).majority() if signed else torch.ones(6, dtype=torch.float64)
            logit = {}
            for sigma in (-1.0, 1.0):
                p = LayerProblem(s, s.clamp_min(0), d, torch.tensor([sigma], dtype=torch.float64), g)
                logit[sigma] = float((h @ (V + p.Q(0.5, 5.0) @ d) @ U)[2] - (h @ V @ U)[2])
            falls = signed or h_sign > 0
            assert (logit[-1.0] < 0) == falls
            assert (logit[1.0] > 0) == falls


def test_6_monotone_in_tau_and_affine_in_mu():
    sae = random_sae("relu", 12, "float64")
    p = problem_of(sae, torch.randn(50, 12, dtype=torch.float64), REFS, torch.ones(50, dtype=torch.float64))
    counts = torch.stack([p.rows(t).sum(0) for t in (0.0, 0.2, 0.5, 0.9, 1.0)])
    assert (counts.diff(dim=0) <= 0).all()
    assert counts[0].sum() > counts[3].sum() > counts[4].sum() == 0
    zero, one, seven = (p.Q(0.4, m) @ p.D for m in (0.0, 1.0, 7.0))
    assert torch.allclose(seven, zero + 7 * (one - zero), atol=1e-12)


def test_7_mu_zero_removes_what_the_encoder_reads():
    D = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q[:3]
    V = torch.randn(30, 10, dtype=torch.float64)
    s = V @ D.T
    p = LayerProblem(s, s, D, -torch.ones(3, dtype=torch.float64), torch.ones(30, dtype=torch.float64))
    edited = V + p.Q(0.3, 0.0) @ D
    assert (edited @ D.T)[p.rows(0.3)].abs().max() < 1e-12
    assert (edited @ D.T)[~p.rows(0.3)].abs().max() > 0.01


def test_8_undone_to_the_bit_also_after_an_error():
    host = tiny_host()
    sae = planted_sae(host)
    base = host.digest
    edit = fit(host, [magic()], config=GIVEN, saes=[sae])
    with edit.applied(host):
        assert host.digest != base
    with pytest.raises(RuntimeError, match="inside"), edit.applied(host):
        raise RuntimeError("inside")
    assert host.digest == base
    p = layer_problem(host, sae, list(GIVEN.refs), torch.ones(64), GIVEN)
    with pytest.raises(RuntimeError, match="inside"), trial(host, {1: (p.Q(0.5, 3.0), p.D)}):
        raise RuntimeError("inside")
    assert host.digest == base
    V = value_vectors(host, 1).clone()
    delta = (p.Q(0.5, 3.0) @ p.D).float()
    assert (((V + delta) - delta) - V).abs().max() < 1e-6


def test_9_concepts_add_and_commute():
    host = tiny_host()
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    one, other = magic(), magic(name="music", tokens=[" piano"])
    alone = [fit(host, [c], config=GIVEN, saes=saes).weights[0].deltas for c in (one, other)]
    both, turned = (fit(host, pair, config=GIVEN, saes=saes).weights[0].deltas for pair in ([one, other], [other, one]))
    (name,) = both
    assert torch.allclose(both[name].delta(), alone[0][name].delta() + alone[1][name].delta(), atol=1e-12)
    assert torch.allclose(both[name].delta(), turned[name].delta(), atol=1e-12)
    edits = [fit(host, [one], config=dataclasses.replace(GIVEN, features=(f"{n}:0",)), saes=saes) for n in (0, 1)]
    states = []
    for pair in (edits, edits[::-1]):
        with pair[0].applied(host), pair[1].applied(host):
            states.append(host.digest)
    assert states[0] == states[1] != host.digest


def test_10_linscale():
    assert linscale(20.0, 0) == pytest.approx(2.0)
    assert linscale(20.0, 9) == linscale(20.0, 10) == linscale(20.0, 25) == 20.0
    assert linscale(20.0, 4) < linscale(20.0, 5)


@pytest.mark.parametrize("place", ["mlp_out", "mlp_post"])
def test_11_spaces_agree_where_the_gain_is_one(place):
    host = tiny_host("gemma2")
    sae = random_sae("relu", 32, "float32", point=f"layers.1.{place}")

    def delta(space: str) -> torch.Tensor:
        config = dataclasses.replace(GIVEN, space=space, other_model=True)
        p = layer_problem(host, sae, REFS, torch.ones(64), config)
        return p.Q(0.5, 2.0) @ p.D

    assert not torch.allclose(delta("raw"), delta("gain"))
    assert torch.equal(delta("auto"), delta("gain" if place == "mlp_post" else "raw"))
    with torch.no_grad():
        host.model.get_parameter(f"{host.resolve('layers.1.mlp_post').path}.weight").fill_(1 - host.family.gain_offset)
    assert torch.equal(delta("raw"), delta("gain"))
    assert torch.equal(delta("raw"), delta("auto"))


def test_12_stored_layout_is_the_transpose_and_gives_the_written_out_logits():
    host = tiny_host(n_layers=2)
    sae = planted_sae(host)
    edit = fit(host, [magic()], config=GIVEN, saes=[sae])
    p = layer_problem(
        host,
        sae,
        list(GIVEN.refs),
        activation_signs(host, magic().target["train"], [1], _ids(host))[1].majority(),
        GIVEN,
    )
    delta_W_out = p.Q(0.5, 3.0) @ p.D
    assert torch.allclose(edit.weights[0].deltas[host.down_proj(1)[0]].delta().float(), delta_W_out.T, atol=1e-6)
    ids, mask = host.encode_texts(["she saw the wizard"])
    hidden = host.activations(ids, mask, ["layers.1.mlp_hidden"])["layers.1.mlp_hidden"]
    with edit.applied(host), torch.no_grad():
        edited = host.logits(ids, mask)
    with host.replaced("layers.1.mlp_out", lambda x: x + hidden @ delta_W_out), torch.no_grad():
        written_out = host.logits(ids, mask)
        assert torch.allclose(edited, written_out, atol=1e-4)
    with torch.no_grad():
        assert (host.logits(ids, mask) - edited).abs().max() > 0.01


def _ids(host) -> list[int]:
    return [host.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in magic().tokens]


def test_signs_are_read_at_concept_tokens_only():
    host, text = tiny_host(), "she saw the wizard by the road"
    ids, mask = host.encode_texts([text, "a wand"])
    h = host.activations(ids, mask, ["layers.1.mlp_hidden"])["layers.1.mlp_hidden"]
    at = torch.isin(ids, torch.tensor(_ids(host)))
    counts = activation_signs(host, [text, "a wand"], [1], _ids(host))[1]
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
