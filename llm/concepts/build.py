"""Builds the packaged concept files: screens each source's items on two small models, assigns splits, writes YAML.

Run `python -m efface.llm.concepts.build [NAME …] [--model smollm2 --model gemma3-270m] [--out FOLDER] [--cache FILE]`.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.errors import InputError, UnknownName
from ...base.files import cache_dir, write_text
from ..evaluation.scoring import TEMPLATES
from .parsing import Item, Source, parse
from .screen import SCREENING, ScoreCache, credits, screened
from .splitting import Splits, assign, extended, holds

if TYPE_CHECKING:
    from ..host import Host

HERE = Path(__file__).resolve().parent
MODELS = ("smollm2", "gemma3-270m")
ENOUGH = 0.80
"""Base accuracy below which the file's header says so."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Screening:
    """How the items were screened."""

    models: tuple[str, ...]
    dtype: str
    kept: dict[str, tuple[int, int]]
    """Pool -> items kept, items in the source."""


def build(path: Path, screeners: Sequence["Host"], hosts: Sequence["Host"], cache: ScoreCache) -> str:
    """The concept file (YAML) of the source at `path`: items screened on `screeners`, base accuracies of `hosts`."""
    source = parse(path)
    pools = {
        "items": source.items, "neighbour items": source.neighbour_items,
        "training items": source.training_items, "training neighbour items": source.training_neighbour_items,
    }  # fmt: skip
    good = {name: screened(screeners, pool, cache) if pool else [] for name, pool in pools.items()}
    kept = {name: (len(good[name]), len(pool)) for name, pool in pools.items() if pool}
    log.info("%s: kept %s", path.stem, "; ".join(f"{k} of {n} {what}" for what, (k, n) in kept.items()))
    items, near, more, more_near = good.values()
    splits = extended(assign(source, items, near), source, more, more_near)
    screening = Screening(tuple(h.name for h in screeners), str(screeners[0].dtype).removeprefix("torch."), kept)
    lines = header(path.stem, source, splits, screening, {h.name: accuracies(h, splits, source.tokens, cache) for h in hosts})
    return "\n".join([*lines, "", *body(source, splits), ""])


def accuracies(host: "Host", splits: Splits, tokens: Sequence[str], cache: ScoreCache) -> dict[str, float]:
    """Accuracy under the scored template by «pool split», and on the test items with unseen answers."""
    result = {}
    pools = {"items": splits.items, "neighbour items": splits.neighbour_items}
    for pool, split, items in [(p, s, x) for p, xs in pools.items() for s, x in xs.items()]:
        got = credits(host, items, TEMPLATES["cloze"], cache)
        result[f"{pool} {split}"] = sum(got) / len(got)
        if pool == "items" and split == "test":
            unseen = set(splits.unseen(tokens))
            rare = [c for c, i in zip(got, items, strict=True) if i in unseen]
            result["items test, unseen answers"] = sum(rare) / len(rare)
    return result


def header(stem: str, source: Source, splits: Splits, screening: Screening, table: dict[str, dict[str, float]]) -> list[str]:
    """The comments on top of the file: how it was screened, counts, base accuracies."""
    n_unseen = len(splits.unseen(source.tokens))
    n_free = sum(not holds(p, splits.reserved) for p in source.relearn)
    lines = [
        f"Built by `python -m efface.llm.concepts.build {stem}` from source/{stem}.txt: mend that file, not this one.",
        f"Screened on {' and '.join(screening.models)} ({screening.dtype}) with {json.dumps(SCREENING + ' {option}')}",
        "(mean log-probability of the option's tokens); kept where all answer rightly:",
        f"{'; '.join(f'{k} of {n} {what}' for what, (k, n) in screening.kept.items())}.",
        f"Test items: {len(splits.items['test'])}; answers of {n_unseen} stand in no train text and not in `tokens`.",
        f"Of {len(source.relearn)} relearn paragraphs {n_free} hold none of {len(splits.reserved)} reserved answers.",
        f"Base accuracy under the scored template {json.dumps(TEMPLATES['cloze'] + ' {option}')}:",
    ]
    for name, row in table.items():
        lines.append(f"  {name}: " + "; ".join(f"{k} {100 * v:.1f} %" for k, v in row.items()))
    low = [f"{name} on {k}" for name, row in table.items() for k, v in row.items() if v < ENOUGH]
    if low:
        lines.append(f"Below {ENOUGH:.0%}: {'; '.join(low)}.")
    return [f"# {line}" for line in lines]


def body(source: Source, splits: Splits) -> list[str]:
    """The lines of the file itself; text is written as JSON strings, which YAML reads as they are."""
    half = (len(source.synonyms) + 1) // 2
    lines = ["format: 1", f"name: {_text(source.name)}", f"kind: {source.kind}", "form: cloze"]
    lines += [f"tokens: {_list([f' {t}' for t in source.tokens])}"]
    lines += ["synonyms:", f"  seen: {_list(source.synonyms[:half])}", f"  held_out: {_list(source.synonyms[half:])}"]
    for key, sentences in (("target", splits.sentences), ("neighbours", splits.neighbour_sentences)):
        lines += [f"{key}:"]
        for split, texts in sentences.items():
            lines += [f"  {split}:", *(f"    - {_text(t)}" for t in texts)]
    for key, items in (("questions", splits.items), ("neighbour_questions", splits.neighbour_items)):
        lines += [f"{key}:"]
        for split, questions in items.items():
            lines += [f"  {split}:", *(f"    - {_item(i)}" for i in questions)]
    return [*lines, "relearn:", *(f"  - {_text(t)}" for t in source.relearn)]


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _item(item: Item) -> str:
    return f"{{q: {_text(item.q)}, options: {_list(item.options)}, answer: {_text(item.answer)}}}"


def sources(names: Sequence[str]) -> list[Path]:
    """The source files of `names`, or all.

    Raises:
        UnknownName: No source of that name.
    """
    known = {p.stem: p for p in sorted((HERE / "source").glob("*.txt"))}
    for name in names:
        if name not in known:
            raise UnknownName("concept source", name, known)
    return [known[n] for n in names or known]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns 1 where a concept has too few items; the others are built."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("names", nargs="*")
    args.add_argument("--model", action="append")
    args.add_argument("--out", type=Path, default=HERE)
    args.add_argument("--cache", type=Path, default=cache_dir() / "concept-scores.json")
    args.add_argument("--screening-dtype", default="bfloat16")
    args.add_argument("--threads", type=int, default=1)
    options = args.parse_args(argv)
    import torch

    from ..models import load_model

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    models = options.model or MODELS
    screeners, hosts = ([load_model(m, dtype=d) for m in models] for d in (options.screening_dtype, "float32"))
    cache, failed = ScoreCache(options.cache), 0
    for path in sources(options.names):
        try:
            write_text(options.out / f"{path.stem}.yaml", build(path, screeners, hosts, cache))
        except InputError as e:
            log.error("%s", e)
            failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
