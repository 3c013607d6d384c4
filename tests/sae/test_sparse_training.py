"""Gradients of the sparse path against dense autograd, in float64.

For every architecture that uses it.
"""

import os
import subprocess
import sys

import pytest
import torch

from efface.sae import sparse
from efface.sae.sparse import (
    BatchTopK,
    Threshold,
    TopK,
    attach_row_grad,
    decode_on,
    decode_prefixes,
    detach_row_grad,
    encode_on,
    row_grad_of,
    select,
)

N, D_IN, D_OUT, D_SAE = 23, 10, 7, 60
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


needs_interpreter = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="make test-triton")


@pytest.fixture(params=["torch", "numba", pytest.param("triton", marks=needs_interpreter)])
def kernels(request, monkeypatch):
    if request.param != "torch":
        pytest.importorskip(request.param)
    monkeypatch.setenv("EFFACE_KERNELS", request.param)
    return request.param


def weights(d_out=D_IN, dtype=torch.float64, d_sae=D_SAE, d_in=D_IN):
    g = torch.Generator().manual_seed(1)
    made = {
        "W_enc": torch.randn(d_sae, d_in, generator=g, dtype=dtype).T,
        "b_enc": torch.randn(d_sae, generator=g, dtype=dtype) * 0.1,
        "W_dec": torch.randn(d_sae, d_out, generator=g, dtype=dtype),
        "b_dec": torch.randn(d_out, generator=g, dtype=dtype),
    }
    return {name: torch.nn.Parameter(value) for name, value in made.items()}


def batch(n=N, d=D_IN, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(2), dtype=dtype)


def grads_of(loss, params):
    """Gradients whatever way they arrive, as dense tensors in the parameters' orientation."""
    for p in params.values():
        p.grad = None
        if (rows := row_grad_of(p)) is not None:
            rows.clear_()
    loss.backward()
    out = {}
    for name, p in params.items():
        total = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        if (rows := row_grad_of(p)) is not None:
            total += rows.to_dense().T if name == "W_enc" else rows.to_dense()
        out[name] = total
    return out


def compare(sparse_loss, dense_loss, params):
    torch.testing.assert_close(sparse_loss, dense_loss)
    want = grads_of(dense_loss, params)
    got = grads_of(sparse_loss, params)
    for name in params:
        torch.testing.assert_close(got[name], want[name], msg=lambda m, n=name: f"{n}: {m}")
        assert want[name].abs().max() > 0
    return got


@pytest.fixture(params=[False, True], ids=["grad", "row_grad"])
def params(request):
    made = weights()
    if request.param:
        attach_row_grad(made["W_enc"])
        attach_row_grad(made["W_dec"])
    return made


def pre_of(x, p):
    return (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]


def sparse_in(x, p):
    return (x - p["b_dec"]).detach()


@pytest.mark.parametrize("selector", [TopK(5), BatchTopK(5)], ids=["topk", "batchtopk"])
def test_topk_gradients(kernels, params, selector):
    p, x = params, batch()
    sae_in = sparse_in(x, p)
    acts = select(sae_in, p["W_enc"], p["b_enc"], selector)[0]
    f = encode_on(acts, sae_in, p["W_enc"], p["b_enc"], b_pre=p["b_dec"])
    loss = (decode_on(acts, f, p["W_dec"], p["b_dec"]) - x).pow(2).sum(1).mean()
    chosen = acts.to_dense() != 0
    dense = torch.where(chosen, pre_of(x, p), 0) @ p["W_dec"] + p["b_dec"]
    got = compare(loss, (dense - x).pow(2).sum(1).mean(), p)
    never = ~chosen.any(0)
    assert never.any()
    assert (got["W_dec"][never] == 0).all()
    assert (got["W_enc"].T[never] == 0).all()


def test_gradient_through_the_input(kernels, params):
    p, x = params, batch().requires_grad_()
    sae_in = x - p["b_dec"]
    acts = select(sae_in, p["W_enc"], p["b_enc"], TopK(5))[0]
    f = encode_on(acts, sae_in, p["W_enc"], p["b_enc"])
    loss = decode_on(acts, f, p["W_dec"], p["b_dec"]).pow(3).sum()
    dense = torch.where(acts.to_dense() != 0, pre_of(x, p), 0) @ p["W_dec"] + p["b_dec"]
    compare(loss, dense.pow(3).sum(), p)
    got, x.grad = x.grad.clone() / 2, None
    dense = torch.where(acts.to_dense() != 0, pre_of(x, p), 0) @ p["W_dec"] + p["b_dec"]
    dense.pow(3).sum().backward()
    torch.testing.assert_close(got, x.grad)


@pytest.mark.parametrize("prefixes", [(4, 20, 60), (1, 2, 30), (60,), (30,)])
def test_matryoshka_gradients(kernels, params, prefixes):
    p, x = params, batch()
    sae_in = sparse_in(x, p)
    acts = select(sae_in, p["W_enc"], p["b_enc"], BatchTopK(8))[0]
    f = encode_on(acts, sae_in, p["W_enc"], p["b_enc"], b_pre=p["b_dec"])
    out = decode_prefixes(acts, f, p["W_dec"], p["b_dec"], prefixes)
    scale = torch.arange(1.0, len(prefixes) + 1, dtype=x.dtype)[:, None, None]
    loss = (scale * (out - x) ** 2).mean()
    dense_f = torch.where(acts.to_dense() != 0, pre_of(x, p), 0)
    dense = torch.stack([dense_f[:, :m] @ p["W_dec"][:m] + p["b_dec"] for m in prefixes])
    compare(loss, (scale * (dense - x) ** 2).mean(), p)


def test_transcoder_gradients(kernels):
    p, x, y = weights(D_OUT), batch(), batch(d=D_OUT)
    acts = select(x, p["W_enc"], p["b_enc"], TopK(5))[0]
    f = encode_on(acts, x, p["W_enc"], p["b_enc"])
    loss = (decode_on(acts, f, p["W_dec"], p["b_dec"]) - y).pow(2).sum(1).mean()
    dense_f = torch.where(acts.to_dense() != 0, x @ p["W_enc"] + p["b_enc"], 0)
    compare(loss, (dense_f @ p["W_dec"] + p["b_dec"] - y).pow(2).sum(1).mean(), p)


def test_auxk_reaches_dead_encoders(kernels, params):
    p, x = params, batch()
    dead = torch.arange(40, 60)
    sae_in = sparse_in(x, p)
    with torch.no_grad():
        p["b_enc"][dead] -= 20.0
        p["b_enc"][dead[:15]] += 17.0
    acts, aux = select(sae_in, p["W_enc"], p["b_enc"], TopK(5), TopK(6, among=dead))
    assert aux.nnz > 0
    assert not torch.isin(acts.indices.long(), dead).all()
    f = encode_on(acts, sae_in, p["W_enc"], p["b_enc"], b_pre=p["b_dec"])
    out = decode_on(acts, f, p["W_dec"], p["b_dec"])
    z = encode_on(aux, sae_in, p["W_enc"], p["b_enc"], b_pre=p["b_dec"])
    error = (x - out).detach()
    loss = (out - x).pow(2).mean() + (decode_on(aux, z, p["W_dec"]) - error).pow(2).mean() / 32
    pre = pre_of(x, p)
    dense = torch.where(acts.to_dense() != 0, pre, 0) @ p["W_dec"] + p["b_dec"]
    ehat = torch.where(aux.to_dense() != 0, pre, 0) @ p["W_dec"]
    dense_loss = (dense - x).pow(2).mean() + (ehat - (x - dense).detach()).pow(2).mean() / 32
    got = compare(loss, dense_loss, p)
    moved = torch.unique(aux.indices.long())
    assert (got["W_enc"].T[moved].abs().sum(1) > 0).all()
    alone = grads_of((decode_on(acts, acts.values, p["W_dec"]) - x).pow(2).mean(), p)
    assert (alone["W_enc"] == 0).all()


class Jump(torch.autograd.Function):
    """JumpReLU with the box-kernel estimator for the threshold, on whatever entries it is given."""

    @staticmethod
    def forward(ctx, a, theta, h):
        ctx.save_for_backward(a, theta)
        ctx.h = h
        return torch.where(a > theta, a, 0)

    @staticmethod
    def backward(ctx, g):
        a, theta = ctx.saved_tensors
        box = ((a - theta) / ctx.h).abs() < 0.5
        return torch.where(a > theta, g, 0), torch.where(box, -theta / ctx.h * g, 0), None


def test_jumprelu_gradients(kernels, params):
    p, x, h = params, batch(), 0.8
    p["theta"] = torch.nn.Parameter(torch.linspace(0.5, 4, D_SAE, dtype=x.dtype))
    sae_in = sparse_in(x, p)
    acts = select(sae_in, p["W_enc"], p["b_enc"], Threshold(p["theta"] - h / 2))[0]
    a = encode_on(acts, sae_in, p["W_enc"], p["b_enc"], b_pre=p["b_dec"])
    f = Jump.apply(a, p["theta"][acts.indices], h)
    loss = (decode_on(acts, f, p["W_dec"], p["b_dec"]) - x).pow(2).sum(1).mean() + 0.1 * f.sum()
    dense_f = Jump.apply(pre_of(x, p), p["theta"].expand(N, -1), h)
    dense = dense_f @ p["W_dec"] + p["b_dec"]
    compare(loss, (dense - x).pow(2).sum(1).mean() + 0.1 * dense_f.sum(), p)


def test_row_grad_comes_and_goes():
    p = weights()
    rows = attach_row_grad(p["W_enc"])
    assert row_grad_of(p["W_enc"]) is rows
    assert rows.rows.shape == (D_SAE, D_IN)
    rows.rows[3] = 2.0
    assert (rows.to_dense() == 0).all()
    rows.touched[3] = True
    assert rows.to_dense().sum() == 2.0 * D_IN
    assert torch.equal(rows.dense_(), rows.to_dense())
    assert rows.touched.all()
    assert not rows.clear_().touched.any()
    detach_row_grad(p["W_enc"])
    assert row_grad_of(p["W_enc"]) is None
    loose = torch.nn.Parameter(torch.randn(6, 8)[:, ::2])
    with pytest.raises(ValueError, match="contiguous"):
        attach_row_grad(loose)


def step_grads(threads, dtype, n=300):
    p, x = weights(d_sae=3 * n, dtype=dtype, d_in=141, d_out=141), batch(n, 141, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        acts = select(x, p["W_enc"], p["b_enc"], TopK(9))[0]
        f = encode_on(acts, x, p["W_enc"], p["b_enc"], b_pre=p["b_dec"])
        loss = (decode_on(acts, f, p["W_dec"], p["b_dec"]) - x).pow(2).sum(1).mean()
        return grads_of(loss, p)
    finally:
        torch.set_num_threads(before)


def test_bits_repeat(kernels):
    n = 20 if kernels == "triton" else 300
    first = step_grads(2, torch.float32, n)
    for _ in range(3):
        again = step_grads(2, torch.float32, n)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("other", ["numba", pytest.param("triton", marks=needs_interpreter)])
def test_backends_agree_in_float32(monkeypatch, other):
    pytest.importorskip(other)
    found = {}
    for name in ("torch", other):
        monkeypatch.setenv("EFFACE_KERNELS", name)
        found[name] = step_grads(2, torch.float32, n=40 if other == "triton" else 300)
    for name in NAMES:
        a, b = found["torch"][name], found[other][name]
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_bfloat16_weights_get_bfloat16_gradients(kernels):
    p, x = weights(dtype=torch.bfloat16), batch(dtype=torch.bfloat16)
    acts = select(x, p["W_enc"], p["b_enc"], TopK(5))[0]
    f = encode_on(acts, x, p["W_enc"], p["b_enc"], b_pre=p["b_dec"])
    decode_on(acts, f, p["W_dec"], p["b_dec"]).pow(2).sum().backward()
    for value in p.values():
        assert value.grad.dtype == torch.bfloat16
        assert value.grad.isfinite().all()


def test_empty_selection(kernels, params):
    p, x = params, batch()
    acts = select(x, p["W_enc"], p["b_enc"], Threshold(1e6))[0]
    f = encode_on(acts, x, p["W_enc"], p["b_enc"])
    out = decode_on(acts, f, p["W_dec"], p["b_dec"])
    assert torch.equal(out, p["b_dec"].expand(N, -1))
    got = grads_of(out.sum(), p)
    assert (got["W_dec"] == 0).all()
    assert (got["b_dec"] == N).all()


def test_decode_sparse_and_bad_prefixes():
    p = weights()
    acts = sparse.topk(batch(d=D_SAE), 4)
    expected = acts.to_dense() @ p["W_dec"] + p["b_dec"]
    torch.testing.assert_close(sparse.decode_sparse(acts, p["W_dec"], p["b_dec"]), expected)
    for prefixes in ((), (5, 5), (0, 4), (10, 61)):
        with pytest.raises(ValueError, match="prefixes must ascend"):
            decode_prefixes(acts, acts.values, p["W_dec"], None, prefixes)
    with pytest.raises(ValueError, match="59 rows"):
        decode_on(acts, acts.values, p["W_dec"][:59])


def test_kernels_do_not_depend_on_the_number_of_threads(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("EFFACE_KERNELS", "numba")
    p, x = weights(d_sae=900, dtype=torch.float32, d_in=33, d_out=33), batch(300, 33, torch.float32)
    acts = sparse.topk(batch(300, 900, torch.float32), 9)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            f = encode_on(acts, x, p["W_enc"], p["b_enc"])
            got = grads_of((decode_on(acts, f, p["W_dec"]) - x).pow(2).sum(), p)
            found.append([got[name] for name in ("W_enc", "b_enc", "W_dec")])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_numba_is_not_imported_before_it_is_needed():
    code = "import sys, efface.sae.sparse; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
