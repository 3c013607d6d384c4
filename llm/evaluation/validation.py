"""What a setting does to a concept and to the rest on `validation`: what searches and trials choose by."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ...base.errors import InputError
from ...deactivate.evaluation.statistics import harmonic_mean
from ..pools import general_texts
from .metrics import fall, kept
from .scoring import score_questions
from .texts import cut_text, text_figures

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ..host import Host


@runtime_checkable
class Probing(Protocol):
    """The settings that say what is read."""

    @property
    def n_probe(self) -> int:
        """Neutral texts."""
        ...

    @property
    def seed(self) -> int:
        """Of their choice."""
        ...


@dataclass(frozen=True)
class Seen:
    """What one state of a host does, each a share in [0, 1]."""

    fall: float
    """Of the concept's margin: what is gone."""
    kept: float
    """Of the neighbours' margin: what is left."""
    coherence: float
    """Base bits per byte over edited on neutral text, at most 1."""
    objective: float
    """Harmonic mean of the three."""


class Validation:
    """Fall of the concept's margin, neighbours' margin kept, base bits per byte over edited; all on `validation`.

    Raises:
        InputError: Questions are missing, or the unedited host's margin is not above 0, so that nothing can fall.
    """

    def __init__(self, host: "Host", concept: "Concept", config: Probing, max_tokens: int = 48) -> None:
        self.host, self.form = host, concept.form
        self.questions = concept.require("questions", "validation")
        self.near = concept.require("neighbour_questions", "validation")
        texts = general_texts(concept, "validation", config.n_probe, config.seed)
        self.texts = [cut_text(host, t, max_tokens) for t in texts]
        self.base = self.margins()
        for name, margins in zip(("questions", "neighbour_questions"), self.base[:2], strict=True):
            if sum(margins) <= 0:
                raise InputError(
                    f"search: {host.name} has no positive margin on {name}.validation of {concept.name!r}; nothing can be told from it"
                )

    def margins(self) -> tuple[list[float], list[float], float]:
        """Margins on the concept's and the neighbours' questions, and bits per byte, of the host as it stands."""
        own = score_questions(self.host, self.questions, self.form).margins
        near = score_questions(self.host, self.near, self.form).margins
        return own, near, text_figures(self.host, self.texts).bits_per_byte

    def seen(self) -> Seen:
        """The host as it stands, against the base."""
        own, near, bpb = self.margins()
        parts = fall(own, self.base[0]) or 0.0, kept(near, self.base[1]) or 0.0, min(1.0, self.base[2] / bpb)
        return Seen(*parts, harmonic_mean(parts))
