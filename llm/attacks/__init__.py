"""Attacks on erased language models: each takes a host, edits and a concept, and says what it got and what it cost."""

from importlib import import_module
from typing import TYPE_CHECKING

from ... import __version__ as _version

if TYPE_CHECKING:
    from .curves import area, half_recovery, leak
    from .protocol import Attack, AttackResult, Cost
    from .registry import attack, attacks
    from .relearning import Relearning, RelearningConfig
    from .suite import run_attacks

__all__ = [
    "Attack",
    "AttackResult",
    "Cost",
    "Relearning",
    "RelearningConfig",
    "area",
    "attack",
    "attacks",
    "half_recovery",
    "leak",
    "run_attacks",
]
__version__ = _version

_HOMES = {
    "Attack": "protocol",
    "AttackResult": "protocol",
    "Cost": "protocol",
    "Relearning": "relearning",
    "RelearningConfig": "relearning",
    "area": "curves",
    "attack": "registry",
    "attacks": "registry",
    "half_recovery": "curves",
    "leak": "curves",
    "run_attacks": "suite",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
