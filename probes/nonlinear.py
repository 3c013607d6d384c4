"""Probes that are not linear: what an eraser of linear information leaves. A one-layer perceptron, and an RBF support vector machine."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..base.errors import InputError, NumericsError
from .scores import check_labels


@dataclass(frozen=True)
class MlpConfig:
    """Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022) measures the leak with one hidden layer of 128 ReLU units."""

    hidden: int = 128
    """Hidden units."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    batch: int = 256
    """Vectors a step."""
    epochs: int = 60
    """Passes over the training vectors, at most."""
    patience: int = 6
    """Passes without a lower loss on the held-out tenth after which the fit ends."""
    seed: int = 0
    """Of the weights, the held-out tenth and the order."""

    def __post_init__(self) -> None:
        for name in ("hidden", "batch", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, {getattr(self, name)} found")
        if not self.lr > 0 or self.weight_decay < 0:
            raise InputError(f"lr must be above 0 and weight_decay at least 0; {self.lr} and {self.weight_decay} found")


@dataclass(frozen=True, eq=False)
class MlpProbe:
    """A perceptron on standardised vectors."""

    net: nn.Module
    shift: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    @torch.no_grad()
    def log_probs(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Log-probabilities of the classes."""
        return self.net((x.to(self.shift) - self.shift) / self.scale).log_softmax(1)

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The class of each vector."""
        return self.log_probs(x).argmax(1)


def fit_mlp(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], config: MlpConfig | None = None) -> MlpProbe:
    """A perceptron at the epoch whose loss on a held-out tenth is the smallest.

    Raises:
        InputError: Labels are not 0 to k - 1, or not one a vector.
        MatchedNothing: One class.
        NumericsError: NaN or infinity.
    """
    config = config or MlpConfig()
    k = check_labels(x, y, "mlp probe")
    x = x.float()
    if not torch.isfinite(x.sum()):
        raise NumericsError("mlp probe: NaN or infinity in the vectors")
    shift, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    rng = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(x), generator=rng).to(x.device)
    held = order[: max(1, len(x) // 10)]
    rest = order[len(held) :] if len(x) > 1 else order
    net = _net(x.shape[1], k, config).to(x.device)
    z = (x - shift) / scale
    _train(net, z[rest], y[rest], z[held], y[held], config, rng)
    return MlpProbe(net.eval(), shift, scale)


def _net(d: int, k: int, config: MlpConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return nn.Sequential(nn.Linear(d, config.hidden), nn.ReLU(), nn.Linear(config.hidden, k))


@torch.enable_grad()
def _train(net: nn.Module, x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, config: MlpConfig, rng: torch.Generator) -> None:
    adam = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    best, kept, waited = float("inf"), copy.deepcopy(net.state_dict()), 0
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x), generator=rng).to(x.device).split(config.batch):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(net(x_held), y_held))
        if loss < best:
            best, kept, waited = loss, copy.deepcopy(net.state_dict()), 0
        else:
            waited += 1
        if waited >= config.patience:
            break
    net.load_state_dict(kept)


@dataclass(frozen=True, eq=False)
class RbfProbe:
    """A support vector machine with Gaussian kernels, by scikit-learn."""

    model: Any

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The class of each vector."""
        return torch.from_numpy(self.model.predict(x.double().cpu().numpy())).to(x.device)


def fit_rbf(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], *, c: float = 1.0) -> RbfProbe:
    """An RBF machine on standardised vectors, gamma 1 / (d Var x) as scikit-learn's `scale`; time grows with n².

    Raises:
        InputError: Labels are not 0 to k - 1, or not one a vector.
        MatchedNothing: One class.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    check_labels(x, y, "rbf probe")
    model = make_pipeline(StandardScaler(), SVC(C=c, kernel="rbf"))
    model.fit(x.double().cpu().numpy(), y.cpu().numpy())
    return RbfProbe(model)
