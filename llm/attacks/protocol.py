"""What an attack is: something that takes a host, the edits on it and a concept, and gives success and cost. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ...base.errors import InputError
from ...deactivate.evaluation.value import Value

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ..host import Host

Level = Literal["L0", "L1", "L2", "L3", "L4", "L5", "L6"]
"""What the attacker has: a fixed prompt (L0), answers (L1), the reading side alone (L2), the weights and prompts of tokens
(L3), of embeddings (L4), of states (L5), or may train (L6)."""


@dataclass(frozen=True)
class Cost:
    """What an attack spent, all variants together."""

    queries: int = 0
    """Prompts answered or scored in search of the attack; measuring success is not counted."""
    gradient_steps: int = 0
    """Backward passes."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Wall time, measuring included."""

    def __post_init__(self) -> None:
        for name in ("queries", "gradient_steps", "tokens", "seconds"):
            if getattr(self, name) < 0:
                raise InputError(f"cost: {name} must not be negative, {getattr(self, name)} found")


@dataclass(frozen=True)
class AttackResult:
    """What came of an attack on one state of a host; the same attack on the unedited host is its control."""

    attack: str
    level: Level
    before: Value
    """Success without the attack."""
    success: Value
    """Success with it: the share of the concept's items that come out right, of the strongest variant; where the attacker
    takes the best variant question by question, of all of them together."""
    cost: Cost
    found: Mapping[str, Any] = field(default_factory=dict)
    """What was found: a prompt, settings of the strongest variant, curves. Plain values."""
    recovered: tuple[bool | None, ...] = ()
    """By question: wrong without the attack and right with it. None: the attack did not try it."""

    @property
    def gain(self) -> float:
        """What the attack adds, over what there was to add: (success - before) / (1 - before); 0 where nothing was left."""
        room = 1.0 - self.before.mean
        return (self.success.mean - self.before.mean) / room if room > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "gain": self.gain}


@runtime_checkable
class Attack(Protocol):
    """One attack with its settings."""

    @property
    def name(self) -> str:
        """What it is called on the command line and in tables."""
        ...

    @property
    def level(self) -> Level:
        """What it needs to know of the model."""
        ...

    def run(self, host: "Host", edits: "Sequence[Edit]", concept: "Concept", split: str = "test") -> AttackResult:
        """Attacks the host with all `edits` in force (none: the control), and leaves it as it was.

        A gate of an edit is inside what is attacked.

        Raises:
            InputError: The concept lacks what the attack needs.
        """
        ...
