"""Settings of Interpret-then-Deactivate. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from ....base.errors import InputError, UnknownName

Form = Literal["scale", "clamp", "replace"]
GateKind = Literal["reconstruction", "energy", "fitted", "always"]
Task = Literal["celebrity", "style", "nudity"]
PAPER: Mapping[str, Any] = {"rule": "topk_minus_union", "keep_error": False, "gate": "reconstruction"}
EFFACE: Mapping[str, Any] = {"rule": "fitted", "keep_error": True, "gate": "fitted"}
"""What «unset» means in each preset."""
RELEASED_STYLE_GAMMA = -6.0
"""Multiplier with which the released code calibrates styles, whatever it generates with."""


@dataclass(frozen=True)
class ItdConfig:
    """How features are chosen, what becomes of them, and which prompts are let through.

    Formulas: Sparse Autoencoder as a Zero-Shot Classifier for Concept Erasing (arXiv:2503.09446), as in the method's README.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    preset: Literal["paper", "efface"] = "paper"
    """`paper`: features by membership in lists of the largest, decoded stream without the SAE's error, one threshold for all
    concepts, 0.99 times the smallest score of a target prompt. `efface`: features to which a regression gives positive weight, error
    kept, the regression as gate with a threshold a concept from held-out prompts.
    """
    compat: Literal["", "official"] = ""
    """`official`: what the released code does otherwise, see `task`; only with `preset=paper`."""
    task: Task = "celebrity"
    """compat=official: which of the released scripts. `celebrity` takes the largest of the tokens in calibration where it compares
    their mean later; `style` calibrates with a multiplier of -6; `nudity` has no threshold, so that nothing is gated.
    """
    rule: Literal["topk_minus_union", "frequency", "contrast", "fitted"] | None = None
    """How features are chosen: see `select_features`; `fitted`: those to which an L1 logistic regression of target against retain
    prompts gives a positive weight (the gate's own, `fitted.py`). Unset: the preset's."""
    k_sel: int = 128
    """topk_minus_union: largest features of a prompt. Released: 128 for celebrities and nudity, 256 for styles."""
    least_target: float = 0.5
    """frequency: least share of target prompts in which a feature is active."""
    most_retain: float = 0.01
    """frequency: share of retain prompts at which a feature is left out."""
    n_contrast: int = 16
    """contrast: features of a concept."""
    n_retain: int = 2000
    """Retain prompts read a concept, by lot from its neighbours and general prompts of `train`; neighbours are read always."""
    form: Form = "scale"
    """What becomes of an active feature: `scale` multiplies it with `value`, `clamp` sets it to `value`, `replace` rewrites the
    prompt: words at which features are active give way to the concept's anchor. No preset takes `replace`, which needs an anchor: ask
    for it. On the miniature it takes out more and keeps more than every multiplier (docs/icons.md).
    """
    value: float = -8.0
    """Multiplier (published: -8; 0 takes out, 1 leaves all as it is), or the value of `clamp`."""
    share: float = 0.1
    """form=replace: of the prompt's largest sum of activations, from which a word carries the concept (chosen on `validation`: benchmarks/itd_share.yaml)."""
    keep_error: bool | None = None
    """Whether what the SAE does not reconstruct stays. Unset: the preset's."""
    gate: GateKind | None = None
    """`reconstruction`: mean squared change of the decoded stream (paper). `energy`: change without the SAE's error, a threshold a
    concept. `fitted`: weights of features from `train`, a bound a concept. `always`: no gate. Unset: the preset's.
    """
    fpr: float = 0.003
    """gate=energy, fitted: share of the general prompts of `validation` that may open a concept's gate."""
    expand_rounds: int = 0
    """Rounds of adversarial expansion: each looks for prompts that bring the concept's own words back past the edit and adds their
    features (`expansion.py`).
    """
    expand_steps: int = 100
    """Steps of the attack in a round. Released: features are added every 100."""
    expand_images: int = 32
    """Pictures of the concept, drawn by the unedited host, that the attack learns from."""
    expand_lr: float = 0.02
    """Of the learned vector."""
    expand_value: float = -4.0
    """Multiplier in force meanwhile (the released loop's)."""
    search: bool = False
    """Choose `value` on `validation`: the mildest of `grid_value` with which the judge no longer sees the concept."""
    grid_value: tuple[float, ...] = (0.0, -1.0, -2.0, -4.0, -8.0, -12.0)
    """Multipliers that the search tries, mildest first."""
    n_search: int = 24
    """Prompts of a concept that the search draws for each value."""
    enough: float = 0.95
    """Share of them that must not show it."""
    batch: int = 64
    """Prompts read at a time."""
    seed: int = 0
    """Choice of retain prompts; noise of the search."""

    def __post_init__(self) -> None:
        for name, known in (("form", Form), ("gate", GateKind), ("task", Task)):
            if (value := getattr(self, name)) is not None and value not in get_args(known):
                raise UnknownName(name, str(value), get_args(known))
        for name in ("k_sel", "n_contrast", "n_retain", "n_search", "batch", "expand_steps", "expand_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, {getattr(self, name)} found")
        if self.expand_rounds < 0:
            raise InputError(f"expand_rounds must be at least 0, {self.expand_rounds} found")
        if not all(math.isfinite(v) for v in (self.value, *self.grid_value)):
            raise InputError(f"value and grid_value must be finite numbers; found {self.value} and {list(self.grid_value)}")
        for name in ("least_target", "most_retain", "enough"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} must lie in (0, 1], {getattr(self, name)} found")
        if not 0 <= self.share <= 1:
            raise InputError(f"share must lie in [0, 1], {self.share} found")
        if not self.expand_lr > 0:
            raise InputError(f"expand_lr must be above 0, {self.expand_lr} found")
        if not 0 <= self.fpr < 1:
            raise InputError(f"fpr must lie in [0, 1), {self.fpr} found")
        if self.search and (not self.grid_value or self.form != "scale"):
            raise InputError("search chooses a multiplier: it needs form=scale and at least one value in grid_value")
        if self.compat and (self.preset != "paper" or self.form != "scale"):
            raise InputError("compat=official is the released code: it goes with preset=paper and form=scale")
        if self.form == "replace" and self.gate_or_default == "reconstruction":
            others = "gate=fitted (preset=efface), gate=energy or gate=always"
            raise InputError(f"form=replace draws another prompt, and has no decoded stream: use {others}")

    def _unset(self, name: str) -> Any:
        own = getattr(self, name)
        return (PAPER if self.preset == "paper" else EFFACE)[name] if own is None else own

    @property
    def rule_or_default(self) -> Literal["topk_minus_union", "frequency", "contrast", "fitted"]:
        """`rule`, or the preset's."""
        return self._unset("rule")

    @property
    def keep_error_or_default(self) -> bool:
        """`keep_error`, or the preset's."""
        return self._unset("keep_error")

    @property
    def gate_or_default(self) -> GateKind:
        """`gate`, or the preset's; the released nudity path has no threshold."""
        return "always" if self.compat and self.task == "nudity" else self._unset("gate")
