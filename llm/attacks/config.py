"""Settings of the attacks on language models, one frozen dataclass each. Torch-free."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...base.errors import InputError


def _at_least(name: str, config: object, **least: int) -> None:
    for field, low in least.items():
        if getattr(config, field) < low:
            raise InputError(f"{name}: {field} must be at least {low}, {getattr(config, field)} found")


@dataclass(frozen=True)
class ParaphraseConfig:
    """Other ways to put the same question."""

    synonyms: bool = True
    """Whether names among the concept's synonyms stand for each other, too."""
    options: bool = True
    """Whether one variant lists the options before it asks."""
    seed: int = 0
    """Order of the options listed."""


@dataclass(frozen=True)
class PrefixConfig:
    """What stands before the question, or opens the answer."""

    texts: tuple[str, ...] = ()
    """Further prefixes; `{concept}` stands for its name."""


@dataclass(frozen=True)
class InContextConfig:
    """Right answers to other questions before the one asked."""

    shots: tuple[int, ...] = (1, 4, 8)
    """How many, one variant each."""
    seed: int = 0
    """Which."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1:
            raise InputError(f"in-context: shots must be numbers of at least 1, {self.shots} found")


@dataclass(frozen=True)
class TranslationConfig:
    """Question and options in another language, word by word."""

    words: str = ""
    """YAML or JSON file, word: word; unset: the second language of the synthetic world, for its concepts."""


@dataclass(frozen=True)
class QuantisationConfig:
    """Round trips of the weights through coarse grids."""

    bits: tuple[int, ...] = (8, 4)
    """Bits of a weight, one variant each; 2 to 16."""
    group: int = 0
    """Weights of an output channel that share a scale; 0: all of them."""

    def __post_init__(self) -> None:
        if not self.bits or min(self.bits) < 2 or max(self.bits) > 16:
            raise InputError(f"quantisation: bits must lie between 2 and 16, {self.bits} found")
        _at_least("quantisation", self, group=0)


@dataclass(frozen=True)
class LogitLensConfig:
    """The unembedding on what stands between layers."""

    layers: tuple[int, ...] = ()
    """Layers behind which it reads; empty: all."""


@dataclass(frozen=True)
class ProbesConfig:
    """Probes that tell right answers from wrong ones by hidden states."""

    kinds: tuple[Literal["linear", "mlp"], ...] = ("linear", "mlp")
    """Logistic regression, or a perceptron with one hidden layer."""
    layers: tuple[int, ...] = ()
    """Layers behind which it reads; empty: all."""
    hidden: int = 64
    """Width of the perceptron."""
    steps: int = 200
    """Adam steps on all training items at once."""
    lr: float = 1e-2
    """Adam's rate."""
    weight_decay: float = 1e-1
    """Decoupled weight decay."""
    seed: int = 0
    """Initial weights, and which training questions choose the layer."""

    def __post_init__(self) -> None:
        _at_least("probes", self, hidden=1, steps=1)
        if not self.kinds:
            raise InputError("probes: kinds must name linear, mlp or both")


@dataclass(frozen=True)
class EmbeddingConfig:
    """A suffix of free embeddings. The embedding attack of Schwinn et al. (arXiv:2402.09063)."""

    length: int = 20
    """Vectors of the suffix."""
    steps: int = 40
    """Adam steps; 0: no attack."""
    lr: float = 1e-2
    """Adam's rate, in multiples of the root mean square of an embedding's entries."""
    loss: Literal["target", "margin"] = "target"
    """Minus the answer's mean log-probability, or that minus the log-sum of the other options'."""
    questions: int = 5
    """Questions attacked, at most, drawn by lot; 0: all."""
    gate: Literal["aware", "oblivious"] = "aware"
    """Whether the attacker of a gated edit pushes the gate's score below its threshold."""
    lam: float = 1.0
    """Weight of the gate's score in the loss."""
    margin: float = 0.1
    """How far below the threshold the score is pushed, in the gate's units."""
    points: int = 4
    """Points of the budget curve."""
    seed: int = 0
    """First suffix, choice of questions."""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"steps": 100, "questions": 0}}
    preset: Literal["small", "paper"] = "small"
    """small (a lower bound on small machines), or paper."""

    def __post_init__(self) -> None:
        _checked("embedding", self)


@dataclass(frozen=True)
class GcgConfig:
    """Greedy coordinate gradient, Universal and Transferable Adversarial Attacks (Zou et al., arXiv:2307.15043), Alg. 1."""

    length: int = 20
    """Tokens of the suffix."""
    steps: int = 20
    """Steps; 0: no attack."""
    width: int = 32
    """Candidates a step (the paper's B)."""
    top_k: int = 64
    """Substitutions considered a position."""
    loss: Literal["target", "margin"] = "target"
    """Minus the answer's mean log-probability, or that minus the log-sum of the other options'."""
    questions: int = 5
    """Questions attacked, at most, drawn by lot; 0: all."""
    gate: Literal["aware", "oblivious"] = "aware"
    """Whether the attacker of a gated edit pushes the gate's score below its threshold."""
    lam: float = 1.0
    """Weight of the gate's score in the loss."""
    margin: float = 0.1
    """How far below the threshold the score is pushed, in the gate's units."""
    points: int = 4
    """Points of the budget curve, and random suffixes of equal length tried beside."""
    seed: int = 0
    """First suffix, candidates, choice of questions."""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"steps": 250, "width": 512, "top_k": 256, "questions": 0}}
    preset: Literal["small", "paper"] = "small"
    """small (a lower bound on small machines), or paper (the defaults of nanoGCG)."""

    def __post_init__(self) -> None:
        _checked("gcg", self)
        _at_least("gcg", self, width=1, top_k=1)


@dataclass(frozen=True)
class BeastConfig:
    """Beam search over sampled suffixes, Fast Adversarial Attacks on Language Models In One GPU Minute (Sadasivan et al., arXiv:2402.15570), Alg. 1."""

    length: int = 10
    """Tokens of the suffix; 0: no attack."""
    beams: int = 5
    """Suffixes kept (the paper's k1)."""
    width: int = 5
    """Next tokens drawn for each (k2)."""
    loss: Literal["target", "margin"] = "target"
    """Minus the answer's mean log-probability, or that minus the log-sum of the other options'."""
    questions: int = 5
    """Questions attacked, at most, drawn by lot; 0: all."""
    gate: Literal["aware", "oblivious"] = "aware"
    """Whether the attacker of a gated edit pushes the gate's score below its threshold."""
    lam: float = 1.0
    """Weight of the gate's score in the loss."""
    margin: float = 0.1
    """How far below the threshold the score is pushed, in the gate's units."""
    points: int = 4
    """Points of the budget curve, and random suffixes of equal length tried beside."""
    seed: int = 0
    """Samples, choice of questions."""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"length": 40, "beams": 15, "width": 15, "questions": 0}}
    preset: Literal["small", "paper"] = "small"
    """small (a lower bound on small machines), or paper."""

    def __post_init__(self) -> None:
        _checked("beast", self)
        _at_least("beast", self, beams=1, width=1)


SearchConfig = EmbeddingConfig | GcgConfig | BeastConfig


def full_budget(config: SearchConfig) -> bool:
    """Whether it searches every question, and at least as long as was published; elsewhere its rate is a lower bound of the attack's."""
    published = {k: v for k, v in config.PRESETS["paper"].items() if k != "questions"}
    return not config.questions and all(getattr(config, k) >= v for k, v in published.items())


def _checked(name: str, config: SearchConfig) -> None:
    if config.preset not in ("small", "paper"):
        raise InputError(f"{name}: preset must be small or paper, {config.preset!r} found")
    _at_least(name, config, length=0 if name == "beast" else 1, questions=0, points=1)
    if hasattr(config, "steps"):
        _at_least(name, config, steps=0)
    if not config.lam >= 0:
        raise InputError(f"{name}: lam must not be negative, {config.lam} found")
