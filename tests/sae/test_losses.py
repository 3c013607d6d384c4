"""The loss terms one by one, on numbers that can be checked by hand."""

import pytest
import torch

from efface.sae import losses
from efface.sae.losses import Coefficients, Loss
from efface.sae.sparse import topk


def test_squared_error_sums_over_the_width_and_averages_over_the_rest():
    error = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]])
    assert float(losses.squared_error(error[0])) == 2.5
    assert float(losses.squared_error(error)) == (5 + 0 + 9 + 1) / 4


def test_variance_ignores_a_constant():
    x = torch.randn(50, 6, dtype=torch.float64)
    expected = x.var(0, unbiased=False).sum()
    torch.testing.assert_close(losses.variance(x + 1e5), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.variance(x.float()), expected.float())


def test_auxk_is_one_for_the_best_constant_and_does_not_reach_the_residual():
    error = torch.randn(40, 5, requires_grad=True)
    hat = error.detach().mean(0).expand(40, 5).clone().requires_grad_()
    value = losses.auxk(error, hat)
    torch.testing.assert_close(value, torch.ones(()))
    value.backward()
    assert error.grad is None
    assert hat.grad is not None
    assert losses.auxk(error, error.detach()) == 0
    assert losses.auxk(3 * error, 3 * hat).detach() == pytest.approx(float(value.detach()))  # free of the residual's scale


def test_auxk_of_a_perfect_reconstruction_is_finite():
    assert torch.isfinite(losses.auxk(torch.zeros(4, 3), torch.zeros(4, 3)))


def test_l1_is_free_of_the_split_between_latent_and_decoder():
    acts, W = torch.rand(8, 5), torch.randn(5, 3)
    value = losses.l1(acts, W)
    torch.testing.assert_close(losses.l1(acts / 10, W * 10), value)
    assert losses.l1(acts / 10, W) < 0.2 * value  # control: the norms do weigh


def gradients(function, pre, theta, *args):
    a, t = pre.clone().requires_grad_(), theta.clone().requires_grad_()
    function(a, t, *args).sum().backward()
    zero = torch.zeros_like(pre)
    assert t.grad is not None
    return (zero if a.grad is None else a.grad), t.grad


def test_jump_and_step_values_and_estimators():
    pre = torch.tensor([0.0, 0.8, 0.95, 1.05, 1.2, 3.0])
    theta, h = torch.ones(6), 0.5  # the kernel covers 0.75 … 1.25
    inside = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    above = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(losses.jump(pre, theta, h), pre * above)
    torch.testing.assert_close(losses.heaviside(pre, theta, h), above)
    to_pre, to_theta = gradients(losses.jump, pre, theta, h)
    torch.testing.assert_close(to_pre, above)
    torch.testing.assert_close(to_theta, -inside * 1 / h)
    to_pre, to_theta = gradients(losses.jump, pre, 2 * theta, 4.0)  # theta / h = 1/2, kernel 0 … 4 without its edges
    torch.testing.assert_close(to_theta, -0.5 * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    to_pre, to_theta = gradients(losses.heaviside, pre, theta, h)
    torch.testing.assert_close(to_theta, -inside / h)
    assert not to_pre.any()
    for function, own in ((losses.jump, above), (losses.heaviside, torch.zeros(6))):
        to_pre, to_theta = gradients(function, pre, theta, h, True)
        torch.testing.assert_close(to_pre, own - to_theta)


def test_step_estimator_is_the_slope_of_the_expected_l0():
    """Over smoothly spread pre-activations the estimator's mean is the derivative of the share above the threshold."""
    torch.manual_seed(3)
    pre, theta = torch.randn(200_000, dtype=torch.float64), 0.7
    _, grad = gradients(losses.heaviside, pre, torch.full_like(pre, theta), 0.2)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(theta)).exp()
    assert float(grad.mean()) == pytest.approx(-float(density), rel=0.03)


def test_quadratic_and_pre_activation():
    assert float(losses.quadratic(torch.tensor([1.0, 5.0]), 2.0)) == (2 / 2) * (1 + 9) / 2
    pre, theta, norms = torch.tensor([[0.0, 3.0], [-1.0, 0.5]]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])
    assert float(losses.pre_activation(pre, theta, norms)) == ((1 * 2 + 0) + (2 * 2 + 0.5 * 4)) / 2


def test_dead_latents():
    assert losses.dead_latents(None) is None
    assert losses.dead_latents(torch.zeros(4, dtype=torch.bool)) is None
    dead = losses.dead_latents(torch.tensor([True, False, True]))
    assert dead is not None
    assert dead.tolist() == [0, 2]


def test_counts_of_sparse_and_dense_latents_agree():
    pre = torch.randn(20, 15)
    acts, zero = topk(pre, 4), torch.zeros(())
    sparse = Loss(zero, zero, zero, zero, acts)
    dense = Loss(zero, zero, zero, zero, acts.to_dense())
    assert torch.equal(sparse.fired(), dense.fired())
    assert sparse.l0() == dense.l0() == acts.nnz / 20
    assert Coefficients().auxk == 1 / 32
