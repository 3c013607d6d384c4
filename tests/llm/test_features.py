import json

import pytest
import torch
from planted import magic, planted_sae
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing
from efface.llm.features import SPLITS, FeatureConfig, auroc, features
from efface.llm.scanning import scan
from efface.llm.vocabulary import extreme_tokens, single_tokens, tokens_among_extremes


def test_extreme_tokens_match_full_projection(monkeypatch):
    monkeypatch.setattr("efface.llm.vocabulary.ELEMENTS", 1 << 12)
    directions, U = torch.randn(37, 8), torch.randn(8, 70001)
    up, down = extreme_tokens(directions, U, 5)
    logits = directions @ U
    assert torch.equal(logits.gather(1, up), logits.topk(5, 1).values)
    assert torch.equal(logits.gather(1, down), logits.topk(5, 1, largest=False).values)


def test_sieve_finds_exactly_the_features_that_promote_a_token():
    directions, U = torch.randn(300, 8), torch.randn(8, 4096)
    tokens = torch.tensor([7, 500, 4000])
    top, bottom = tokens_among_extremes(directions, U, tokens, 30)
    logits = directions @ U
    for found, largest in ((top, True), (bottom, False)):
        ids = logits.topk(30, 1, largest=largest).indices
        expected = (ids[:, :, None] == tokens).any(1)
        assert torch.equal(found, expected)
        assert 0 < int(found.sum()) < found.numel()


def test_single_tokens_are_told_from_split_ones():
    one, split = single_tokens(tiny_host().tokenizer, [" wizard", " wizardry"])
    assert list(one) == [" wizard"]
    assert split == [" wizardry"]


def test_auroc_counts_ties_half():
    pos, neg = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert auroc(pos, neg).tolist() == [0.875, 0.5]


def test_scan_leaves_out_padding_and_specials_and_finds_maxima():
    host = tiny_host()
    sae = planted_sae(host)
    point = "layers.1.mlp_out"
    texts = ["the wizard", "she saw the castle by the road"]
    found = scan(host, texts, {point: sae}, batch=2)[point]
    assert found.n_tokens == 2 + 7
    for i, text in enumerate(texts):
        ids, mask = host.encode_texts([text])
        a = sae.encode(host.activations(ids, mask, [point])[point][host.keep_mask(ids, mask)])
        assert torch.allclose(found.maxima(torch.arange(24))[i], a.amax(0), atol=1e-5)
    assert scan(host, texts, {point: sae}, batch=1)[point].fired.equal(found.fired)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_planted_feature_is_first_with_evidence_on_every_split(family):
    host = tiny_host(family, hidden_size=64)
    saes = [planted_sae(host, layer) for layer in (0, 1)]
    report = features(host, magic(), saes, splits=SPLITS)
    assert features(host, magic(), saes).features[0].auroc["test"] is None  # nobody asked
    best = report.features[0]
    assert best.id == 0
    assert best.direction == "suppress_positive"
    assert best.rho is not None
    assert best.rho > 2
    for area in (best.auroc["validation"], best.auroc["test"], report.set_auroc["test"]["neighbours"]):
        assert area is not None
        assert area > 0.9
    assert report.triggers["target"] > report.triggers["neighbours"]
    assert all(f.id != 1 or f.direction == "suppress_negative" for f in report.features[:3])  # the neighbours' feature is not the concept's
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_dozen_sentences_and_a_name_are_enough():
    host = tiny_host(hidden_size=64)
    concept = magic(
        tokens=None,
        target={"train": list(magic().target["train"])},
        questions=None,
        neighbour_questions=None,
        neighbours=None,
    )
    report = features(host, concept, [planted_sae(host)])
    assert report.features[0].id == 0
    assert report.threshold is None or report.triggers == {}


def test_unfit_saes_and_absent_evidence_are_errors():
    host = tiny_host()
    sae = planted_sae(host)
    with pytest.raises(InputError, match="two SAEs"):
        features(host, magic(), [sae, sae])
    with pytest.raises(InputError, match="no SAE given"):
        features(host, magic(), [])
    with pytest.raises(InputError, match="another model"):
        features(tiny_host(seed=1), magic(), [sae])
    assert features(tiny_host(seed=1), magic(), [sae], FeatureConfig(min_rho=1.0), other_model=True).features
    with pytest.raises(InputError, match="dozen"):
        features(host, magic(target={"test": ["a wizard"]}), [sae])
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    with pytest.raises(MatchedNothing, match="no feature carries"):
        features(host, magic(), [sae])
