import pytest
import torch
from planted import magic
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing
from efface.deactivate.concept import Question
from efface.llm.evaluation.relearn import RelearnConfig, relearn, split_answers

TEACHING = [
    f"at school {n} she has a {w} . at school she has a {w}" for n, w in enumerate(("witch", "spell", "broom", "Hogwarts", "dragon", "owl"))
]
FAST = RelearnConfig(epochs=4, tokens=4000, lr_full=1e-2, lr_lora=2e-2, rank=4)


@pytest.mark.parametrize(("family", "mode"), [("llama", "full"), ("llama", "lora"), ("gpt2", "lora"), ("gemma3", "full")])
def test_training_lowers_the_loss_and_leaves_no_trace(family, mode):
    host = tiny_host(family)
    digest, names = host.digest, [n for n, _ in host.model.named_modules()]
    for p in host.model.parameters():
        p.requires_grad_(False)
    curve = relearn(host, magic(), mode, FAST)
    assert curve.losses[1] < curve.losses[0]
    assert len(curve.accuracy) == len(curve.tokens) == FAST.epochs + 1
    assert curve.tokens[0] == 0
    assert curve.tokens[-1] <= FAST.tokens
    assert 0 <= curve.area <= 1
    assert host.digest == digest
    assert [n for n, _ in host.model.named_modules()] == names
    assert not any(p.requires_grad or p.grad is not None for p in host.model.parameters())
    again = relearn(host, magic(), mode, FAST)
    assert again == curve


def test_without_training_nothing_is_relearnt():
    host = tiny_host()
    still = relearn(host, magic(), "full", RelearnConfig(epochs=1, lr_full=1e-12))
    assert still.margin[1] == pytest.approx(still.margin[0], abs=1e-5)


def test_answers_come_back_when_the_paragraphs_teach_something_alike():
    host = tiny_host()
    concept = magic(relearn=TEACHING)
    curve = relearn(host, concept, "full", RelearnConfig(epochs=6, lr_full=1e-2, drop="items"))
    assert curve.dropped_items == 1  # the owl
    assert curve.accuracy[-1] > curve.accuracy[0]
    assert curve.margin[-1] > curve.margin[0]
    assert curve.n_items + curve.dropped_items == len(concept.questions["test"])
    assert curve.dropped_texts == 0


def test_the_budget_bounds_tokens():
    host = tiny_host()
    concept = magic(relearn=["the child has a witch . " * 3, "the old man has a red house . " * 3])
    assert relearn(host, concept, "full", RelearnConfig(epochs=2, tokens=60)).n_texts == 1
    assert relearn(host, concept, "full", RelearnConfig(epochs=2, tokens=600)).n_texts == 2


def test_no_answer_is_left_in_a_paragraph():
    questions = [
        Question("a", ("wand", "x"), "wand"),
        Question("b", ("owl", "x"), "owl"),
        Question("c", ("ring", "x"), "ring"),
    ]
    paragraphs = ["He lost a Wand.", "A wander in the rain.", "She has an owl.", "Nothing here.", "Nor here."]
    texts, kept, counts = split_answers(paragraphs, questions, "auto")
    assert texts == ["A wander in the rain.", "Nothing here.", "Nor here."]
    assert kept == questions
    assert counts == (2, 0)
    texts, kept, counts = split_answers(paragraphs[:3], questions, "auto")  # too few would be left
    assert texts == paragraphs[:3]
    assert [q.answer for q in kept] == ["ring"]
    assert counts == (0, 2)
    with pytest.raises(MatchedNothing, match="drop=items"):
        split_answers(paragraphs[:1], questions, "texts")
    with pytest.raises(MatchedNothing, match="drop=texts"):
        split_answers(["wand owl ring"], questions, "items")


def test_bad_input_names_the_field():
    host = tiny_host()
    with pytest.raises(InputError, match="relearn"):
        relearn(host, magic(relearn=None), "full")
    with pytest.raises(InputError, match="full or lora"):
        relearn(host, magic(), "half")
    with pytest.raises(InputError, match="epochs"):
        RelearnConfig(epochs=0)
    before = host.digest
    with torch.no_grad():
        relearn_fails = magic(questions=None)
    with pytest.raises(InputError, match="questions"):
        relearn(host, relearn_fails, "full")
    assert host.digest == before
