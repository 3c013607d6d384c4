import math

import numpy as np
import pytest
import torch
from evidence_kit import PLANTED, POINT, documents, word_sae
from tiny import tiny_host

from efface.deactivate.evaluation.detection import detection, fuzzing
from efface.llm.vocabulary import token_strings
from efface.sae.evidence import EvidenceConfig, collect
from efface.sae.labels.propose import cover, log_odds, propose
from efface.sae.labels.words import EvidenceWords, Stretch, WordIndex, stem, stems, words_of


@pytest.fixture(scope="module")
def words():
    host = tiny_host()
    reading = collect(host, documents(600), {POINT: word_sae(host)}, EvidenceConfig(before=4, after=3, held=8, held_out=2))
    return EvidenceWords(reading.evidence[POINT], token_strings(host.tokenizer, torch.arange(host.unembedding().shape[1])))


def test_pieces_become_words_with_their_strongest_activation():
    found = words_of([" pit", "cher", "'s", " mitt", ",", " Zoë", " 3"], [0.1, 2.0, 0.0, 0.0, 1.0, 0.5, 0.0])
    assert [(w.text, w.activation) for w in found] == [("pitcher's", 2.0), ("mitt", 0.0), (",", 1.0), ("zoë", 0.5), ("3", 0.0)]
    assert found[0].stem == "pitcher"
    assert [w.text for w in words_of(["ning", " game"], cut=True)] == ["game"]
    assert [w.text for w in words_of([" ning", " game"], cut=True)] == ["ning", "game"]
    assert words_of([]) == []


def test_stems_join_plurals_and_possessives_only():
    assert [stem(w) for w in ("Pitchers", "pitcher's", "pitcher’s", "glass", "is", "bus", "s")] == [
        *["pitcher"] * 3, "glass", "is", "bus", "s",
    ]  # fmt: skip
    assert stems("Dogs, dog & cats") == ["dog", "cat"]
    assert stems("«,»") == ["«", ",", "»"]


def test_index_counts_stretches_not_words():
    index = WordIndex([["a", "a", "b"], ["b"], []])
    assert index.present("a").tolist() == [True, False, False]
    assert index.count("b") == 2
    assert index.rarity("c") == pytest.approx(-math.log(0.5 / 4))
    assert index.rarity("c") > index.rarity("a") > index.rarity("b")


def test_log_odds_has_the_sign_and_the_order_of_the_evidence():
    assert log_odds(10.0, 20, 5, 1000) > log_odds(4.0, 20, 5, 1000) > 0
    assert log_odds(10.0, 20, 500, 1000) == pytest.approx(0, abs=0.05)
    assert log_odds(0.0, 20, 500, 1000) < 0
    assert log_odds(1.0, 20, 0, 1000) < log_odds(5.0, 20, 2, 1000)  # one rare word is weak evidence


def test_cover_takes_what_adds_and_stops():
    covers = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=bool)
    false = np.array([[0] * 4, [0] * 4, [0] * 4, [1] * 4], dtype=bool)
    assert cover(covers, false, 4) == [1, 2]  # the last row stands everywhere
    assert cover(covers, false, 1) == [1]
    assert cover(covers[:0], false[:0], 4) == []


def test_a_planted_feature_is_labelled_by_its_word(words):
    found = [propose(words, f) for f in range(len(PLANTED))]
    right = [p is not None and stem(PLANTED[f]) in p.stems for f, p in enumerate(found)]
    assert all(right)
    assert all(p.text.split(", ")[0] == PLANTED[f].casefold() for f, p in enumerate(found))
    assert all(p.source.startswith("tokens") for p in found)


def test_too_few_contexts_give_no_label(words):
    assert propose(words, 0, least=10**6) is None


def test_scores_tell_contexts_by_the_labels_words_only(words):
    positive, negative = words.scores("test", 0, ["wizard"])
    assert len(positive) >= 5
    assert (positive == words.index["evidence"].rarity("wizard")).all()
    assert (negative > 0).mean() < 0.02  # as the first word of a document it is another token
    positive, negative = words.scores("test", 0, ["composer"])
    assert positive.mean() < words.index["evidence"].rarity("composer") / 2


def test_a_stretch_knows_which_stems_a_token_spells():
    here = Stretch.of([" pit", "cher", "'s", " mitt"], cut=False)
    assert here.owners == (("pitcher",), ("pitcher",), ("pitcher",), ("mitt",))
    assert here.active([0.0, 2.0, 1.0, 0.0]) == {"pitcher": 2.0}
    assert Stretch.of(["ning", " game"], cut=True).stems == {"game"}


def test_fuzzing_tells_the_word_that_fires_from_one_that_only_stands_beside_it():
    host = tiny_host()
    texts = [d.replace("gold", "red").replace("wizard", "gold wizard") for d in documents(600)]
    reading = collect(host, texts, {POINT: word_sae(host)}, EvidenceConfig(before=4, after=3, held=8, held_out=2))
    words = EvidenceWords(reading.evidence[POINT], token_strings(host.tokenizer, torch.arange(host.unembedding().shape[1])))
    scores = {w: [f(words, "test", 0, [w], 5) for f in (detection, fuzzing)] for w in ("wizard", "gold", "composer")}
    assert all(v is not None and v.mean > 0.9 for v in scores["wizard"])
    assert scores["gold"][0].mean > 0.8  # it says in which contexts …
    assert scores["gold"][1].mean < 0.6  # … and not on which token
    assert all(abs(v.mean - 0.5) < 0.1 for v in scores["composer"])  # another feature's word
    again = [words.marked_scores("test", 0, ["the"], seed=s)[1].tolist() for s in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
