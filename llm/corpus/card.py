"""The README beside the packed data: where the texts come from, how many, how varied, what was dropped."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .asking import PAIRS, TEMPLATES
from .clean import LEAST_DISTINCT, LEAST_WORDS, OVERLAP, SHINGLE, distinct_share, words

Record = dict[str, str]
CountTokens = Callable[[Sequence[str]], int]


@dataclass
class Packed:
    """Records of a file, how many were read, and why others were dropped."""

    records: list[Record]
    read: int
    dropped: Counter[str]


def readme(parts: dict[str, Packed], sizes: dict[str, int], n_items: int, count: CountTokens) -> str:
    """The README of the files in `parts`.

    Args:
        parts: `corpus` and, where it was packed, `pool`.
        sizes: Bytes of each file.
        n_items: Test items that were kept out.
        count: Number of SmolLM2 tokens of some texts.
    """
    lines = [
        "# Embedded corpus and general pool",
        "",
        "All texts were sampled from SmolLM2-135M-Instruct (Apache-2.0) by `write.py` (seeded a shard) and packed by",
        "`python -m efface.llm.corpus.pack --shards DIR`. A small model wrote them: not all is true.",
        f"No text holds one of the {n_items} test items of the packaged concepts: neither a whole prompt nor, in one",
        "sentence, all content words of a prompt together with its answer.",
        "",
    ]
    for name, part in parts.items():
        lines += [f"## {name}.jsonl.zst", "", *_figures(part, sizes[name], count), ""]
        lines += _corpus(part) if name == "corpus" else _pool(part)
        dropped = ", ".join(f"{why} {n:,}" for why, n in part.dropped.most_common())
        lines += ["", f"Dropped, of {part.read:,} read: {dropped or 'nothing'}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _figures(part: Packed, size: int, count: CountTokens) -> list[str]:
    texts = [r["text"] for r in part.records]
    tokenized = [words(t) for t in texts]
    n_words = sum(map(len, tokenized))
    rows = (
        ("texts", f"{len(texts):,}"),
        ("SmolLM2 tokens", f"{count(texts):,}"),
        ("words; distinct words", f"{n_words:,}; {len({w for t in tokenized for w in t}):,}"),
        ("distinct 4-grams of words", f"{100 * distinct_share(tokenized):.1f} %"),
        ("distinct beginnings (4 words)", f"{100 * len({tuple(t[:4]) for t in tokenized}) / len(texts):.1f} %"),
        ("topics", f"{len({r['topic'] for r in part.records}):,}"),
        ("bytes, compressed", f"{size:,}"),
    )
    return ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows)]


def _corpus(part: Packed) -> list[str]:
    areas = Counter(r["area"] for r in part.records)
    return [
        "Keys `text`, `area`, `topic`. Documents end with a finished sentence and have at least",
        f"{LEAST_WORDS} words; at least {LEAST_DISTINCT:.0%} of a document's 4-grams are distinct, and it",
        f"shares at most {OVERLAP:.0%} of its {SHINGLE}-word shingles with any earlier one.",
        "",
        f"Areas: {', '.join(f'{a} {n:,}' for a, n in areas.most_common())}.",
    ]


def _pool(part: Packed) -> list[str]:
    ordered = sorted(part.records, key=lambda r: r["split"])
    splits = {s: list(g) for s, g in groupby(ordered, key=lambda r: r["split"])}
    asked = sum(r["kind"] == "request" for r in part.records)
    counts = ", ".join(f"{s} {len(x):,}" for s, x in splits.items())
    return [
        "Keys `text`, `area`, `topic`, `split`, `kind` (`sentence` or `request`). Single sentences on everyday life,",
        f"places and knowledge, and {asked:,} templated questions and requests",
        f"({asked / len(part.records):.0%} of the texts; {len(TEMPLATES) + len(PAIRS)} templates).",
        "Texts that name a packaged concept (its tokens, synonyms or name) are left out: they are no negatives for its",
        "gate. Homonyms go with them («film star»): judge false positives on those by a concept's neighbours.",
        "",
        f"Splits share no subject: {counts}. No sentence stands in the corpus.",
    ]
