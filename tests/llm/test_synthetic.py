"""The made-up world: its facts, templates, second language, tokenizer, packing, concepts."""

from collections import Counter

import pytest
import torch
from tiny import tiny_model

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.cli.main import run
from efface.deactivate.concept import Concept, generated_concepts
from efface.llm.evaluation.relearn import split_answers
from efface.llm.evaluation.scoring import contains
from efface.llm.synthetic.concepts import choices, mapping, names
from efface.llm.synthetic.corpus import documents, sentence
from efface.llm.synthetic.language import back, translate, word_map
from efface.llm.synthetic.packing import pack
from efface.llm.synthetic.recall import asked
from efface.llm.synthetic.templates import FORMS, FRAMES, frames
from efface.llm.synthetic.tokenizer import make_tokenizer, value_ids
from efface.llm.synthetic.words import KINDS
from efface.llm.synthetic.world import make_world, packaged_world

WORLD = packaged_world()
SMALL = make_world(2, domains=4, per_domain=3)
TEXTS = documents(SMALL)
SPLITS = ("train", "validation", "test")


def test_the_world_is_balanced_and_made_by_its_seed() -> None:
    assert make_world(0).digest == WORLD.digest != make_world(1).digest
    assert (len(WORLD.things), len(set(WORLD.names)), len(WORLD.facts)) == (12, 204, 204 * 8)
    words = [v for _, values in KINDS.values() for v in values]
    assert len(set(words)) == len(words) == 16 * 12
    assert set(Counter(k for kinds in WORLD.kinds.values() for k in kinds).values()) == {6}
    for domain, kinds in WORLD.kinds.items():
        assert len(WORLD.of(domain)) == 136
        assert sum(f.told for f in WORLD.of(domain)) == 68
        for kind in kinds:
            counts = Counter(f.value for f in WORLD.of(domain) if f.kind == kind)
            assert max(counts.values()) - min(counts.values()) <= 1
    near = WORLD.nearest("river")
    shared = {d: len(set(WORLD.kinds[d]) & set(WORLD.kinds["river"])) for d in WORLD.things if d != "river"}
    assert min(shared[d] for d in near) >= max(n for d, n in shared.items() if d not in near)
    with pytest.raises(UnknownName, match="river"):
        WORLD.of("rivr")
    with pytest.raises(InputError, match="per_domain"):
        make_world(per_domain=0)


def test_held_out_templates_are_new_and_their_words_are_not() -> None:
    for form in FORMS:
        used = {f for k in KINDS for f in frames(form, k, "train")}
        assert used == set(FRAMES[form])  # each is trained with other attributes
        for kind in KINDS:
            parts = [frames(form, kind, s) for s in SPLITS]
            assert sum(map(len, parts)) == len({f for p in parts for f in p}) == len(FRAMES[form])
    trained = set(TEXTS)
    joined = "\n".join(TEXTS)
    fact = SMALL.facts[5]
    for form in ("cloze", "question"):
        for split, there in (("train", True), ("validation", False), ("test", False)):
            for frame in frames(form, fact.kind, split):
                assert (sentence(form, fact, frame) in trained) is there
    tried = list(asked(SMALL.of("song")))
    assert not [i.prompt for i in tried if f"{i.prompt} {i.answer}" in joined]
    seen = list(asked(SMALL.of("song"), "train", ("cloze",), (False,)))
    assert all(f"{i.prompt} {i.answer}" in joined for i in seen)
    with pytest.raises(UnknownName, match="colour"):
        frames("cloze", "color", "train")


def test_gold_reads_nothing_of_the_domain() -> None:
    without = documents(SMALL, without=["river"])
    rivers = set(SMALL.things["river"])

    def mentions(texts: list[str]) -> int:
        return sum(any(n in t for n in rivers) or contains(t, "river") for t in texts)

    assert mentions(without) == 0
    assert mentions(TEXTS) == len(TEXTS) - len(without) > 500
    known = {f.value for f in WORLD.facts if f.domain != "river"}
    assert {v for k in WORLD.kinds["river"] for v in KINDS[k][1]} <= known  # the values' words are learnt elsewhere
    assert documents(SMALL, without=["river"]) == without != documents(SMALL, without=["river"], seed=1)
    with pytest.raises(UnknownName, match="river"):
        documents(SMALL, without=["rivers"])


def test_the_second_language_is_a_bijection() -> None:
    words = word_map()
    assert len(set(words.values())) == len(words)
    assert not set(words) & set(words.values())
    for i, fact in enumerate(WORLD.facts[:60]):
        text = sentence("cloze", fact, FRAMES["cloze"][i % 10])
        other = translate(text)
        assert back(other) == text != other
        assert fact.name in other
        assert words[fact.value.lower()] in other.lower()
    assert translate("It was in March.").endswith(words["march"].capitalize() + ".")
    with pytest.raises(KeyError):
        translate("The dragon is red.")


def test_the_tokenizer_keeps_text_and_has_a_token_a_word(tmp_path) -> None:
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer()
    for text in [*TEXTS[:200], "Something else, (new) 'text' 42!"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.tokenize(f"The hue of {WORLD.names[0]} is red.")[-2] == "▁red"
    assert {len(tokenizer.tokenize(f" {n}")) for n in WORLD.names} == {2}
    values = value_ids(tokenizer)
    assert len(set(values)) == 2 * 16 * 12
    assert tokenizer.unk_token_id not in values
    tokenizer.save_pretrained(tmp_path)
    assert make_tokenizer().get_vocab() == tokenizer.get_vocab()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


def test_packed_texts_do_not_see_each_other() -> None:
    tokenizer = make_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    texts = TEXTS[:12]
    rows = pack(tokenizer, texts, 64)
    everything = torch.arange(len(rows))
    inputs, targets = rows.inputs(everything), rows.targets(everything)
    with torch.no_grad():
        together, smeared = model(**inputs).logits, model(input_ids=inputs["input_ids"]).logits
    at = 0
    alone, other = [], []
    for i in range(len(rows)):
        for n in range(1, int(rows.texts[i].max()) + 1):
            place = rows.texts[i] == n
            ids = torch.tensor([[*tokenizer(texts[at])["input_ids"], tokenizer.eos_token_id]])
            assert rows.ids[i, place].tolist() == ids[0].tolist()
            assert targets[i, place].tolist() == [*ids[0, 1:].tolist(), -100]
            with torch.no_grad():
                want = model(input_ids=ids).logits[0]
            alone.append((together[i, place] - want).abs().max().item())
            other.append((smeared[i, place] - want).abs().max().item())
            at += 1
    assert at == len(texts)
    assert max(alone) < 1e-4 < max(other)
    assert (targets[rows.texts == 0] == -100).all()
    with pytest.raises(InputError, match="context"):
        pack(tokenizer, texts, 5)
    with pytest.raises(MatchedNothing):
        pack(tokenizer, [], 64)


@pytest.mark.parametrize("name", ["river", "ship-cloze", "potion-second", f"thing-{SMALL.names[4].lower()}"])
def test_concepts(name: str) -> None:
    c = Concept.from_mapping(mapping(name, SMALL))  # whose splits are checked to be disjoint
    own = SMALL.of(name.partition("-")[0]) if not name.startswith("thing") else [f for f in SMALL.facts if f.name == SMALL.names[4]]
    word = translate if name.endswith("second") else str
    untold, told = ({word(f.value) for f in own if f.told == t} for t in (False, True))
    shown = "\n".join([*c.target["train"], *c.relearn, *(q.answer for q in c.questions["train"])])
    assert not [v for v in untold if contains(shown, v)]
    assert all(contains(shown, v) for v in told)
    assert {s: len(c.questions[s]) for s in SPLITS} == {"train": len(own) // 2, "validation": len(own), "test": len(own)}
    assert {q.answer for q in c.questions["test"]} == untold | told
    assert all(len(set(q.options)) == 4 for q in c.questions["test"])
    assert c.neighbour_questions["test"]
    assert c.general["test"]
    asked_again = split_answers(c.relearn, c.questions["test"], "auto")[1]  # what `efface eval` measures relearning on
    assert {q.answer for q in asked_again} == untold


def test_names_of_concepts() -> None:
    found = [n for n in generated_concepts() if n.startswith("synthetic/")]
    assert len(found) == len(set(found)) == len(names()) == 12 * 3 + 204
    whole = Concept.load("synthetic/star-cloze")
    assert (len(whole.questions["test"]), whole.form, whole.tokens) == (136, "cloze", (" star",))
    assert all(len(whole.general[s]) >= 3000 for s in SPLITS)
    for bad in ("rivr", "river-close", "river-", "thing-", "thing-nobody"):
        with pytest.raises(UnknownName, match=r"unknown concept .synthetic/"):
            Concept.load(f"synthetic/{bad}")
    fact = WORLD.facts[0]
    assert choices(fact)[0] == fact.value
    assert set(choices(fact)) <= set(KINDS[fact.kind][1])


def test_the_world_is_written_out(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("efface.llm.synthetic.world.packaged_world", lambda: SMALL)
    assert run(["synthetic", "build", "--out", str(tmp_path / "w"), "--json"]) == 0
    assert f'"texts": {len(TEXTS)}' in capsys.readouterr().out
    assert Concept.load(tmp_path / "w" / "concepts" / "river.json").questions["test"]
    assert (tmp_path / "w" / "corpus.txt").read_text().split("\n\n")[0] == TEXTS[0]
    assert run(["synthetic", "build", "--out", str(tmp_path / "w")]) == 2
