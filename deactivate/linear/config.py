"""Settings of the linear erasers. Torch-free: the command line builds its help from them."""

from dataclasses import dataclass
from typing import Literal

from ...base.errors import InputError


@dataclass(frozen=True)
class LinearErasure:
    """What all linear erasers of a host share."""

    at: tuple[str, ...] = ()
    """Hook points, or patterns of them (`layers.*.resid_post`). Several are fitted one after another in the order of the forward pass, each on
    states that those before it have scrubbed. Unset: `resid_post` of the middle layer.
    """
    unit: Literal["token", "text"] = "token"
    """What a vector is when fitting: every token that counts, or the mean over a text's. Applied is the eraser to every token."""
    texts: int = 400
    """At most so many texts of each concept, and of all else, are read."""
    max_length: int = 64
    """Tokens read of each (image hosts: their own length)."""
    affine: bool | None = None
    """Keep the mean of the vectors. Unset: yes, but where `fold` meets a layer without a bias, which cannot hold it."""
    fold: bool = False
    """Make the edit permanent: `mlp_in`, `mlp_hidden` and `mlp_out` alone lie at a linear map that can take a projection in."""
    probe: int = 4000
    """At most so many vectors go into the probes of the evidence; 0: no probes."""
    batch: int = 16
    """Texts a forward pass."""
    seed: int = 0
    """Choice of texts and vectors, random starts."""

    def __post_init__(self) -> None:
        for name, least in (("texts", 2), ("max_length", 1), ("probe", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, {getattr(self, name)} found")


@dataclass(frozen=True)
class LeaceErasure(LinearErasure):
    """LEACE: Perfect linear concept erasure in closed form (Belrose et al., NeurIPS 2023)."""

    shrink: bool = False
    """Shrink the covariance towards a multiple of the identity, for few vectors a dimension (on in the authors' code)."""


@dataclass(frozen=True)
class SalErasure(LinearErasure):
    """SAL: Erasure of unaligned attributes from neural representations (Shao et al., TACL 2023); with k unset, mean projection."""

    k: int | None = None
    """How many left singular vectors of Sigma_XZ are removed, largest first. Unset: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self.k)


@dataclass(frozen=True)
class InlpErasure(LinearErasure):
    """INLP: Null It Out (Ravfogel et al., ACL 2020)."""

    rounds: int = 8
    """Classifiers, each of whose row space is removed (authors: 35 for GloVe, 300 for BERT)."""
    kind: Literal["logistic", "svm", "regression"] = "logistic"
    """Of the classifiers."""
    l2: float = 1e-4
    """Their penalty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self.rounds, "rounds")


@dataclass(frozen=True)
class RlaceErasure(LinearErasure):
    """R-LACE: Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022)."""

    k: int | None = None
    """Rank that is removed. Unset: the number of concepts."""
    start: Literal["sal", "random"] = "sal"
    """With `sal` and k unset the game ends before its first round and the edit is SAL's (README). `random`: as the released code."""
    rounds: int = 100
    """Best responses of the predictor, at most."""
    features: int = 0
    """With an SAE at the hook point: only directions in the span of the decoder rows of so many features, those whose mean activation differs most
    between concept and rest in standard deviations, are removed. 0: everywhere.
    """
    compat: Literal["", "official"] = ""
    """`official`: stochastic steps as the released code takes them, from a random start (minutes)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self.k)
        _at_least_one(self.rounds, "rounds")
        if self.features < 0 or (self.features and self.compat):
            raise InputError(f"features must be at least 0, and 0 with compat=official; {self.features} found")


def _at_least_one(value: int | None, name: str = "k") -> None:
    if value is not None and value < 1:
        raise InputError(f"{name} must be at least 1, {value} found")
