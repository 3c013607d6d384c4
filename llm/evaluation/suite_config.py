"""Settings of the suite."""

from dataclasses import dataclass
from typing import Literal

from ...base.errors import InputError


@dataclass(frozen=True)
class SuiteConfig:
    """How much of everything the suite reads."""

    texts: int = 100
    """Neutral and concept texts, at most."""
    max_tokens: int = 128
    """Tokens read of each."""
    continuations: int = 16
    """Continuations written by the base and scored on both; 0: none."""
    written: int = 0
    """Texts of the concept whose beginnings each state continues by itself, to be read by `reader`; 0: none."""
    reader: str = ""
    """Alias, folder or hub id of the model that reads them; empty: the host itself, unedited."""
    draws: int = 3
    """Draws of each random control; claims about them want at least 10. 0: no random control."""
    controls: tuple[Literal["random features", "random directions"], ...] = ("random features", "random directions")
    """Random controls to draw."""
    relearn: tuple[Literal["full", "lora"], ...] = ()
    """Fine-tuning attacks to run on the base and on the edited host."""
    seed: int = 0
    """Of option order, choice of texts, random controls."""

    def __post_init__(self) -> None:
        for name, least in (("texts", 1), ("max_tokens", 2), ("continuations", 0), ("written", 0), ("draws", 0)):
            if getattr(self, name) < least:
                raise InputError(f"suite: {name} must be at least {least}, {getattr(self, name)} found")
        if self.reader and not self.written:
            raise InputError(f"suite: reader={self.reader} has nothing to read; set written, a number of texts, too")
