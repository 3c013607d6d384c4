"""Settings of PISCES. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ....base.errors import InputError

Direction = Literal["suppress_positive", "suppress_negative"]
"""Which end of a feature's direction shows the concept, and is pushed away from."""


@dataclass(frozen=True)
class FeatureRef:
    """One feature to edit: layer, index in that layer's SAE, and the end at which the concept sits."""

    layer: int
    id: int
    direction: Direction = "suppress_positive"

    @property
    def sigma(self) -> int:
        """Sign of the new coefficient (pisces.md 4.2): -1 pushes the positive end down, +1 the negative end up."""
        return -1 if self.direction == "suppress_positive" else 1

    @classmethod
    def parse(cls, text: str) -> "FeatureRef":
        """`layer:id` or `layer:id:+` (the concept at the positive end), `layer:id:-` (at the negative end).

        Raises:
            InputError: Any other spelling.
        """
        layer, _, rest = text.partition(":")
        number, _, sign = rest.partition(":")
        if not (layer.isdigit() and number.isdigit() and sign in ("", "+", "-")):
            raise InputError(f"features: {text!r} is not layer:id:+ or layer:id:- (as in 20:11104:+)")
        return cls(int(layer), int(number), "suppress_negative" if sign == "-" else "suppress_positive")

    def __str__(self) -> str:
        return f"{self.layer}:{self.id}:{'+' if self.direction == 'suppress_positive' else '-'}"


def linscale(mu: float, layer: int, full_at: int = 9) -> float:
    """The strength at a layer: 0.1 mu at layer 0, rising linearly to mu at layer 9 and beyond (eq. 4.2, «linscale»)."""
    return mu * (0.1 + 0.9 * layer / full_at) if layer < full_at else mu


EFFACE: Mapping[str, Any] = {
    "n_features": 400,
    "effect_rounds": 4,
    "effect_auroc": 0.55,
    "grid_mu": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3),
    "min_kept": 0.945,
    "min_coherence": 0.992,
    "n_probe": 120,
    "n_effect_texts": 80,
}
"""Preset `efface`: a few hundred features, coefficients solved for; chosen on `validation` of three concepts on SmolLM2-135M."""


@dataclass(frozen=True)
class PiscesConfig:
    """How PISCES finds features and rewrites value vectors.

    Formulas: Gur-Arieh et al., arXiv:2505.22586, as in the method's README.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"efface": EFFACE}
    """What a preset sets besides, where a config is made of named values (command line, `erase`)."""

    preset: Literal["paper", "efface"] = "paper"
    """`paper`: one scale M a layer, rows of unknown sign get coefficient 0, `space` raw. `efface`: each feature its
    own scale, rows of unknown sign are left alone, `space` by the SAE's hook point, features chosen and coefficients
    solved by effect; on the command line also other numbers (its README lists them).
    """
    tau: float = 0.4
    """Share of the largest |v_i . W_enc_f| that a row must exceed to be rewritten, 0 to 1; 1 or more selects none.
    The authors' example: 0.4.
    """
    mu: float | None = None
    """Strength: the new coefficient in units of M, >= 0; smaller without a post-norm. Unset: 10 (authors' grid: 4 to 50).
    selection=effect: the factor on the changes solved for. Unset: 1, as they are.
    """
    signed: bool = True
    """Multiply the coefficient of row i by the majority sign of its activation h_i on the concept (the authors'
    better variant).
    """
    linscale: bool | None = None
    """Scale mu from 0.1 to 1 over layers 0 to 9 (authors: Gemma only). Unset: on for hosts with a post-norm."""
    space: Literal["raw", "gain", "auto"] | None = None
    """Post-norm hosts: `raw` compares value vectors as they are (paper), `gain` after multiplication with the
    post-norm's gain, `auto` gain only for SAEs trained after the norm. Unset: the preset's.
    """
    selection: Literal["detect", "effect"] | None = None
    """How features are found: `detect` ranks those that tell the concept's texts from others (paper, with filters),
    and tau and mu say what becomes of their coefficients; `effect` takes, of those that fire on the concept's texts,
    the ones through which the margin falls with the least damage, to first order, and solves for every row's
    coefficient (needs questions of the concept and of its neighbours). Unset: the preset's.
    """
    features: tuple[str, ...] = ()
    """Features to edit as layer:id:+ or layer:id:-, where they are known (all of them; selection=effect finds the end
    by itself). Empty: found from the concept."""
    n_features: int = 8
    """How many features to edit, best first, over all layers. Authors: 4 to 11."""
    topk: int = 30
    """How many promoted and suppressed tokens of a feature are searched for the concept's tokens."""
    minmatch: int = 1
    """How many of the concept's tokens must be among them."""
    min_rho: float = 2.0
    """Least ratio of a feature's activation per token on the concept to that on neighbours and on general text
    (CRISP: 2 to 3).
    """
    n_contrast: int = 100
    """How many features the activation contrast nominates a layer."""
    min_auroc: float = 0.6
    """Least AUROC, target against neighbours and general texts on `validation`, of a feature to be edited."""
    texts: int = 200
    """At most so many texts of each pool (target, neighbours, general) and split are read."""
    other_model: bool = False
    """Accept SAEs trained on another model, as the authors use a base model's on its instruction-tuned version."""
    filters: bool = True
    """Drop features whose edit alone, at probe_tau and probe_mu, raises the concept's tokens or harms neighbours or
    neutral text.
    """
    probe_tau: float = 0.9
    """Row threshold of the filters' trial edits (the authors')."""
    probe_mu: float = 16.0
    """Strength of the filters' trial edits (the authors', for both of their models)."""
    max_neighbour_harm: float = 0.02
    """Filter a: largest fall of the mean probability of the neighbours' tokens."""
    max_text_harm: float = 0.02
    """Filter c: largest relative rise of bits per byte on neutral text."""
    n_probe: int = 16
    """Texts that the filters read."""
    effect_rounds: int = 2
    """selection=effect: how often effects are read, each time on the host as changed so far; each round takes an equal
    part of n_features (one that it has taken before may be among them)."""
    effect_auroc: float = 0.0
    """selection=effect: least AUROC on `validation` of a candidate; 0: all that fire on the concept's texts."""
    n_effect: int = 400
    """selection=effect: at most so many questions of the concept, and of its neighbours, are read."""
    effect_fall: float = 0.5
    """selection=effect: share of the margin that each round asks for, to first order; about half of it comes."""
    n_effect_texts: int = 160
    """selection=effect: neutral texts read."""
    search: bool = False
    """Choose tau and mu (and n_features, if `grid_n` is given) on `validation`."""
    grid_mu: tuple[float, ...] = (1.0, 2.0, 4.0, 7.0, 10.0, 13.0, 18.0, 24.0, 36.0, 50.0)
    """Strengths that the search tries."""
    grid_tau: tuple[float, ...] = (0.95, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2)
    """Row thresholds that the search tries."""
    grid_n: tuple[int, ...] = ()
    """Feature counts that the search tries; empty: `n_features` alone."""
    weak: float = 0.2
    """Search: a cell whose fall of the concept's margin is smaller is too weak, and so are all weaker cells."""
    min_kept: float = 0.7
    """Search: a cell that keeps less of the neighbours' margin is too strong, and so are all stronger cells; it is chosen
    only where every cell is."""
    min_coherence: float = 0.9
    """Search: the same for base bits per byte over edited, on neutral text."""
    seed: int = 0
    """Order of the search and choice of texts."""

    def __post_init__(self) -> None:
        for name in ("tau", "mu_or_default", "probe_tau", "probe_mu"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name.removesuffix('_or_default')} must be a number >= 0, {getattr(self, name)} found")
        for name in ("n_features", "topk", "minmatch", "texts", "n_probe", "n_contrast", "n_effect", "n_effect_texts", "effect_rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, {getattr(self, name)} found")
        if not 0 < self.effect_fall <= 1:
            raise InputError(f"effect_fall must be above 0 and at most 1, {self.effect_fall} found")
        if self.search and not (self.grid_mu and self.grid_tau):
            raise InputError("search needs at least one value in grid_mu and in grid_tau")
        if any(n < 1 for n in self.grid_n):
            raise InputError(f"grid_n must hold counts of at least 1, {self.grid_n} found")
        self.refs  # noqa: B018  (parsing is the check)

    @property
    def refs(self) -> tuple[FeatureRef, ...]:
        """`features`, parsed."""
        return tuple(FeatureRef.parse(f) for f in self.features)

    @property
    def per_feature_scale(self) -> bool:
        """Whether each feature has its own M."""
        return self.preset == "efface"

    def mu_at(self, layer: int, mu: float, post_norm: bool) -> float:
        """The mu of a layer: scaled by `linscale` where that applies."""
        scaled = post_norm if self.linscale is None else self.linscale
        return linscale(mu, layer) if scaled else mu

    @property
    def mu_or_default(self) -> float:
        """`mu`, or what the selection starts from."""
        return (1.0 if self.selection_or_default == "effect" else 10.0) if self.mu is None else self.mu

    @property
    def selection_or_default(self) -> Literal["detect", "effect"]:
        """`selection`, or the preset's."""
        return self.selection or ("detect" if self.preset == "paper" else "effect")

    @property
    def space_or_default(self) -> Literal["raw", "gain", "auto"]:
        """`space`, or the preset's."""
        return self.space or ("raw" if self.preset == "paper" else "auto")
