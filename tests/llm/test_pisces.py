"""The invariants of pisces.md §9, by number."""

import dataclasses

import pytest
import torch
from planted import concept_ids, magic, planted_sae
from tiny import tiny_host

from efface.deactivate.parts import LowRank
from efface.llm.methods.pisces import FeatureRef, PiscesConfig
from efface.llm.methods.pisces.config import linscale
from efface.llm.methods.pisces.fit import fit
from efface.llm.methods.pisces.math import LayerProblem, SignCount
from efface.llm.methods.pisces.surgery import (
    activation_signs,
    layer_problem,
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
        activation_signs(host, magic().target["train"], [1], concept_ids(host))[1].majority(),
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
