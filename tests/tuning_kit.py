"""Fine-tuning erasers on tiny hosts: small settings of each, and two concepts that are each other's neighbours."""

from typing import Any

import torch
from planted import MAGIC, MUSIC, PLAIN, planted_sae, questions, sentences
from tiny import tiny_host

from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.erasing import erase
from efface.llm.host import Host

SHARED = {"steps": 2, "batch": 4, "accumulate": 1, "lr": 1e-2}
SETTINGS: dict[str, dict[str, Any]] = {
    "elm": {**SHARED, "layers": [0, 1], "continuations": 2, "continuation_tokens": 3},
    "rmu": {**SHARED, "layer": 1},
    "crisp": {**SHARED, "layers": [0, 1], "n_contrast": 24, "relative": True, "other_model": True},
    "npo": {**SHARED, "rank": 2},
    "graddiff": {**SHARED, "rank": 2},
}


def music() -> Concept:
    """The neighbours of magic as a concept of its own, whose neighbours are magic."""
    return Concept.from_mapping({
        "format": 1, "name": "music", "form": "cloze", "target": sentences(MUSIC), "neighbours": sentences(MAGIC), "general": sentences(PLAIN),
        "questions": questions(MUSIC, PLAIN), "neighbour_questions": questions(MAGIC, PLAIN),
    })  # fmt: skip


def bits(host: Host) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in host.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def made(method: str, host: Host, concepts: Any, **more: Any) -> Edit:
    return erase(method, host, concepts, [planted_sae(tiny_host())] if method == "crisp" else [], **SETTINGS[method] | more)
