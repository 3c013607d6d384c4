"""How well an SAE reconstructs, on inference weights: global sums in float64, never a mean of batch means."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import InputError, MatchedNothing, NumericsError
from .sae import SAE

Pair = Tensor | tuple[Tensor, Tensor]


class Evaluation:
    """Running sums over batches of input, target, reconstruction and active latents."""

    def __init__(self, d_sae: int) -> None:
        self.n = self.active = 0
        self.fired = torch.zeros(d_sae, dtype=torch.int64)
        self.shift: Tensor | None = None
        self.sum_y, self.sum_squares, self.error = torch.zeros(0, dtype=torch.float64), 0.0, 0.0
        self.cosine = self.ratio = self.norm_out = self.inner = 0.0

    def update(self, target: Float[Tensor, "n d_out"], out: Float[Tensor, "n d_out"], fired: Tensor) -> "Evaluation":
        """Adds one batch.

        Args:
            target: What was to be reconstructed.
            out: The reconstruction.
            fired: How many vectors each latent was active in, `[d_sae]`.

        Raises:
            NumericsError: NaN or infinity in either.
        """
        y, out = target.detach().double().cpu(), out.detach().double().cpu()
        if not (y.isfinite().all() and out.isfinite().all()):
            raise NumericsError("NaN or infinity in the activations or in their reconstruction")
        if self.shift is None:
            self.shift, self.sum_y = y.mean(0), torch.zeros(y.shape[1], dtype=torch.float64)
        centred = y - self.shift  # a shift near the mean keeps the difference of squares exact
        self.sum_y += centred.sum(0)
        self.sum_squares += float(centred.pow(2).sum())
        self.error += float((y - out).pow(2).sum())
        norm, norm_out, inner = y.norm(dim=1), out.norm(dim=1), (y * out).sum(1)
        self.cosine += float((inner / (norm * norm_out).clamp_min(1e-300)).sum())
        self.ratio += float((norm_out / norm.clamp_min(1e-300)).sum())
        self.norm_out += float(norm_out.pow(2).sum())
        self.inner += float(inner.sum())
        self.fired += fired.cpu()
        self.active += int(fired.sum())
        self.n += len(y)
        return self

    def result(self) -> dict[str, float | int]:
        """The metrics; see `evaluate`.

        Raises:
            MatchedNothing: No vectors were given.
            InputError: The targets do not vary: a fraction of their variance means nothing.
        """
        if not self.n:
            raise MatchedNothing("evaluate needs at least one vector")
        total = self.sum_squares - float(self.sum_y.pow(2).sum()) / self.n
        if total <= 0:
            raise InputError(f"the {self.n} targets are all alike; evaluate on vectors that differ")
        frequency = self.fired.double() / self.n
        return {
            "l0": self.active / self.n,
            "fvu": self.error / total,
            "cosine": self.cosine / self.n,
            "l2_ratio": self.ratio / self.n,
            "relative_bias": self.norm_out / self.inner if self.inner else 0.0,
            "dead_share": float((self.fired == 0).double().mean()),
            "below_1e-5": float((frequency < 1e-5).double().mean()),
            "dense": int((frequency > 0.1).sum()),
            "n": self.n,
        }


@torch.no_grad()
def evaluate(sae: SAE, batches: Iterable[Pair]) -> dict[str, float | int]:
    """Metrics of an SAE on held-out vectors.

    Args:
        sae: With its inference threshold.
        batches: `[n d_in]` tensors; transcoders: pairs of input and target.

    Returns:
        `l0` (mean active latents), `fvu` (fraction of variance **un**explained:
        `sum |y - y_hat|^2 / sum |y - mean y|^2`), `cosine`, `l2_ratio` (`|y_hat| / |y|`, mean),
        `relative_bias` (`E |y_hat|^2 / E y . y_hat`; 1 is unbiased),
        `dead_share` (latents never active in the `n` vectors), `below_1e-5` (share of latents rarer than that), `dense`
        (latents active in more than a tenth of the vectors), `n`.

    Raises:
        InputError: A transcoder without targets.
        MatchedNothing: No vectors.
        NumericsError: NaN or infinity in a target or reconstruction.
    """
    sums = Evaluation(sae.cfg.d_sae)
    for batch in batches:
        x, y = batch if isinstance(batch, tuple) else (batch, batch)
        if sae.cfg.transcoder and not isinstance(batch, tuple):
            raise InputError("a transcoder is evaluated on pairs of input and target; found a single tensor")
        x = x.to(sae.device)
        acts = sae.encode_sparse(x)
        out = sae.decode(acts, x.reshape(-1, sae.cfg.d_in))
        sums.update(y.reshape(-1, sae.cfg.width_out), out, acts.counts())
    return sums.result()
