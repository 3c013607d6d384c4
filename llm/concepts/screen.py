"""Scores cloze items on a host and keeps those it answers. A file of scores makes a second run cost nothing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.errors import ArtefactError, NumericsError
from ...base.files import digest, write_text
from ...deactivate.evaluation.statistics import tie_credit
from .parsing import Item

if TYPE_CHECKING:
    from ..host import Host

SCREENING = "Q: A week has seven what?\nA: days\nQ: {q} what?\nA:"
"""What stands before « option» in screening; another template than the scored one. Without the example SmolLM2 answers
fewer than half of the items that it completes rightly."""
CHUNK = 256
"""Items scored between two writes of the cache."""


class ScoreCache:
    """Mean log-probabilities by (host digest, prompt, continuation), in one JSON file.

    Args:
        path: The file; None keeps scores in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.scores: dict[str, float] = {}
        if path is not None and path.is_file():
            try:
                self.scores = json.loads(path.read_text())
            except json.JSONDecodeError as e:
                raise ArtefactError(f"{path} is not a whole file of scores ({e}); remove it") from None

    def means(self, host: "Host", prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """Mean log-probability of the tokens of each continuation after its prompt.

        Raises:
            NumericsError: A score is NaN (from the host) or was stored as one.
        """
        host_digest = host.digest
        keys = [digest([host_digest, p, c])[:24] for p, c in zip(prompts, continuations, strict=True)]
        todo = [i for i, k in enumerate(keys) if k not in self.scores]
        if todo:
            found = host.token_logprobs([prompts[i] for i in todo], [continuations[i] for i in todo])
            self.scores |= {keys[i]: float(x.double().mean()) for i, x in zip(todo, found, strict=True)}
            if self.path is not None:
                write_text(self.path, json.dumps(self.scores))
        means = [self.scores[k] for k in keys]
        if any(m != m for m in means):
            raise NumericsError(f"{host.name}: a score is not a number")
        return means


def credits(host: "Host", items: Sequence[Item], template: str, cache: ScoreCache) -> list[float]:
    """Credit of the host for each item: 1 where the answer scores best alone, 1/k in a tie of k, else 0.

    `template` is what stands before the option, with `{q}` in it; one space goes between.
    """
    result: list[float] = []
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        pairs = [(template.format(q=i.q), f" {o}") for i in chunk for o in i.options]
        means = cache.means(host, [p for p, _ in pairs], [c for _, c in pairs])
        at = 0
        for item in chunk:
            result.append(tie_credit(means[at : at + len(item.options)], 0))
            at += len(item.options)
    return result


def screened(hosts: Sequence["Host"], items: Sequence[Item], cache: ScoreCache) -> list[Item]:
    """The items that every host answers rightly, without a tie, under `SCREENING`."""
    kept = list(items)
    for host in hosts:
        right = credits(host, kept, SCREENING, cache)
        kept = [i for i, r in zip(kept, right, strict=True) if r == 1]
    return kept
