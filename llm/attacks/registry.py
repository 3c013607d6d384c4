"""The table of attacks on language models: lazy strings only, so that listing them loads none."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...base.config import from_mapping
from ...base.errors import UnknownName

if TYPE_CHECKING:
    from .protocol import Attack


@dataclass(frozen=True)
class AttackRow:
    """One attack: where its code is, what it has to know, where it comes from."""

    name: str
    level: str
    """See `protocol.Level`."""
    config: str
    """`module:Class` of its frozen dataclass of settings."""
    attack: str
    """`module:Class` of the attack, made of its settings."""
    paper: str
    aimed: bool = True
    """Whether it is judged question by question and told which option to bring up, so that it can be aimed at a decoy as control."""

    def make(self, settings: Mapping[str, Any] | None = None, seed: int = 0) -> "Attack":
        """The attack with its settings; a dotted key (`training.epochs`) sets a field of a nested config.

        Raises:
            UnknownName: A key that is no setting of this attack.
            InputError: A value of another type or out of range.
        """
        cls = _load(self.config)
        values = dict(settings or {})
        nested = {f.name: f.default_factory for f in fields(cls) if is_dataclass(f.default_factory)}
        for name, inner in nested.items():
            own = {k.removeprefix(f"{name}."): values.pop(k) for k in list(values) if k.startswith(f"{name}.")}
            with_seed = {"seed": seed, **own} if "seed" in {f.name for f in fields(inner)} else own
            values[name] = from_mapping(inner, with_seed, where=f"config of {self.name}.{name}")
        kept = {k: values.pop(k) for k in nested}
        if "seed" in {f.name for f in fields(cls)}:
            values = {"seed": seed, **values}
        config = from_mapping(cls, values, where=f"config of {self.name}")
        return _load(self.attack)(replace(config, **kept))

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return {"name": self.name, "level": self.level, "aimed": self.aimed, "paper": self.paper}


def attacks() -> list[AttackRow]:
    """All rows, the cheap ones first."""
    return list(_TABLE.values())


def attack(name: str) -> AttackRow:
    """The row of `name`.

    Raises:
        UnknownName: Names the nearest.
    """
    if name not in _TABLE:
        raise UnknownName("attack", name, [*_TABLE, "all"], f"There are all, {', '.join(_TABLE)}")
    return _TABLE[name]


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def _row(name: str, level: str, module: str, cls: str, paper: str, *, aimed: bool = True, config: str = "config") -> AttackRow:
    here = __package__
    return AttackRow(name, level, f"{here}.{config}:{cls}Config", f"{here}.{module}:{cls}", paper, aimed)


_OWN = "none: what any user may try"
_TABLE = {
    r.name: r
    for r in (
        _row("paraphrase", "L0", "prompts", "Paraphrase", _OWN),
        _row("prefix", "L0", "prompts", "Prefix", _OWN),
        _row("in-context", "L0", "prompts", "InContext", "Language Models are Few-Shot Learners (Brown et al., 2020)"),
        _row("translation", "L0", "prompts", "Translation", _OWN),
        _row(
            "quantisation", "L6", "quantisation", "Quantisation",
            "Catastrophic Failure of LLM Unlearning via Quantization (Zhang et al., arXiv:2410.16454)",
        ),
        _row("logit-lens", "L5", "readout", "LogitLens", "interpreting GPT: the logit lens (nostalgebraist, 2020)"),
        _row("probes", "L5", "probing", "Probes", "Designing and Interpreting Probes with Control Tasks (Hewitt & Liang, 2019)"),
        _row(
            "embedding", "L4", "embedding", "Embedding",
            "Soft Prompt Threats: Attacking Safety Alignment and Unlearning in Open-Source LLMs (Schwinn et al., arXiv:2402.09063)",
        ),
        _row(
            "gcg", "L3", "gcg", "Gcg",
            "Universal and Transferable Adversarial Attacks on Aligned Language Models (Zou et al., arXiv:2307.15043)",
        ),
        _row("beast", "L3", "beast", "Beast", "Fast Adversarial Attacks on Language Models In One GPU Minute (arXiv:2402.15570)"),
        _row(
            "relearning", "L6", "relearning", "Relearning",
            "Precise In-Parameter Concept Erasure in Large Language Models (Gur-Arieh et al., arXiv:2505.22586)",
            aimed=False, config="relearning",
        ),
    )
}  # fmt: skip
