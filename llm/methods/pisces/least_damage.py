"""The smallest change of a model that moves some figures as wanted and does least damage, on plain tensors.

A change A of the weights moves item j's figure by <phi_j, A> to first order. What is wanted and what is damage are linear in
those, so the best A is a sum of M^-1 phi_j, where M is the metric that says how large a change is; all that has to be known are
the products K_ij = <phi_i, M^-1 phi_j>, and as many amounts as there are items.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def least_damage(
    K: Float[Tensor, "n n"],
    fall: Float[Tensor, " n"],
    rows: Float[Tensor, "k n"],
    done: Float[Tensor, " k"],
    wanted: float,
) -> Float[Tensor, " n"]:
    """Amounts `alpha`: of all changes A with `fall . e = wanted`, the one with the least `|A|_M^2 + |rows e + done|^2`.

    `e = K alpha` are the changes of the items' figures, `done` is damage that is there already. Float64 throughout: K is close
    to singular where items are alike.

    Raises:
        ValueError: No change moves the figure that is to fall.
    """
    KR, Kf = rows @ K @ rows.T, rows @ (K @ fall)
    # alpha = rows' s + lam fall, with s = -(rows e + done)
    at = torch.linalg.solve(KR + torch.eye(len(KR), dtype=K.dtype), torch.stack([-done, -Kf], 1))
    per_unit = float(fall @ K @ fall + Kf @ at[:, 1])
    if not per_unit > 0:
        raise ValueError("no change moves the figure that is to fall")
    lam = (wanted - float(Kf @ at[:, 0])) / per_unit
    return rows.T @ (at[:, 0] + lam * at[:, 1]) + lam * fall
