"""Packs the shards that `write.py` sampled: filters, drops repeats and leaked test items, compresses, describes.

Run `python -m efface.llm.corpus.pack --shards DIR [--onto FOLDER] [--out FOLDER] [--tokenizer FOLDER]`. Same shards and concepts give
the same bytes. Writes `corpus.jsonl.zst`, from `pool-*.jsonl` also `pool.jsonl.zst`, and a README.md beside them.
"""

import argparse
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from ...base.errors import ArtefactError, InputError, MatchedNothing
from ...base.files import write_bytes, write_json, write_text
from .asking import requests
from .card import CountTokens, Packed, Record, readme
from .clean import Repeats, flaw, is_chat, sentences, trim, words
from .leaks import Leaks, Names
from .read import SPLITS
from .write import ANGLES, subjects

LEVEL = 19
COUNTS = "packed.json"
"""How many texts were read, and why others were dropped, beside the packed files."""
REQUESTS = 0.25
"""Share of the pool that is templated."""
LEAST: Mapping[str, int] = {"train": 1000, "validation": 3000, "test": 3000}
"""Texts a split of the pool must have."""
TURNS = ("test", "validation", "test", "validation", "train")
"""Splits that the shuffled subjects are dealt to in turn."""
SENTENCE_WORDS = range(5, 41)
"""Words of a pool sentence."""
_MORE = "write more shards with python -m efface.llm.corpus.write"
log = logging.getLogger(__name__)


def shards(folder: Path, kind: str) -> Iterator[Record]:
    """Documents of the `kind`-*.jsonl shards, in order.

    Raises:
        ArtefactError: A line that is not a record with text, area and topic.
    """
    for path in sorted(folder.glob(f"{kind}-*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                yield {k: record[k] for k in ("text", "area", "topic")}
            except (json.JSONDecodeError, KeyError, TypeError) as e:
                raise ArtefactError(f"{path}, line {number}: text, area and topic expected ({e!r})") from None


def pack_corpus(documents: Iterable[Record], leaks: Leaks) -> Packed:
    """Trimmed documents without flaws, repeats and leaks.

    Raises:
        MatchedNothing: None is left.
    """
    packed, repeats = Packed([], 0, Counter()), Repeats()
    for document in documents:
        packed.read += 1
        text = trim(document["text"])
        why = flaw(text) or ("test item" if leaks.found(text) else None)
        why = why or ("near-duplicate" if repeats.seen(text) else None)
        if why:
            packed.dropped[why] += 1
        else:
            packed.records.append({**document, "text": text})
    if not packed.records:
        raise MatchedNothing(f"corpus: none of {packed.read} documents is left; {_MORE}")
    return packed


def pack_pool(
    documents: Iterable[Record],
    leaks: Leaks,
    names: Names,
    taken: Sequence[str],
    least: Mapping[str, int] | None = None,
) -> Packed:
    """Sentences and requests, split by subject.

    Args:
        documents: Of the pool shards.
        leaks: Test items; sentences that hold one are dropped.
        names: Words of packaged concepts; sentences and requests that hold one are dropped: they are no negatives.
        taken: Corpus documents; their sentences are not used again.
        least: Texts that a split must have; `LEAST` where it is None.

    Raises:
        InputError: A split has fewer.
    """
    packed, split_of = Packed([], 0, Counter()), pool_splits()
    seen = {" ".join(words(s)) for text in taken for s in sentences(text)}
    for document in documents:
        subject = subject_of(document["topic"])
        for sentence in sentences(trim(document["text"])):
            packed.read += 1
            why = _unfit(sentence, leaks, names, seen) if subject in split_of else "unknown subject"
            if why:
                packed.dropped[why] += 1
            else:
                seen.add(" ".join(words(sentence)))
                packed.records.append({**document, "text": sentence, "split": split_of[subject], "kind": "sentence"})
    packed.records = _with_requests(packed.records, split_of, names)
    counts = Counter(r["split"] for r in packed.records)
    short = [f"{s} {counts[s]} of {n}" for s, n in (LEAST if least is None else least).items() if counts[s] < n]
    if short:
        raise InputError(f"pool: too few texts ({', '.join(short)}); {_MORE} --pool N")
    return packed


def _unfit(sentence: str, leaks: Leaks, names: Names, seen: set[str]) -> str | None:
    tokens = words(sentence)
    if len(tokens) not in SENTENCE_WORDS or not sentence[0].isupper() or any(c in sentence for c in ":*|_#"):
        return "no plain sentence"
    if len(set(tokens)) * 2 < len(tokens) or is_chat(sentence):
        return "chat or loop"
    if names.found(sentence):
        return "names a concept"
    if leaks.found(sentence):
        return "test item"
    return "duplicate" if " ".join(tokens) in seen else None


def _with_requests(statements: list[Record], split_of: dict[str, str], names: Names) -> list[Record]:
    result: list[Record] = []
    area_of = {s: area.lstrip("+") for area, ss in subjects().items() if area.startswith("+") for s in ss}
    for split in SPLITS:
        mine = [r for r in statements if r["split"] == split]
        here = [s for s, its in split_of.items() if its == split and not names.found(s)]
        wanted = round(len(mine) * REQUESTS / (1 - REQUESTS))
        asked = [(s, t) for s, t in requests(here, 10**6, f"requests/{split}") if not names.found(t)][:wanted]
        mine += [{"text": t, "area": area_of[s], "topic": s, "split": split, "kind": "request"} for s, t in asked]
        random.Random(f"pool/{split}").shuffle(mine)
        result += mine
    return result


def pool_splits() -> dict[str, str]:
    """Subject -> split, for the subjects of the pool's areas."""
    names = sorted({s for area, ss in subjects().items() if area.startswith("+") for s in ss})
    random.Random("pool subjects").shuffle(names)
    return {s: TURNS[i % len(TURNS)] for i, s in enumerate(names)}


def subject_of(topic: str) -> str:
    """The subject that an angle made `topic` of."""
    for angle in ANGLES:
        head, _, tail = angle.partition("{}")
        if (head or tail) and topic.startswith(head) and topic.endswith(tail):
            return topic[len(head) : len(topic) - len(tail)]
    return topic


def compressed(records: list[Record]) -> bytes:
    """JSON lines, zstandard."""
    import zstandard

    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, threads=0).compress(lines.encode())


def packed_before(folder: Path) -> dict[str, Packed]:
    """What an earlier pack in `folder` holds, with its counts.

    Raises:
        ArtefactError: The corpus or the counts are missing or damaged.
    """
    import zstandard

    try:
        counts = json.loads((folder / COUNTS).read_text())
        found: dict[str, Packed] = {}
        for name, count in counts.items():
            data = zstandard.ZstdDecompressor().decompress((folder / f"{name}.jsonl.zst").read_bytes())
            found[name] = Packed([json.loads(x) for x in data.decode().strip("\n").split("\n")], count["read"], Counter(count["dropped"]))
    except (OSError, ValueError, KeyError, zstandard.ZstdError) as e:
        raise ArtefactError(f"--onto {folder}: {COUNTS}, corpus.jsonl.zst and pool.jsonl.zst of an earlier pack expected ({e!r})") from None
    return found


def _without(corpus: Packed, pool: Packed) -> Packed:
    """The corpus without documents that hold a sentence of the pool."""
    held = {" ".join(words(r["text"])) for r in pool.records if r["kind"] == "sentence"}
    kept = [r for r in corpus.records if not any(" ".join(words(s)) in held for s in sentences(r["text"]))]
    dropped = corpus.dropped + Counter({"sentence of the pool": len(corpus.records) - len(kept)})
    return Packed(kept, corpus.read, dropped)


def token_counter(folder: Path | None) -> CountTokens:
    """Number of SmolLM2 tokens of some texts; the alias's own tokenizer where no folder is given."""
    from transformers import AutoTokenizer

    from ..aliases import ALIASES
    from ..fetch import ensure

    tokenizer = AutoTokenizer.from_pretrained(folder or ensure(ALIASES["smollm2"]))
    return lambda texts: sum(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns 1 where the pool is too small: the corpus alone is written."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--shards", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data")
    args.add_argument("--tokenizer", type=Path)
    args.add_argument("--onto", type=Path, help="folder of an earlier pack: its documents come first, its pool stays")
    options = args.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from ...deactivate.concept import Concept, packaged_concepts

    concepts = [Concept.load(name) for name in sorted(packaged_concepts())]
    if not concepts:
        raise MatchedNothing("no packaged concepts, whose test items to keep out: run python -m efface.llm.concepts.build")
    leaks, names, count = Leaks(concepts), Names(concepts), token_counter(options.tokenizer)
    earlier = packed_before(options.onto) if options.onto else {}
    first = earlier["corpus"].records if earlier else []
    packed = {"corpus": pack_corpus(chain(first, shards(options.shards, "corpus")), leaks)}
    taken = [r["text"] for r in packed["corpus"].records]
    if "pool" in earlier:
        packed["pool"] = earlier["pool"]
        packed["corpus"] = _without(packed["corpus"], earlier["pool"])
    else:
        try:
            packed["pool"] = pack_pool(shards(options.shards, "pool"), leaks, names, taken)
        except InputError as e:
            log.error("%s; the corpus alone is packed", e)
    if earlier:
        packed["corpus"].read += earlier["corpus"].read - len(first)
        packed["corpus"].dropped += earlier["corpus"].dropped
    files = {name: compressed(part.records) for name, part in packed.items()}
    for name, data in files.items():
        write_bytes(options.out / f"{name}.jsonl.zst", data)
        part = packed[name]
        log.info("%s: %d texts of %d read; dropped %s", name, len(part.records), part.read, dict(part.dropped))
    write_json(options.out / COUNTS, {n: {"read": p.read, "dropped": dict(p.dropped)} for n, p in packed.items()})
    write_text(options.out / "README.md", readme(packed, {n: len(d) for n, d in files.items()}, leaks.n, count))
    return 0 if "pool" in packed else 1


if __name__ == "__main__":
    raise SystemExit(main())
