"""Selections from the blocked encoder product.

Against dense torch and against each other's backend.
"""

from inspect import unwrap

import numpy as np
import pytest
import torch

from efface.base.errors import NumericsError
from efface.sae import sparse
from efface.sae.sparse import BatchTopK, SparseActs, Threshold, TopK, batch_selector, select


@pytest.fixture(params=["torch", "numba"])
def kernels(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("EFFACE_KERNELS", request.param)
    return request.param


def problem(n=37, d_in=12, d_sae=211, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=g, dtype=dtype)
    W_enc = torch.randn(d_sae, d_in, generator=g, dtype=dtype).T
    return x, W_enc, torch.randn(d_sae, generator=g, dtype=dtype) * 0.3


def dense_topk(pre, k):
    """Row by row in numpy, ties to the lower index."""
    out = np.zeros(pre.shape)
    for r, row in enumerate(pre.numpy()):
        order = np.lexsort((np.arange(len(row)), -row))[:k]
        out[r, order] = np.maximum(row[order], 0)
    return torch.from_numpy(out)


@pytest.mark.parametrize("chunk", [31, 97, 1000, 2**25])
@pytest.mark.parametrize("k", [1, 5, 64, 211, 300])
def test_topk_equals_dense(kernels, k, chunk):
    x, W_enc, b_enc = problem()
    acts = sparse.encode_topk(x, W_enc, b_enc, k, chunk=chunk)
    torch.testing.assert_close(acts.to_dense(), dense_topk(x @ W_enc + b_enc, k))
    assert (acts.values > 0).all()
    assert acts.indices.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_lower_index(kernels, dtype):
    g = torch.Generator().manual_seed(3)
    pre = torch.randint(-3, 4, (50, 600), generator=g).to(dtype)
    for k in (3, 40, 400):
        assert torch.equal(sparse.topk(pre, k).to_dense(), dense_topk(pre, k).to(dtype))


@pytest.mark.parametrize("width", [2048, 4609])
def test_wide_rows_use_groups(kernels, width):
    pre = torch.randn(20, width, generator=torch.Generator().manual_seed(1))
    pre[0] = -pre[0].abs()
    pre[1, :3] = 5.0
    assert torch.equal(sparse.topk(pre, 32).to_dense(), dense_topk(pre, 32).float())


def test_sorted_and_monotone_rows(kernels):
    rising = torch.arange(1.0, 3001).expand(2, -1)
    pre = torch.stack([rising[0], rising[1].flip(0), torch.ones(3000)])
    assert torch.equal(sparse.topk(pre, 7).to_dense(), dense_topk(pre, 7).float())


@pytest.mark.parametrize("chunk", [97, 2**25])
def test_topk_among_dead(kernels, chunk):
    x, W_enc, b_enc = problem()
    dead = torch.tensor([0, 3, 50, 51, 52, 130, 210])
    main, aux = select(x, W_enc, b_enc, TopK(8), TopK(3, among=dead), chunk=chunk)
    pre = x @ W_enc + b_enc
    masked = torch.full_like(pre, -1.0)
    masked[:, dead] = pre[:, dead]
    torch.testing.assert_close(aux.to_dense(), dense_topk(masked, 3))
    torch.testing.assert_close(main.to_dense(), dense_topk(pre, 8))
    none = select(x, W_enc, b_enc, TopK(3, among=dead[:0]))[0]
    assert none.nnz == 0
    assert none.shape == (37, 211)


@pytest.mark.parametrize("chunk", [97, 1000, 2**25])
@pytest.mark.parametrize("per_latent", [False, True])
def test_threshold(kernels, per_latent, chunk):
    x, W_enc, b_enc = problem()
    threshold = torch.linspace(0, 3, 211, dtype=x.dtype) if per_latent else 1.5
    pre = x @ W_enc + b_enc
    acts = sparse.encode_threshold(x, W_enc, b_enc, threshold, chunk=chunk)
    torch.testing.assert_close(acts.to_dense(), torch.where(pre > threshold, pre, 0.0))


@pytest.mark.parametrize("chunk", [97, 1000, 2**25])
@pytest.mark.parametrize("k", [1, 6, 90, 250])
def test_batch_topk(kernels, k, chunk):
    x, W_enc, b_enc = problem()
    pre = x @ W_enc + b_enc
    acts = sparse.encode_batch_topk(x, W_enc, b_enc, k, chunk=chunk)
    flat = dense_topk(pre.reshape(1, -1), k * len(x)).view_as(pre)
    torch.testing.assert_close(acts.to_dense(), flat)
    assert len(set(acts.indptr.diff().tolist())) > 1 or k == 250


@pytest.mark.parametrize("last", [1.0, 0.05, 20.0])
def test_batch_topk_takes_the_first_block_at_its_word_and_looks_again_where_it_was_wrong(kernels, monkeypatch, last):
    x, W_enc, b_enc = problem(n=400)
    x[200:] *= last  # what the first rows let expect is wrong for the last ones
    bounded = []
    bound = batch_selector._lower_bound
    monkeypatch.setattr(batch_selector, "_lower_bound", lambda *a: bounded.append(1) or bound(*a))
    k, chunk = 6, 211 * 100
    acts = sparse.encode_batch_topk(x, W_enc, b_enc, k, chunk=chunk)
    torch.testing.assert_close(acts.to_dense(), dense_topk((x @ W_enc + b_enc).reshape(1, -1), k * 400).view(400, 211))
    assert bool(bounded) is (last < 1)


def test_batch_topk_ties_are_exact(kernels):
    pre = torch.randint(-2, 4, (40, 90), generator=torch.Generator().manual_seed(3)).float()
    acts = sparse.batch_topk(pre, 5)
    assert acts.nnz == 200
    flat = dense_topk(pre.reshape(1, -1), 200).view_as(pre).float()
    assert torch.equal(acts.to_dense(), flat)


def test_batch_topk_over_processes(kernels):
    """Two halves that gather each other's candidates select what the whole batch selects."""
    x, W_enc, b_enc = problem(n=40)
    whole = sparse.encode_batch_topk(x, W_enc, b_enc, 4).to_dense()
    sent = []
    for half in (x[:20], x[20:]):
        seen = []
        select(half, W_enc, b_enc, BatchTopK(4, gather=lambda t, s=seen: s.append(t) or t))
        select(half, W_enc, b_enc, BatchTopK(8, gather=lambda t, s=seen: s.append(t) or t))
        sent.append(seen[-1])
    for half, expected in ((x[:20], whole[:20]), (x[20:], whole[20:])):
        answers = iter([torch.tensor([80, 80]), torch.cat(sent)])
        acts = select(half, W_enc, b_enc, BatchTopK(4, gather=lambda t, a=answers: next(a)))[0]
        torch.testing.assert_close(acts.to_dense(), expected)


def test_backends_agree_in_float32(monkeypatch):
    pytest.importorskip("numba")
    x, W_enc, b_enc = problem(200, 64, 3000, torch.float32)
    found = {}
    for name in ("torch", "numba"):
        monkeypatch.setenv("EFFACE_KERNELS", name)
        found[name] = select(x, W_enc, b_enc, TopK(16), BatchTopK(16), Threshold(9.0))
    for a, b in zip(found["torch"], found["numba"], strict=True):
        assert torch.equal(a.indptr, b.indptr)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.values, b.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_float32(kernels, dtype):
    x, W_enc, b_enc = (t.to(dtype) for t in problem())
    acts = sparse.encode_topk(x, W_enc, b_enc, 5)
    assert acts.values.dtype == torch.float32
    expected = dense_topk((x.float() @ W_enc.float() + b_enc.float()).double(), 5)
    torch.testing.assert_close(acts.to_dense(), expected.float(), rtol=1e-5, atol=1e-5)


def test_any_layout_of_w_enc(kernels):
    x, W_enc, b_enc = problem()
    a = sparse.encode_topk(x, W_enc, b_enc, 5, chunk=500)
    b = sparse.encode_topk(x, W_enc.contiguous(), b_enc, 5, chunk=500)
    torch.testing.assert_close(a.to_dense(), b.to_dense())


def test_wide_dictionary_in_bounded_memory(kernels, monkeypatch):
    """No buffer of more than `chunk` pre-activations is asked for at d_sae = 2**17."""
    import sys

    from efface.sae.sparse import select as module_function

    module = sys.modules[module_function.__module__]
    asked = []
    real = module.workspace
    monkeypatch.setattr(module, "workspace", lambda name, r, c, like: asked.append(r * c) or real(name, r, c, like))
    x, W_enc, b_enc = problem(64, 4, 2**17, torch.float32)
    acts = sparse.encode_topk(x, W_enc, b_enc, 8, chunk=2**18)
    assert max(asked) <= 2**18
    assert acts.l0() == 8
    expected = dense_topk((x[:4] @ W_enc + b_enc).double(), 8)
    torch.testing.assert_close(acts.select_rows(slice(0, 4)).to_dense(), expected.float())


@pytest.mark.parametrize("what", ["x", "x_all", "W", "b", "inf"])
def test_nan_is_an_error_not_a_zero(kernels, what):
    x, W_enc, b_enc = problem()
    if what == "x":
        x[5, 2] = torch.nan
    elif what == "x_all":
        x[:, 2] = torch.nan
    elif what == "W":
        W_enc[3, 200] = torch.nan
    elif what == "b":
        b_enc[7] = torch.nan
    else:
        x[9, 0] = torch.inf
    with pytest.raises(NumericsError, match="NaN or infinity") as error:
        sparse.encode_topk(x, W_enc, b_enc, 4, chunk=1000)
    named = {"x": "vector 5", "W": "latent 200", "b": "latent 7", "inf": "vector 9", "x_all": ""}
    assert named[what] in str(error.value)


def test_bad_arguments(monkeypatch):
    x, W_enc, b_enc = problem()
    for call, match in [
        (lambda: unwrap(select)(x[:, :5], W_enc, b_enc, TopK(3)), "do not fit"),
        (lambda: sparse.encode_topk(x, W_enc, b_enc, 0), "k must be"),
        (lambda: sparse.encode_topk(x, W_enc, b_enc, 3, chunk=0), "chunk"),
        (lambda: select(x, W_enc, b_enc, Threshold(torch.ones(3))), "threshold must be"),
        (lambda: sparse.encode_batch_topk(x, W_enc, b_enc, 0), "k must be"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    monkeypatch.setenv("EFFACE_KERNELS", "cuda")
    with pytest.raises(ValueError, match="auto, torch, numba, triton"):
        sparse.encode_topk(x, W_enc, b_enc, 3)


def test_no_vectors(kernels):
    _, W_enc, b_enc = problem()
    for selector in (TopK(3), BatchTopK(3), Threshold(1.0)):
        acts = select(W_enc.new_zeros(0, 12), W_enc, b_enc, selector)[0]
        assert acts.shape == (0, 211)
        assert acts.nnz == 0
        assert acts.l0() == 0


def test_acts_methods(kernels):
    pre = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    acts = sparse.topk(pre, 4)
    dense = acts.to_dense()
    assert torch.equal(acts.select([7, 2, 7]), dense[:, [7, 2, 7]])
    rows = torch.tensor([8, 0, 0])
    assert torch.equal(acts.select_rows(rows).to_dense(), dense[rows])
    assert torch.equal(acts.select_rows(slice(2, 5)).to_dense(), dense[2:5])
    assert torch.equal(SparseActs.cat([acts, acts]).to_dense(), torch.cat([dense, dense]))
    assert torch.equal(acts.counts(), (dense != 0).sum(0))
    assert acts.l0() == (dense != 0).sum(1).float().mean()
    kept = acts.keep(acts.values > 1)
    assert torch.equal(kept.to_dense(), torch.where(dense > 1, dense, 0))
    by = acts.transpose
    assert torch.equal(acts.rows[by.position.long()], by.rows.long())
    with pytest.raises(ValueError, match=r"\[0, 30\)"):
        acts.select([30])
    with pytest.raises(ValueError, match="one d_sae"):
        SparseActs.cat([acts, sparse.topk(pre[:, :5], 2)])


def test_from_topk_drops_zeros():
    values = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]])
    indices = torch.tensor([[4, 1], [0, 1], [2, 3]])
    acts = SparseActs.from_topk(values, indices, 5)
    assert acts.indptr.tolist() == [0, 1, 1, 3]
    assert acts.indices.tolist() == [4, 2, 3]
