"""The mathematics of PISCES on plain tensors (Gur-Arieh et al., arXiv:2505.22586).

Formula numbers are those of the method's README.

Words: d = d_model, m = d_mlp, r = features edited in one layer. Row i of W_out [m d] is the value vector v_i of neuron
    i.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....base.errors import InputError, NumericsError


def select_rows(s: Float[Tensor, "m r"], tau: float) -> Bool[Tensor, "m r"]:
    """S_f: rows with |s_if| > tau max_j |s_jf|, strictly, so tau >= 1 selects none (eq. 4.1)."""
    return s.abs() > tau * s.abs().amax(0)


def scales(s: Float[Tensor, "m r"], per_feature: bool) -> Float[Tensor, " r"]:
    """M: the largest |s| of the layer, shared by its features (eq. 4.1), or each feature's own."""
    own = s.abs().amax(0)
    return own if per_feature or not own.numel() else own.max().expand_as(own)


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """What the edit of one layer for one concept depends on, tau and mu apart."""

    s: Float[Tensor, "m r"]
    """v_i . W_enc_f, without biases or threshold."""
    a: Float[Tensor, "m r"]
    """Encoder activation of row i on feature f."""
    D: Float[Tensor, "r d"]
    """What one unit of a coefficient adds to a row: decoder rows d_f (over the post-norm's gain where `space` is
    gain).
    """
    sigma: Float[Tensor, " r"]
    """-1 suppress_positive, +1 suppress_negative."""
    g: Float[Tensor, " m"]
    """Sign of each row's activation on the concept: -1, 0 (unknown) or +1."""
    per_feature_scale: bool = False
    """M a feature instead of a layer."""
    skip_unknown: bool = False
    """Leave rows with g = 0 alone instead of giving them coefficient 0."""

    def coefficients(self, mu: float) -> Float[Tensor, "m r"]:
        """c_if = sigma_f g_i mu M (eq. 4.2)."""
        return mu * scales(self.s, self.per_feature_scale) * self.sigma * self.g[:, None]

    def rows(self, tau: float) -> Bool[Tensor, "m r"]:
        """Rows to rewrite, by feature."""
        chosen = select_rows(self.s, tau)
        return chosen & (self.g != 0)[:, None] if self.skip_unknown else chosen

    def Q(self, tau: float, mu: float) -> Float[Tensor, "m r"]:
        """Q_if = c_if - a_if on S_f, else 0: the edit is Delta W_out = Q D (eq. 4.4, closed form of the loop 4.3).

        Raises:
            NumericsError: NaN or infinity in the result.
        """
        Q = torch.where(self.rows(tau), self.coefficients(mu) - self.a, self.a.new_zeros(()))
        if not torch.isfinite(Q).all():
            raise NumericsError("the edit has NaN or infinity in it; check the SAE and the value vectors")
        return Q

    def subset(self, columns: Int[Tensor, " k"]) -> "LayerProblem":
        """The problem of fewer features (M changes with them)."""
        return LayerProblem(
            self.s[:, columns], self.a[:, columns], self.D[columns], self.sigma[columns], self.g,
            self.per_feature_scale, self.skip_unknown,
        )  # fmt: skip


class SignCount:
    """Running sum of sign(h_i) over concept positions; the majority sign of each neuron (eq. 4.2).

    Memory is one number a neuron, however many texts are read.
    """

    def __init__(self, m: int) -> None:
        self.sum, self.n = torch.zeros(m, dtype=torch.int64), 0

    def update(self, h: Float[Tensor, "n m"]) -> "SignCount":
        """Adds activations `h` at concept positions."""
        self.sum += h.sign().sum(0, dtype=torch.float64).to(self.sum)
        self.n += len(h)
        return self

    def majority(self) -> Float[Tensor, " m"]:
        """-1, 0 (never active, or a tie) or +1 for each neuron, float64."""
        return self.sum.sign().double()


def divide_gain(D: Float[Tensor, "r d"], gain: Float[Tensor, " d"] | None) -> Float[Tensor, "r d"]:
    """Decoder rows as they must be added before a post-norm whose gain is `gain`.

    `space` gain: edit gamma*v, divide by gamma.

    Raises:
        InputError: The gain is zero somewhere, so that nothing before the norm has that effect after it.
    """
    if gain is None:
        return D
    if (gain == 0).any():
        raise InputError("space=gain: the post-norm's gain is zero in places; use space=raw for this host")
    return D / gain
