"""Labels that the host writes itself, from a feature's strongest contexts, and how likely it finds them elsewhere.

A small host is poor at this: docs/benchmarks.md has the figures. Nothing leaves the machine.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..deactivate.evaluation.auroc import auroc
from ..sae.labels.propose import Proposal
from ..sae.labels.words import EvidenceWords, stems

if TYPE_CHECKING:
    from .host import Host

SHOWN = 4
"""Contexts in a prompt."""
NEW_TOKENS = 12
MOST_WORDS = 5
SCORED = 8
"""Contexts of either kind for which the host's likelihood of a label is computed."""
EXAMPLES = (
    (("and the moon rose over the quiet bay", "a lunar orbit of the small probe", "by the light of the full moon"), "the moon"),
    (("she paid forty dollars for the ticket", "costs about $3 a pound at the market", "a price of 200 euros or"), "prices of things"),
    (("because the bridge was closed", "since nobody had come by then", "as a result of the heavy rain"), "giving a reason"),
)


def write_labels(host: "Host", words: EvidenceWords, features: Sequence[int]) -> dict[int, Proposal]:
    """Greedy answers of the host to a few-shot prompt with each feature's strongest contexts, cleaned.

    A feature without contexts, or whose answer holds no word, is left out.
    """
    prompts = {f: p for f in features if (p := _prompt(words, f)) is not None}
    if not prompts:
        return {}
    answers = host.generate(list(prompts.values()), max_new_tokens=NEW_TOKENS, greedy=True, batch_size=8)
    cleaned = {f: cleaned_label(a) for f, a in zip(prompts, answers, strict=True)}
    return {f: Proposal(text, "host", tuple(stems(text))) for f, text in cleaned.items() if text}


def cleaned_label(answer: str) -> str:
    """The first line of an answer without quotes, list marks and closing signs, at most five words; may be empty."""
    line = answer.strip().split("\n")[0]
    line = re.sub(r"^[\s\-*•\"'“‘«]+|[\s\-\"'”’».,;:!]+$", "", line)
    words = line.split()[:MOST_WORDS]
    return " ".join(words) if any(c.isalnum() for w in words for c in w) else ""


def _prompt(words: EvidenceWords, feature: int) -> str | None:
    contexts = words.evidence.top.contexts(feature)[:SHOWN]
    if not contexts:
        return None
    own = [" ".join("".join(words.spelled(c.tokens)).split()) for c in contexts]
    blocks = [_block(texts, f" {topic}") for texts, topic in EXAMPLES]
    return "Name what the excerpts have in common, in a few words.\n\n" + "\n\n".join([*blocks, _block(own, "")])


def _block(texts: Sequence[str], topic: str) -> str:
    return "\n".join(["Excerpts:", *(f"- {t}" for t in texts), f"In common:{topic}"])


def likelihood_report(host: "Host", words: EvidenceWords, proposals: Mapping[int, Proposal], least: int, seed: int = 0) -> dict[str, Any]:
    """Median test AUROC of the host's own likelihood of a label, given a context, beside labels dealt to other features.

    The score of a context is the mean log-probability of the label's tokens after it; at most `SCORED` firing and as many
    silent contexts a feature.
    """
    order = list(proposals)
    random.Random(seed).shuffle(order)
    dealt = dict(zip(order, order[1:] + order[:1], strict=True))
    report: dict[str, Any] = {}
    for name, label_of in (("host likelihood", {f: f for f in order}), ("host likelihood, shuffled", dealt)):
        areas = [a for f in order if (a := _likelihood_area(host, words, f, proposals[label_of[f]].text, least, seed)) is not None]
        report[name] = {"n": len(areas), "median": float(np.median(areas)) if areas else None}
    return report


def _likelihood_area(host: "Host", words: EvidenceWords, feature: int, label: str, least: int, seed: int) -> float | None:
    positive = [c.tokens for c in words.evidence.held["test"].contexts(feature)]
    quiet = words.silence["test"].of(feature).tolist()
    negative = [t.tokens for t, q in zip(words.evidence.background["test"].tiles(), quiet, strict=True) if q]
    if min(len(positive), len(negative)) < least:
        return None
    drawn = [random.Random(seed).sample(side, min(SCORED, len(side))) for side in (positive, negative)]
    texts = [f"Text: {''.join(words.spelled(tokens)).strip()}\nIn common:" for side in drawn for tokens in side]
    scores = [float(s.mean()) for s in host.token_logprobs(texts, [f" {label}"] * len(texts))]
    return auroc(scores[: len(drawn[0])], scores[len(drawn[0]) :]).mean
