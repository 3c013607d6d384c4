"""FusedAdam against torch.optim.Adam, with row gradients, clipping, decoder handling.

And resume.
"""

import copy

import pytest
import torch

from efface.sae.sparse import FusedAdam, attach_row_grad, row_grad_of


@pytest.fixture(params=["torch", "numba"])
def kernels(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("EFFACE_KERNELS", request.param)
    return request.param


def model(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(40, 12, generator=g, dtype=dtype).T),
        torch.nn.Parameter(torch.randn(40, 9, generator=g, dtype=dtype)),
        torch.nn.Parameter(torch.randn(40, generator=g, dtype=dtype)),
    ]


def gradients(step, dtype=torch.float32):
    """Gradients of which about two thirds of the latents' rows are zero."""
    g = torch.Generator().manual_seed(100 + step)
    live = (torch.rand(40, generator=g) < 0.35).to(dtype)
    return [
        torch.randn(12, 40, generator=g, dtype=dtype) * live,
        torch.randn(40, 9, generator=g, dtype=dtype) * live[:, None],
        torch.randn(40, generator=g, dtype=dtype) * live,
    ]


def give(params, grads):
    """As `.grad`, or as the touched rows of an attached `RowGrad` whose other rows hold rubbish."""
    for p, g in zip(params, grads, strict=True):
        if (rows := row_grad_of(p)) is None:
            p.grad = g.clone()
            continue
        g = g if p.is_contiguous() else g.T
        live = g.abs().sum(1) > 0
        rows.rows.fill_(torch.nan)
        rows.rows[live] = g[live]
        rows.touched.copy_(live)


def run(optimizer, params, steps, first=0, dtype=torch.float32):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        give(params, gradients(step, dtype))
        optimizer.step()


@pytest.mark.parametrize("rows", [False, True], ids=["grad", "row_grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_adam(kernels, rows, dtype):
    ours, theirs = model(dtype), model(dtype)
    if rows:
        attach_row_grad(ours[0]), attach_row_grad(ours[1])
    kwargs = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-7}
    a, b = FusedAdam(ours, **kwargs), torch.optim.Adam(theirs, **kwargs)
    run(a, ours, 60, dtype=dtype)
    run(b, theirs, 60, dtype=dtype)
    for p, q in zip(ours, theirs, strict=True):
        assert p.stride() == q.stride()
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.state[p]["exp_avg"], b.state[q]["exp_avg"])
        torch.testing.assert_close(a.state[p]["exp_avg_sq"], b.state[q]["exp_avg_sq"])
        assert a.state[p].keys() == b.state[q].keys()
    start = model(dtype)
    assert all((p - q).abs().max() > 0.05 for p, q in zip(ours, start, strict=True))


@pytest.mark.parametrize("rows", [False, True], ids=["grad", "row_grad"])
@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
def test_clipping_projection_and_unit_rows(kernels, rows, max_norm):
    """Against the same done step by step: project, clip, Adam, normalise."""
    ours, theirs = model(), model()
    if rows:
        attach_row_grad(ours[0]), attach_row_grad(ours[1])
    a = FusedAdam(
        [
            {"params": [ours[1]], "unit_rows": True, "remove_parallel": True},
            {"params": [ours[0], ours[2]]},
        ],
        lr=1e-2,
        max_norm=max_norm,
    )
    b = torch.optim.Adam(theirs, lr=1e-2)
    for step in range(30):
        a.zero_grad()
        give(ours, gradients(step))
        a.step()
        give(theirs, gradients(step))
        W = theirs[1].data
        along = (theirs[1].grad * W).sum(1, keepdim=True) / W.pow(2).sum(1, keepdim=True)
        theirs[1].grad -= along * W
        if max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
            torch.testing.assert_close(a.grad_norm.float(), norm, rtol=1e-5, atol=1e-6)
        b.step()
        W /= W.norm(dim=1, keepdim=True)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)
    assert (a.grad_norm is None) == (max_norm is None)


def test_zero_weight_rows_survive(kernels):
    """A decoder that starts at zero (transcoders) is neither projected nor divided by zero."""
    p = torch.nn.Parameter(torch.zeros(5, 4))
    a = FusedAdam([p], unit_rows=True, remove_parallel=True, max_norm=1.0)
    p.grad = torch.zeros(5, 4)
    p.grad[2] = 1.0
    a.step()
    assert p.isfinite().all()
    assert (p[[0, 1, 3, 4]] == 0).all()
    torch.testing.assert_close(p[2].norm(), torch.tensor(1.0))


@pytest.mark.parametrize("contiguous", [False, True])
def test_resume_is_bit_equal(kernels, contiguous):
    whole = model()
    attach_row_grad(whole[0])
    run(FusedAdam(whole, lr=1e-2, max_norm=1.0), whole, 9)
    first = model()
    attach_row_grad(first[0])
    a = FusedAdam(first, lr=1e-2, max_norm=1.0)
    run(a, first, 4)
    saved = a.state_dict()
    if contiguous:
        for state in saved["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].contiguous()
    second = model()
    attach_row_grad(second[0])
    for p, q in zip(second, first, strict=True):
        p.data.copy_(q.data)
    b = FusedAdam(second, lr=1e-2, max_norm=1.0)
    b.load_state_dict(saved)
    run(b, second, 5, first=4)
    assert all(torch.equal(p, q) for p, q in zip(second, whole, strict=True))


def test_state_is_interchangeable_with_torch_adam():
    ours, theirs = model(), model()
    b = torch.optim.Adam(theirs, lr=1e-2)
    run(b, theirs, 3)
    a = FusedAdam(ours, lr=1e-2)
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q.data)
    mixed = a.state_dict()
    mixed["state"] = copy.deepcopy(b.state_dict()["state"])
    a.load_state_dict(mixed)
    run(a, ours, 3, first=3)
    run(b, theirs, 3, first=3)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_both_kinds_of_gradient_add_up(kernels):
    ours, theirs = model(), model()
    attach_row_grad(ours[1])
    a, b = FusedAdam(ours), torch.optim.Adam(theirs)
    give(ours, gradients(0)), give(theirs, gradients(0))
    extra = gradients(1)[1]
    ours[1].grad = extra.clone()
    theirs[1].grad += extra
    a.step(), b.step()
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-6)


def test_schedulers_and_bad_hyperparameters():
    p = model()
    a = FusedAdam(p, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(a, lambda s: 1 / (s + 1))
    p[2].grad = torch.ones_like(p[2])
    before = p[0].detach().clone()
    a.step(), schedule.step()
    assert a.param_groups[0]["lr"] == 0.5
    assert torch.equal(p[0], before)
    for bad in ({"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"max_norm": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            FusedAdam(p, **bad)
