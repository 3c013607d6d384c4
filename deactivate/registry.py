"""The table of erasers: lazy strings only, so that listing methods loads none of them.

Erasers of other packages come in by `register`, called by hand or by a module that their package names as an entry point (`PLUGINS`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ..base.errors import InputError, UnknownName

DOMAINS = ("llm", "t2i", "any")
PARTS = ("weights", "adapter", "hook", "projection", "tokens", "module")
NEEDS = ("sae", "gradients", "images", "questions", "neighbours", "tokens")
PLUGINS = "efface.erasers"
"""Group of entry points whose modules call `register` as they are imported; they should load no more than that needs."""
log = logging.getLogger("efface")
_TABLE: dict[str, "Method"] = {}


@dataclass(frozen=True)
class Method:
    """One eraser: what it makes, what it needs, where its code is."""

    name: str
    domain: str
    """Hosts it works on: llm, t2i or any."""
    parts: tuple[str, ...]
    """Kinds of parts of its edits."""
    config: str
    """`module:Class` of its frozen dataclass of settings."""
    fit: str
    """`module:function` of `fit(host, concepts, preserve, config, saes=…) -> Edit`."""
    paper: str
    needs: tuple[str, ...] = ()
    several_concepts: bool = False
    """Takes several concepts in one fit."""

    def load_config(self) -> type[Any]:
        """The class of its settings; imports its module."""
        return _load(self.config)

    def load_fit(self) -> Callable[..., Any]:
        """Its fit function; imports its module."""
        return _load(self.fit)

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "name": self.name,
            "domain": self.domain,
            "parts": list(self.parts),
            "needs": list(self.needs),
            "several_concepts": self.several_concepts,
            "paper": self.paper,
        }


def register(
    *,
    name: str,
    domain: str,
    parts: Sequence[str],
    config: str,
    fit: str,
    paper: str,
    needs: Sequence[str] = (),
    several_concepts: bool = False,
) -> Method:
    """Adds a row.

    Raises:
        InputError: A name taken, or not lower case; no paper; no `module:name`; nothing made.
        UnknownName: An unknown domain, part or need.
    """
    if name in _TABLE:
        raise InputError(f"method {name!r} is registered already ({_TABLE[name].fit})")
    if not name or name != name.lower() or not name.replace("-", "").isalnum():
        raise InputError(f"method name {name!r}: lower-case letters, digits and hyphens only")
    if not paper.strip():
        raise InputError(f"method {name!r}: paper is missing; name title, authors and year")
    for field, text in (("config", config), ("fit", fit)):
        if text.count(":") != 1 or not all(text.split(":")):
            raise InputError(f"method {name!r}: {field} must be module:name; found {text!r}")
    if not parts:
        raise InputError(f"method {name!r}: parts must name at least one of {', '.join(PARTS)}")
    for kind, given, known in (("domain", [domain], DOMAINS), ("part", parts, PARTS), ("need", needs, NEEDS)):
        for value in given:
            if value not in known:
                raise UnknownName(f"{kind} of method {name}", value, known)
    _TABLE[name] = Method(name, domain, tuple(parts), config, fit, paper, tuple(needs), several_concepts)
    return _TABLE[name]


def methods(domain: str | None = None) -> list[Method]:
    """All rows by name, or those that work in a domain; those of installed packages are among them."""
    _discover()
    rows = [_TABLE[n] for n in sorted(_TABLE)]
    return [m for m in rows if domain is None or m.domain in (domain, "any")]


def method(name: str) -> Method:
    """The row of `name`.

    Raises:
        UnknownName: Names the nearest.
    """
    _discover()
    if name not in _TABLE:
        raise UnknownName("method", name, _TABLE, "`efface methods` lists them")
    return _TABLE[name]


@cache
def _discover() -> None:
    """Imports the modules that installed packages name as entry points, once; one that cannot be imported is reported and left out."""
    for point in entry_points(group=PLUGINS):
        try:
            point.load()
        except Exception as e:  # another package's fault must not stop the commands that do without it
            source = point.dist.name if point.dist else point.value
            log.warning("erasers of %s are left out: %s cannot be loaded (%s: %s)", source, point.value, type(e).__name__, e)


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


register(
    name="pisces",
    domain="llm",
    parts=["weights"],
    config="efface.llm.methods.pisces.config:PiscesConfig",
    fit="efface.llm.methods.pisces.fit:fit",
    paper="Precise In-Parameter Concept Erasure in Large Language Models (Gur-Arieh et al., EMNLP 2025)",
    needs=["sae"],
    several_concepts=True,
)
register(
    name="itd",
    domain="t2i",
    parts=["hook", "tokens"],
    config="efface.t2i.methods.itd.config:ItdConfig",
    fit="efface.t2i.methods.itd.fit:fit",
    paper="Sparse Autoencoder as a Zero-Shot Classifier for Concept Erasing in Text-to-Image Diffusion Models (arXiv:2503.09446, 2025)",
    needs=["sae"],
    several_concepts=True,
)
register(
    name="saeuron",
    domain="t2i",
    parts=["hook"],
    config="efface.t2i.methods.saeuron.config:SAeUronConfig",
    fit="efface.t2i.methods.saeuron.fit:fit",
    paper="SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders (Cywiński & Deja, ICML 2025)",
    needs=["sae"],
    several_concepts=True,
)
register(
    name="elm",
    domain="llm",
    parts=["weights"],
    config="efface.llm.methods.elm.config:ElmConfig",
    fit="efface.llm.methods.elm.fit:fit",
    paper="Erasing Conceptual Knowledge from Language Models (Gandikota et al., arXiv:2410.02760, 2025)",
    needs=["gradients", "neighbours"],
    several_concepts=True,
)
register(
    name="rmu",
    domain="llm",
    parts=["weights"],
    config="efface.llm.methods.rmu.config:RmuConfig",
    fit="efface.llm.methods.rmu.fit:fit",
    paper="The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning (Li et al., ICML 2024)",
    needs=["gradients"],
    several_concepts=True,
)
register(
    name="crisp",
    domain="llm",
    parts=["weights"],
    config="efface.llm.methods.crisp.config:CrispConfig",
    fit="efface.llm.methods.crisp.fit:fit",
    paper="CRISP: Persistent Concept Unlearning via Sparse Autoencoders (Ashuach et al., arXiv:2508.13650, 2025)",
    needs=["sae", "gradients", "neighbours"],
    several_concepts=True,
)
register(
    name="npo",
    domain="llm",
    parts=["weights"],
    config="efface.llm.methods.npo.config:NpoConfig",
    fit="efface.llm.methods.npo.fit:fit",
    paper="Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning (Zhang et al., COLM 2024)",
    needs=["gradients", "neighbours"],
    several_concepts=True,
)
register(
    name="graddiff",
    domain="llm",
    parts=["weights"],
    config="efface.llm.methods.graddiff.config:GradDiffConfig",
    fit="efface.llm.methods.graddiff.fit:fit",
    paper="Continual Learning and Private Unlearning (Liu et al., CoLLAs 2022); TOFU (Maini et al., COLM 2024)",
    needs=["gradients", "neighbours"],
    several_concepts=True,
)
for _name, _class, _paper in (
    ("leace", "LeaceErasure", "LEACE: Perfect linear concept erasure in closed form (Belrose et al., NeurIPS 2023)"),
    ("sal", "SalErasure", "Erasure of Unaligned Attributes from Neural Representations (Shao et al., TACL 2023)"),
    ("inlp", "InlpErasure", "Null It Out: Guarding Protected Attributes by Iterative Nullspace Projection (Ravfogel et al., ACL 2020)"),
    ("rlace", "RlaceErasure", "Linear Adversarial Concept Erasure (Ravfogel et al., ICML 2022)"),
):
    register(
        name=_name,
        domain="any",
        parts=["projection", "weights"],
        config=f"efface.deactivate.linear.config:{_class}",
        fit="efface.deactivate.linear.fit:fit",
        paper=_paper,
        several_concepts=True,
    )
