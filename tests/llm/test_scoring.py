import math

import pytest
import torch
from planted import magic
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing, NumericsError
from efface.deactivate.concept import Question
from efface.llm.evaluation.metrics import Measured, coherence, fall, figures, kept
from efface.llm.evaluation.scoring import Item, Scores, Suppressed, contains, score_questions
from efface.llm.evaluation.texts import TextFigures, continuation_texts, cut_text, text_figures


@pytest.mark.parametrize(("form", "prompt"), [("question", "Question: {}\nAnswer:"), ("cloze", "{}")])
def test_scores_are_mean_logprobs_computed_by_hand(form, prompt):
    host = tiny_host()
    question = Question("she has a", ("wand", "old red house"), "wand")
    (item,) = score_questions(host, [question], form).items
    for option, score in zip(item.options, item.scores, strict=True):
        p, whole = host.token_ids([prompt.format("she has a"), prompt.format("she has a") + f" {option}"])
        assert whole[: len(p)] == p
        with torch.no_grad():
            logits = host.logits(torch.tensor([whole]), torch.ones(1, len(whole), dtype=torch.long))[0].log_softmax(-1)
        by_hand = [float(logits[t - 1, whole[t]]) for t in range(len(p), len(whole))]
        assert len(by_hand) == len(option.split())
        assert score == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-4)
    other = score_questions(host, [question], "cloze" if form == "question" else "question").items[0]
    assert dict(zip(other.options, other.scores, strict=True)) != dict(zip(item.options, item.scores, strict=True))


def item(scores: tuple[float, ...], right: int = 0, suppressed: bool = False) -> Item:
    return Item("q", tuple("abcd"[: len(scores)]), scores, right, suppressed)


def part(scores: Scores, suppressed: bool) -> Scores:
    found = scores.where(suppressed)
    assert found is not None
    return found


def test_margin_ties_chance_and_below_chance():
    scores = Scores((item((-1.0, -2.0, -4.0)), item((-1.0, -1.0, -3.0)), item((-5.0, -1.0, -1.0), suppressed=True)))
    assert scores.items[0].margin == 2.0
    assert [i.credit for i in scores.items] == [1.0, 0.5, 0.0]
    assert scores.accuracy == 0.5
    assert scores.chance == pytest.approx(1 / 3)
    missed, rest = part(scores, True), part(scores, False)
    assert missed.below_chance == missed.clipped == pytest.approx(1 / 3)
    assert rest.n == 2
    assert rest.below_chance == 0
    assert Scores((item((0.0, 0.0)),)).where(True) is None


def test_right_answer_has_no_fixed_place_and_order_changes_no_score():
    host, questions = tiny_host(), magic().questions["test"]
    runs = [score_questions(host, questions, "cloze", seed=s) for s in (0, 1)]
    assert len({i.right for i in runs[0].items}) > 1
    assert [i.right for i in runs[0].items] != [i.right for i in runs[1].items]
    assert runs[0].margins == pytest.approx(runs[1].margins, abs=1e-6)


def test_suppressed_answers_are_told_from_unseen_ones():
    concept = magic()
    words = Suppressed.of(concept)
    assert words.holds("wand")  # a token
    assert words.holds("black wand")
    assert words.holds("Castle")  # in the train texts
    assert not words.holds("dragon")
    assert not words.holds("wands")
    assert Suppressed.of(concept, [" dragon"]).holds("dragon")
    scores = score_questions(tiny_host(), concept.questions["test"], "cloze", concept=concept)
    assert part(scores, True).n > 0
    assert part(scores, False).n > 0
    assert contains("a wand.", "wand")
    assert not contains("a wander", "wand")


def test_nan_unknown_form_and_bad_items_are_errors():
    host = tiny_host()
    question = Question("she has a", ("wand", "house"), "wand")
    with pytest.raises(InputError, match="question or cloze"):
        score_questions(host, [question], "essay")
    with pytest.raises(MatchedNothing):
        score_questions(host, [], "cloze")
    with pytest.raises(InputError, match="must be one of"):
        score_questions(host, [Question("q", ("a", "b"), "c")], "cloze")
    with torch.no_grad():
        host.down_proj(1)[1].fill_(math.nan)
    with pytest.raises(NumericsError):
        score_questions(host, [question], "cloze")
    with pytest.raises(NumericsError):
        text_figures(host, ["the old house"])


@pytest.mark.parametrize("bos", [True, False])
def test_bits_per_byte_and_perplexity_by_hand(bos):
    host = tiny_host(bos=bos)
    text = "the old house by the river"
    ids, mask = host.encode_texts([text])
    with torch.no_grad():
        nll = float(host.loss([text])) * (ids.shape[1] - 1)
    found = text_figures(host, [text])
    assert found.tokens == (6 if bos else 5,)
    assert found.nll[0] == pytest.approx(nll, rel=1e-5)
    assert found.bytes == (len(text) if bos else len(text) - len("the"),)
    assert found.bits_per_byte == pytest.approx(nll / math.log(2) / found.bytes[0], rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nll / found.tokens[0]), rel=1e-5)
    assert mask.all()


def test_texts_are_cut_and_continued():
    host = tiny_host()
    text = "the old house by the river"
    assert cut_text(host, text, 3) == "the old house"
    assert cut_text(host, text, 30) == text
    assert sum(text_figures(host, [text, text], max_tokens=3).tokens) == 6
    (written,) = continuation_texts(host, [text], prompt_tokens=2, new_tokens=5)
    assert written.startswith("the old")
    assert len(written) > len("the old")
    with pytest.raises(MatchedNothing):
        text_figures(host, [""])


def measured(margins: list[float], near: list[float], bpb: float) -> Measured:
    def scores(values: list[float]) -> Scores:
        return Scores(tuple(item((m, 0.0), suppressed=n % 2 == 0) for n, m in enumerate(values)))

    text = TextFigures((bpb * math.log(2) * 10,), (5,), (10,))
    return Measured(scores(margins), scores(near), {"neutral": text, "continuation": text})


def test_figures_by_hand():
    base = measured([2.0, 2.0, 4.0, 4.0], [1.0, 3.0], 1.0)
    edited = measured([0.5, 0.5, 1.0, 1.0], [1.0, 2.0], 1.25)
    found = figures(edited, base)
    assert found["efficacy"].mean == pytest.approx(0.75)
    assert found["specificity"].mean == pytest.approx(0.75)
    assert found["coherence"].mean == pytest.approx(0.8)
    assert found["hm_local"].mean == pytest.approx(3 / (1 / 0.75 + 1 / 0.75 + 1 / 0.8))
    low, high = found["efficacy"].interval
    assert low <= 0.75 <= high
    assert found["bpb_neutral"].mean == pytest.approx(1.25)
    assert found["accuracy"].mean == 1.0
    same = figures(base, base)
    assert same["efficacy"].mean == 0.0
    assert same["specificity"].mean == same["coherence"].mean == 1.0
    assert same["hm_local"].mean < 1e-4


def test_figures_of_a_host_that_knows_nothing_are_left_out():
    nothing = measured([-1.0, 0.5], [1.0, 1.0], 1.0)
    found = figures(nothing, nothing)
    assert "efficacy" not in found
    assert "hm_local" not in found
    assert "specificity" in found
    assert fall([1.0], [-1.0]) is None
    assert fall([3.0], [1.0]) == 0.0
    assert kept([-1.0], [1.0]) == 0.0
    assert coherence({}, {}) is None
