"""Cleaning, leak tests and packing of the corpus and the pool, and what is packaged."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tiny import tiny_tokenizer

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.deactivate import concept as concepts
from efface.deactivate.concept import Concept, packaged_concepts
from efface.llm.corpus import corpus, general_pool, pack, pool, read, records
from efface.llm.corpus.asking import PAIRS, TEMPLATES, requests
from efface.llm.corpus.clean import Repeats, distinct_share, flaw, sentences, trim, words
from efface.llm.corpus.leaks import Leaks, Names
from efface.llm.corpus.write import plan, subjects

GOOD = (
    "Bread is made of flour, water, salt and yeast. The baker kneads the dough and lets it rest. "
    "Then it goes into a hot oven until its crust is brown."
)
VOCABULARY = words(
    "apple bread castle drum eagle flower garden hammer island jacket kettle lemon mirror needle orange pencil"
    " queen river silver table umbrella valley window yellow zebra bridge copper dragon engine forest"
)
CONCEPT = {
    "format": 1,
    "name": "Owls",
    "form": "cloze",
    "target": {"train": ["The owl flies."]},
    "tokens": [" owl", " hoot"],
    "synonyms": {"seen": ["birds of the night"]},
    "questions": {"test": [{"q": "The sound that an owl makes is called a", "options": ["hoot", "fire"], "answer": "hoot"}]},
    "neighbour_questions": {"test": [{"q": "Cats like to catch", "options": ["mice", "taxis"], "answer": "mice"}]},
}


@pytest.fixture
def owls() -> Concept:
    return Concept.from_mapping(CONCEPT)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("It rains. It pours and", "It rains."),
        ("Dr. Who met Mr. J. Smith. In the U.S. it", "Dr. Who met Mr. J. Smith."),
        ("1. It rains.\n2. It snows.\n3.", "1. It rains.\n2. It snows."),
        ("It rains.\n\nAnna:", "It rains."),
        ('"Come in." She sat do', '"Come in."'),
        ("Sure, here is a story about rain:\n\nIt rains.", "It rains."),
        ("Here are some facts:\n1. It rains.", "1. It rains."),
        ("no end at all", ""),
    ],
)
def test_texts_end_with_a_finished_sentence(text: str, left: str) -> None:
    assert trim(text) == left
    assert trim(trim(text)) == trim(text)


def test_sentences_are_split() -> None:
    text = 'Mr. Bean came. "Is it 3.5 km?" he asked!\n2. I. Newton wrote it in 1687. The end'
    assert sentences(text) == ["Mr. Bean came.", '"Is it 3.5 km?"', "he asked!", "2. I. Newton wrote it in 1687."]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GOOD, None),
        (GOOD.split(". ")[0] + ".", "too short"),
        ("As an AI, I have no oven. " + GOOD, "chat"),
        ("I'm sorry, there is no bread. " + GOOD, "chat"),
        ('He said "I\'m sorry" twice. ' + GOOD, None),
        ("Sure, here you are. " + GOOD, "chat"),
        (GOOD + " See https://example.org.", "chat"),
        (f"{GOOD} {GOOD}", "loop"),
        ("\n".join([GOOD, *["Anna:"] * 4]), "loop"),
        (GOOD + " Yes, yes, yes, yes.", "loop"),
    ],
)
def test_flaws_are_named(text: str, why: str | None) -> None:
    assert flaw(text) == why


def test_near_duplicates_are_seen() -> None:
    repeats = Repeats()
    assert not repeats.seen(GOOD)
    assert repeats.seen(GOOD.upper().replace("HOT", "warm"))
    assert not repeats.seen("A quite different text about the sea, which is deep and cold and salty.")
    assert distinct_share([words("a b c d e"), words("A b c d")]) == 2 / 3
    assert distinct_share([]) == 1


def test_test_items_are_found_whole_or_by_words_and_answer(owls: Concept) -> None:
    leaks = Leaks([owls])
    assert leaks.n == 2
    assert leaks.found("They say the sound that an owl makes is called a «hoot».")
    assert leaks.found("An owl makes a sound, the hoot. It rains.")
    assert leaks.found("We know that cats like to catch birds.")  # the whole prompt
    assert leaks.found("Mice: cats catch what they like.")
    assert not leaks.found("An owl makes a sound.")
    assert not leaks.found("Cats like rain. Dogs catch mice.")  # not in one sentence
    assert not leaks.found(GOOD)


def test_names_of_concepts_are_found(owls: Concept) -> None:
    names = Names([owls])
    assert all(map(names.found, ("An OWL.", "Two owls.", "The birds of the night sing.", "It hoot s.")))
    assert not any(map(names.found, ("It howls.", "Birds of the day sing at night.", GOOD)))


def test_requests_are_different_and_stay_with_their_subject() -> None:
    found = requests(["tea", "rain"], 1000, "seed")
    assert len(set(found)) == len(found) == 2 * (len(TEMPLATES) + len(PAIRS))
    assert all(s in text for s, text in found)
    assert requests(["tea", "rain"], 5, "seed") == found[:5]
    assert requests(["tea"], 1000, "other") != found


def test_topics_lead_back_to_subjects_and_splits_share_none() -> None:
    splits = pack.pool_splits()
    assert {pack.subject_of(t["topic"]) for t in plan(2400, pool=True)} == set(splits)
    counts = Counter(splits.values())
    assert counts["test"] >= counts["validation"] > counts["train"] > len(splits) / 6


def drawn(subject: str, seed: str) -> str:
    """A text that begins with the subject and goes on at random, cut in the fourth sentence."""
    rng = random.Random(f"{subject}/{seed}")
    return " ".join([f"This is about {subject} again.", *(f"The {' '.join(rng.sample(VOCABULARY, 9))}." for _ in range(3)), "And"])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    every = sorted(pack.pool_splits())
    for kind in ("corpus", "pool"):
        texts = [(s, drawn(s, kind)) for s in every]
        extra = (GOOD + " An owl makes a sound, the hoot.", "The owl of Berlin sleeps.")
        texts += [texts[0], *((every[0], text) for text in extra)]
        rows = [{"area": "knowledge", "topic": f"why {s} matters to people", "prompt": "x", "text": t} for s, t in texts]
        (folder / f"{kind}-0000.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def stand_in(owls: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concepts, "packaged_concepts", lambda: {"owls": None})
    monkeypatch.setattr(Concept, "load", lambda name: owls)


@pytest.mark.usefixtures("stand_in")
def test_packing_is_the_same_twice_and_readable(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = ["--shards", str(shards), "--tokenizer", str(tmp_path / "tokenizer"), "--out"]
    assert pack.main([*options, str(tmp_path / "short")]) == 1  # the pool is too small: the corpus alone
    assert sorted(p.name for p in (tmp_path / "short").iterdir()) == ["README.md", "corpus.jsonl.zst", "packed.json"]
    monkeypatch.setattr(pack, "LEAST", {"test": 200})
    outs = [tmp_path / "package" / "data", tmp_path / "again"]
    for out in outs:
        assert pack.main([*options, str(out)]) == 0
    names = sorted(p.name for p in outs[0].iterdir())
    assert names == ["README.md", "corpus.jsonl.zst", "packed.json", "pool.jsonl.zst"]
    assert all((outs[0] / n).read_bytes() == (outs[1] / n).read_bytes() for n in names)
    card = (outs[0] / "README.md").read_text()
    figures = ("test item 1", "near-duplicate 1", "too short 1", "names a concept", "SmolLM2 tokens")
    assert [f for f in figures if f not in card] == []
    monkeypatch.setattr(read, "files", lambda package: tmp_path / "package")
    texts = list(corpus())
    assert len(texts) == len(pack.pool_splits())
    assert not any("owl" in words(t) or t.endswith("And") for t in texts)
    rows = list(records("pool"))
    assert not {r["text"] for r in rows} & {s for t in texts for s in sentences(t)}
    assert sum(r["kind"] == "request" for r in rows) == pytest.approx(len(rows) / 4, abs=2)
    assert not any("owl" in words(r["text"]) for r in rows)
    assert pool("test") == [r["text"] for r in rows if r["split"] == "test"]
    (outs[0] / "pool.jsonl.zst").write_bytes((outs[0] / "pool.jsonl.zst").read_bytes()[:200])
    with pytest.raises(ArtefactError, match="damaged"):
        pool("test")


@pytest.mark.usefixtures("stand_in")
def test_packing_onto_an_earlier_pack_keeps_it_and_its_pool(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(pack, "LEAST", {"test": 200})
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--out"]
    first, more, second = tmp_path / "first", tmp_path / "more", tmp_path / "second"
    assert pack.main(["--shards", str(shards), *options, str(first)]) == 0
    earlier = pack.packed_before(first)
    more.mkdir()
    leaked = next(r["text"] for r in earlier["pool"].records if r["kind"] == "sentence")
    texts = [drawn("tea", "more"), earlier["corpus"].records[0]["text"] + " And", f"{drawn('rain', 'more')[:-4]} {leaked} And"]
    rows = [{"area": "knowledge", "topic": "tea", "text": t} for t in texts]
    (more / "corpus-0001.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert pack.main(["--shards", str(more), "--onto", str(first), *options, str(second)]) == 0
    now = pack.packed_before(second)
    assert (second / "pool.jsonl.zst").read_bytes() == (first / "pool.jsonl.zst").read_bytes()
    n = len(earlier["corpus"].records)
    assert now["corpus"].records[:n] == earlier["corpus"].records
    assert len(now["corpus"].records) == n + 1
    assert now["corpus"].read == earlier["corpus"].read + 3
    assert now["corpus"].dropped == earlier["corpus"].dropped + Counter({"near-duplicate": 1, "sentence of the pool": 1})
    with pytest.raises(ArtefactError, match="--onto"):
        pack.packed_before(tmp_path)


def test_packing_refuses_what_it_cannot_use(tmp_path: Path, owls: Concept) -> None:
    with pytest.raises(MatchedNothing, match="write more"):
        pack.pack_corpus([{"text": "Short.", "area": "a", "topic": "t"}], Leaks([owls]))
    (tmp_path / "corpus-0000.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ArtefactError, match="line 1"):
        list(pack.shards(tmp_path, "corpus"))


def test_missing_files_and_splits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="validation"):
        pool("validate")
    assert general_pool is pool
    monkeypatch.setattr(read, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"corpus\.jsonl\.zst is missing"):
        next(corpus())


@pytest.fixture(scope="module")
def leaks() -> Leaks:
    return Leaks(Concept.load(name) for name in packaged_concepts())


def test_the_packaged_corpus_is_clean(leaks: Leaks) -> None:
    rows = list(records("corpus"))
    assert len(rows) >= 2000
    assert {r["area"] for r in rows} == {a.strip("*+") for a in subjects()}
    sample = rows[::7]
    assert not [r["text"] for r in sample if flaw(r["text"]) or leaks.found(r["text"]) or trim(r["text"]) != r["text"]]
    assert len({r["text"] for r in rows}) == len(rows)


def test_the_packaged_pool_is_large_and_apart(leaks: Leaks) -> None:
    texts = {s: pool(s) for s in read.SPLITS}
    assert all(len(texts[s]) >= n for s, n in pack.LEAST.items())
    assert len({t for x in texts.values() for t in x}) == sum(map(len, texts.values()))
    subjects_of = {s: {pack.subject_of(r["topic"]) for r in records("pool") if r["split"] == s} for s in read.SPLITS}
    assert not subjects_of["test"] & subjects_of["validation"]
    assert not subjects_of["train"] & (subjects_of["test"] | subjects_of["validation"])
    names = Names(Concept.load(name) for name in packaged_concepts())
    assert not [t for t in texts["test"][::5] if names.found(t) or leaks.found(t)]
