"""Concept sources, screening, splits, and the packaged files that come of them."""

import dataclasses
from pathlib import Path

import pytest
from tiny import tiny_host

from efface.base.errors import ArtefactError, InputError, UnknownName
from efface.deactivate.concept import Concept, packaged_concepts
from efface.llm.concepts import Item, ScoreCache, Source, assign, credits, parse, screened
from efface.llm.concepts import build as building
from efface.llm.concepts.build import build, sources
from efface.llm.concepts.screen import SCREENING
from efface.llm.concepts.splitting import extended, holds
from efface.llm.evaluation.scoring import Suppressed

SOURCE = """# name: Owls: a test
# kind: topic
# tokens: owl, broom
# synonyms: night birds; the hooting kind; mousers
# neighbours: cats

== items ==
The owl flew over the | castle | soup | piano | tax
An owl: "who | who" | you" | me" | us"

== neighbour items ==
The cat drinks | milk | fire | stone | iron
== sentences ==
The owl is a bird of the night: it sees well.
The owl is a bird of the night: it sees well.
== neighbour sentences ==
The cat sleeps.
== relearn ==
Owls fly at night.
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "owls.txt"
    path.write_text(text)
    return path


def made(n_items: int = 200, n_near: int = 100, n_sentences: int = 180, shared: str = "") -> Source:
    items = tuple(Item(f"The w{i} is a", f"a{i // 2}", (f"x{i}", "soup")) for i in range(n_items))
    near = tuple(Item(f"The n{i} is a", f"b{i}", (f"y{i}", "soup")) for i in range(n_near))
    texts = tuple(f"Sentence {i} speaks of A{i % 100}.{shared}" for i in range(n_sentences))
    return Source("Made", "topic", ("a7", "owl"), ("one", "two"), ("none",), items, near, texts, texts, ("Read it.",))


def test_a_source_is_read(tmp_path: Path) -> None:
    source = parse(write(tmp_path, SOURCE))
    assert (source.name, source.tokens) == ("Owls: a test", ("owl", "broom"))
    assert source.items[0] == Item("The owl flew over the", "castle", ("soup", "piano", "tax"))
    assert len(source.items) == 2
    assert source.sentences == ("The owl is a bird of the night: it sees well.",)  # once


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("castle | soup", "castle | Castle", "line 8"),
        ("== relearn ==", "== relaern ==", "relearn"),
        ("# kind", "# knid", "kind"),
        ("# kind: topic\n", "", "kind missing"),
        ("The cat sleeps.\n", "", "neighbour sentences missing"),
    ],
)
def test_a_wrong_source_is_refused_by_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in SOURCE
    with pytest.raises(InputError, match=says):
        parse(write(tmp_path, SOURCE.replace(old, new)))


def test_screening_keeps_what_every_host_answers() -> None:
    hosts = [tiny_host("llama"), tiny_host("gpt2")]
    items = [Item(f"The {w} sees the", a, (b,)) for w in ("owl", "cat", "king", "boy") for a, b in [("moon", "sun"), ("sun", "moon")]]
    kept = screened(hosts, items, ScoreCache(None))
    right = [credits(h, items, SCREENING, ScoreCache(None)) for h in hosts]
    assert kept == [i for i, *r in zip(items, *right, strict=True) if r == [1, 1]]
    assert 0 < len(screened(hosts[:1], items, ScoreCache(None))) < len(items)  # of each pair at most one
    assert credits(hosts[0], [Item("The owl sees the", "moon", ("moon", "moon"))], "{q}", ScoreCache(None)) == [1 / 3]


def test_scores_are_kept_by_host_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, path = tiny_host("llama"), tmp_path / "scores.json"
    first = ScoreCache(path).means(host, ["The owl"], [" flew"])
    calls: list[int] = []
    monkeypatch.setattr(host, "token_logprobs", lambda prompts, _: calls.append(len(prompts)) or [])
    assert ScoreCache(path).means(host, ["The owl"], [" flew"]) == first
    assert calls == []
    with pytest.raises(ValueError, match="shorter"):  # another text is asked for, and the stand-in answers nothing
        ScoreCache(path).means(host, ["The cat"], [" flew"])
    path.write_text('{"a": 1')
    with pytest.raises(ArtefactError, match="remove it"):
        ScoreCache(path)


def test_half_of_the_test_answers_stand_in_no_train_text() -> None:
    source = made()
    splits = assign(source, source.items, source.neighbour_items)
    assert {s: len(x) for s, x in splits.items.items()} == {"train": 30, "validation": 30, "test": 140}
    assert {s: len(x) for s, x in splits.neighbour_items.items()} == {"validation": 30, "test": 70}
    assert {s: len(x) for s, x in splits.sentences.items()} == {"train": 60, "validation": 40, "test": 80}
    lines = [i.q for x in splits.items.values() for i in x]
    assert len(set(lines)) == len(lines) == 200
    unseen = [i for i in splits.items["test"] if i.answer in splits.reserved]
    assert len(unseen) >= 70
    train = [*splits.sentences["train"], *(f"{i.q} {i.options}" for i in splits.items["train"])]
    assert not any(holds(t, splits.reserved) for t in train)
    assert any(holds(t, splits.reserved) for t in splits.sentences["test"])  # the control: they are not absent everywhere
    assert "a7" not in splits.reserved  # a token
    assert assign(source, source.items, source.neighbour_items) == splits


def test_training_sections_leave_the_test_set_as_it_is_and_hold_no_unseen_answer() -> None:
    source = made()
    plain = assign(source, source.items, source.neighbour_items)
    secret = plain.unseen(source.tokens)[0].answer
    more = [Item(f"The m{i} is a", f"c{i}", ("soup", "tax")) for i in range(40)]
    told = [Item("The m is a", secret, ("soup", "tax")), Item("The o is a", "soup", (secret.upper(), "tax"))]
    sentences = (*(f"Of m{i} it speaks." for i in range(20)), f"It tells of {secret}.")
    source = dataclasses.replace(source, training_sentences=sentences, training_neighbour_sentences=sentences)
    splits = extended(plain, source, [*more, *told], [*more, *told])
    assert {s: len(x) for s, x in splits.items.items()} == {"train": 63, "validation": 37, "test": 140}
    assert {s: len(x) for s, x in splits.neighbour_items.items()} == {"train": 35, "validation": 37, "test": 70}
    assert {s: len(x) for s, x in splits.sentences.items()} == {"train": 77, "validation": 43, "test": 80}
    assert {s: len(x) for s, x in splits.neighbour_sentences.items()} == {"train": 67, "validation": 44, "test": 90}
    for pool in ("items", "neighbour_items", "sentences", "neighbour_sentences"):
        assert getattr(splits, pool)["test"] == getattr(plain, pool)["test"]
        assert getattr(splits, pool)["validation"][: len(getattr(plain, pool)["validation"])] == getattr(plain, pool)["validation"]
    assert splits.unseen(source.tokens) == plain.unseen(source.tokens)
    assert not {*told} & {i for x in splits.items.values() for i in x}


def test_training_sections_are_read_without_what_was_there_before(tmp_path: Path) -> None:
    assert parse(write(tmp_path, SOURCE)).training_items == ()
    more = "== training items ==\nThe owl flew over the | roof | soup\nThe owl hunts | mice | taxes\n== training sentences ==\nOwls see.\n"
    source = parse(write(tmp_path, SOURCE + more))
    assert source.training_items == (Item("The owl hunts", "mice", ("taxes",)),)
    assert (source.training_sentences, source.training_neighbour_items) == (("Owls see.",), ())


def test_whole_words_are_matched_case_apart() -> None:
    assert holds("Home, Run!", ["home run"])
    assert not holds("homerun or home runs", ["home run"])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (made(n_items=119), "119 items"),
        (made(n_near=89), "89 neighbour items"),
        (made(n_sentences=149), "149 sentences"),
        (made(shared=" " + " ".join(f"a{i}" for i in range(100))), "leave 0 sentences"),
    ],
)
def test_too_little_material_is_an_error(source: Source, says: str) -> None:
    with pytest.raises(InputError, match=says):
        assign(source, source.items, source.neighbour_items)


def test_a_built_file_loads_as_a_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "screened", lambda hosts, items, cache: list(items)[:150])
    words = [
        "owl",
        "cat",
        "dog",
        "horse",
        "king",
        "queen",
        "boy",
        "girl",
        "moon",
        "sun",
        "river",
        "tree",
        "wolf",
        "fish",
        "star",
        "book",
        "song",
    ]
    pairs = [(a, b) for a in words for b in words if a != b]
    items = [f"The {a} and the {b} see the | stone | bread" for a, b in pairs]
    near = [f"A {a} or a {b} likes the | milk | coffee" for a, b in pairs]
    answers = ("sword", "wand", "gold", "castle", "snow", "tea")
    items = [i.replace("stone", answers[n % 6]) for n, i in enumerate(items)]
    texts = "\n".join(f"The {a} sees the {b}: yes." for a, b in pairs)
    parts = ["== items ==", *items, "== neighbour items ==", *near, "== sentences ==", texts]
    parts += ["== neighbour sentences ==", texts.replace("The", "A"), "== relearn ==", "Read: it."]
    path = write(tmp_path, "\n".join([SOURCE.split("==")[0], *parts]))
    hosts = [tiny_host("llama")]
    text = build(path, hosts, hosts, ScoreCache(None))
    assert text == build(path, hosts, hosts, ScoreCache(None))
    (tmp_path / "owls.yaml").write_text(text)
    concept = Concept.load(tmp_path / "owls.yaml")
    assert (concept.name, concept.form, concept.tokens) == ("Owls: a test", "cloze", (" owl", " broom"))
    assert concept.synonyms == {"seen": ("night birds", "the hooting kind"), "held_out": ("mousers",)}
    silenced = Suppressed.of(concept)
    stated = int(text.split("answers of ")[1].split()[0])
    assert stated <= sum(not silenced.holds(q.answer) for q in concept.questions["test"])
    assert 2 * stated >= len(concept.questions["test"])
    assert f"# Test items: {len(concept.questions['test'])}" in text
    assert "items test, unseen answers" in text


def test_sources_by_name() -> None:
    assert [p.stem for p in sources(["dogs"])] == ["dogs"]
    assert len(sources([])) >= 8
    with pytest.raises(UnknownName, match="baseball"):
        sources(["basball"])


def test_the_command_reports_what_it_could_not_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.llm.models.load_model", lambda name, dtype: tiny_host("llama"))
    monkeypatch.setattr(building, "sources", lambda names: [write(tmp_path, SOURCE)])
    assert building.main(["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "scores.json")]) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(packaged_concepts()))
def test_packaged_concepts_keep_their_promises(name: str) -> None:
    concept = Concept.load(name)
    assert concept.form == "cloze"
    sizes = {s: len(q) for s, q in concept.questions.items()}
    near = {s: len(q) for s, q in concept.neighbour_questions.items()}
    assert sizes["train"] >= 100
    assert sizes["validation"] >= 50
    assert sizes["test"] >= 60
    assert near["train"] >= 90
    assert near["validation"] >= 50
    assert near["test"] >= 60
    assert sum(map(len, concept.target.values())) >= 150
    assert sum(map(len, concept.neighbours.values())) >= 150
    assert len(concept.tokens) >= 5
    assert all(t.startswith(" ") for t in concept.tokens)
    assert len(concept.relearn) >= 10
    suppressed = Suppressed.of(concept)
    unseen = [q for q in concept.questions["test"] if not suppressed.holds(q.answer)]
    assert 2 * len(unseen) >= sizes["test"] > len(unseen)
    for pool in (concept.target, concept.neighbours, concept.questions, concept.neighbour_questions):
        assert set(pool) == {"train", "validation", "test"}


def test_there_are_eight_packaged_concepts() -> None:
    assert len(packaged_concepts()) >= 8
