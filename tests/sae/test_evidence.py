import itertools

import pytest
import torch
from evidence_kit import POINT, dense, documents, word_sae
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing, NumericsError
from efface.sae.evidence import EvidenceConfig, collect, nearest_features
from efface.sae.evidence.active import Active, priority
from efface.sae.evidence.background import Silence
from efface.sae.evidence.firing import firing_tokens
from efface.sae.evidence.passages import PARTS, part_of
from efface.sae.evidence.tallies import bin_edges
from efface.sae.sparse import SparseActs

SMALL = EvidenceConfig(before=3, after=2, top=4, reservoir=10, held=6, background=40)


@pytest.fixture(scope="module")
def read():
    host = tiny_host()
    sae, texts = word_sae(host), documents(80)
    rows = [dense(host, sae, t) for t in texts]
    return host, sae, texts, rows


def evidence_of(read, config=SMALL, texts=None):
    host, sae, own, _ = read
    reading = collect(host, own if texts is None else texts, {POINT: sae}, config)
    return reading, reading.evidence[POINT]


def parts(texts):
    return [part_of(t, SMALL.held_out) for t in texts]


def test_counts_and_histogram_equal_a_dense_oracle(read):
    reading, e = evidence_of(read)
    _, _, texts, rows = read
    shown = torch.cat([a for a, p in zip(rows, parts(texts), strict=True) if p == 0])
    assert 0 < len(shown) < sum(map(len, rows))
    assert reading.tokens.tolist() == [sum(len(a) for a, q in zip(rows, parts(texts), strict=True) if q == p) for p in range(3)]
    assert int(reading.counts.sum()) == len(shown)
    assert e.tallies.fired.equal((shown > 0).sum(0))
    assert torch.allclose(e.tallies.total, shown.double().sum(0), atol=1e-4)
    assert torch.allclose(e.tallies.max, shown.amax(0), atol=1e-5)
    assert e.tallies.histogram.sum(1).equal(e.tallies.fired)
    edges = bin_edges()
    for f in (0, 20):
        counts = e.tallies.histogram[f]
        inside = [((shown[:, f] >= a) & (shown[:, f] < b)).sum() for a, b in itertools.pairwise(edges)]
        assert (counts - torch.stack(inside)).abs().sum() <= 2  # a value on an edge may fall on either side


def test_long_documents_are_cut_and_positions_run_on(read):
    host, sae, texts, _ = read
    text = " ".join(texts[:6])
    config = EvidenceConfig(before=2, after=2, context=16, forward_tokens=32, held_out=10**6)
    e = collect(host, [text], {POINT: sae}, config).evidence[POINT]
    whole = dense(host, sae, text)
    assert e.tallies.fired.equal((whole > 0).sum(0))  # embeddings do not depend on the window
    for c in (c for f in range(sae.cfg.d_sae) for c in e.top.contexts(f)):
        assert c.tokens[c.peak] == host.tokenizer(text, add_special_tokens=False)["input_ids"][c.position]


def test_top_contexts_are_the_true_top(read):
    _, e = evidence_of(read)
    _, _, texts, rows = read
    for f in range(24):
        peaks = sorted((float(a[:, f].amax()) for a, p in zip(rows, parts(texts), strict=True) if p == 0), reverse=True)
        want = [v for v in peaks if v > 0][: SMALL.top]
        found = e.top.contexts(f)
        assert [c.value for c in found] == pytest.approx(want, abs=1e-5)
        for c in found:
            values = rows[c.document][:, f]
            first = c.position - c.peak
            assert values[c.position] == pytest.approx(c.value, abs=1e-5)
            assert values[c.position] == values.amax()
            assert list(c.activations) == pytest.approx(values[first : first + len(c.tokens)].tolist(), abs=1e-5)
            assert len(c.tokens) <= SMALL.span
            assert first == max(0, c.position - SMALL.before)


def test_quantile_contexts_lie_in_their_quantile(read):
    config = EvidenceConfig(reservoir=80, quantiles=4)
    _, e = evidence_of(read, config)
    _, _, texts, rows = read
    for f in (0, 5, 18, 22):
        peaks = torch.tensor([v for a, p in zip(rows, parts(texts), strict=True) if p == 0 and (v := float(a[:, f].amax())) > 0])
        found = e.quantiles(f)
        assert len(found) == len(peaks)
        for q, c in found:
            below, upto = int((peaks < c.value - 1e-6).sum()), int((peaks <= c.value + 1e-6).sum())
            assert below * 4 // len(peaks) <= q <= (upto - 1) * 4 // len(peaks)


def test_reservoir_is_an_even_draw_that_no_batching_changes(read):
    host, sae, texts, rows = read
    _, e = evidence_of(read)
    other = collect(host, texts, {POINT: sae}, EvidenceConfig(**{**vars(SMALL), "forward_tokens": 130})).evidence[POINT]
    for f in (17, 21):
        place = {(d, int(a[:, f].argmax())) for d, (a, p) in enumerate(zip(rows, parts(texts), strict=True)) if p == 0 and a[:, f].any()}
        document, position = torch.tensor(sorted(place)).T
        keys = priority(SMALL.seed, document, position, torch.full_like(document, f))
        want = {tuple(torch.stack([document, position], 1)[i].tolist()) for i in keys.topk(SMALL.reservoir).indices}
        assert {(c.document, c.position) for _, c in e.quantiles(f)} == want
        assert {(c.document, c.position) for _, c in other.quantiles(f)} == want


def test_priorities_are_spread_evenly_and_follow_the_seed():
    n = torch.arange(4000)
    keys = priority(0, n, n % 7)
    assert keys.histc(10, 0, 1).sub(400).abs().max() < 100
    assert not keys.equal(priority(1, n, n % 7))
    assert keys[:5].equal(priority(0, n[:5], n[:5] % 7))


def test_held_out_documents_serve_scoring_only_and_silence_is_true(read):
    _, e = evidence_of(read)
    _, _, texts, rows = read
    part = parts(texts)
    assert set(part) == {0, 1, 2}
    for f in range(24):
        assert all(part[c.document] == 0 for c in e.top.contexts(f) + e.reservoir.contexts(f))
        for number, name in enumerate(PARTS[1:], 1):
            for c in e.held[name].contexts(f):
                assert part[c.document] == number
                assert rows[c.document][c.position, f] == pytest.approx(c.value, abs=1e-5)
                assert len(c.tokens) == SMALL.span
    for number, name in enumerate(PARTS):
        tiles = e.background[name].tiles()
        quiet = Silence(tiles)
        assert tiles
        for t, silent in zip(tiles, quiet.of(3).tolist(), strict=True):
            assert part[t.document] == number
            stretch = rows[t.document][t.position : t.position + len(t.tokens)]
            assert t.features.tolist() == (stretch > 0).any(0).nonzero()[:, 0].tolist()
            assert silent == (not (stretch[:, 3] > 0).any())


def test_what_is_held_does_not_grow_with_the_corpus(read):
    _, few = evidence_of(read, texts=documents(60, seed=1))
    _, many = evidence_of(read, texts=documents(500, seed=1))
    assert many.nbytes == few.nbytes
    assert all(len(b) <= SMALL.background for b in many.background.values())
    assert max(len(many.reservoir.contexts(f)) for f in range(24)) == SMALL.reservoir
    assert many.tallies.fired.sum() > 5 * few.tallies.fired.sum()


def test_firing_tokens_name_the_planted_word(read):
    host, *_ = read
    reading, e = evidence_of(read)
    best = firing_tokens(e, reading, 0, 3)[0]
    assert host.tokenizer.decode([best.id]) == " wizard"
    assert best.share == pytest.approx(1.0)
    assert best.log_odds > 2
    assert len(firing_tokens(e, reading, 20, 3)) == 3


def test_neighbours_equal_brute_force(monkeypatch):
    monkeypatch.setattr("efface.sae.evidence.neighbours.ELEMENTS", 200)
    W = torch.randn(37, 8) * torch.rand(37, 1)
    ids, cosines = nearest_features(W, 5)
    unit = torch.nn.functional.normalize(W, dim=1)
    all_pairs = (unit @ unit.T).fill_diagonal_(-2)
    assert torch.allclose(cosines, all_pairs.topk(5, 1).values, atol=1e-5)
    assert ids.equal(all_pairs.topk(5, 1).indices)
    assert nearest_features(W[:3], 5)[0].shape == (3, 2)


def test_what_cannot_be_collected_is_an_error(read):
    host, sae, texts, _ = read
    with pytest.raises(MatchedNothing, match="no token"):
        collect(host, [], {POINT: sae})
    with pytest.raises(MatchedNothing, match="no SAE"):
        collect(host, texts, {})
    with pytest.raises(InputError, match="reservoir"):
        EvidenceConfig(reservoir=2)
    with pytest.raises(InputError, match="top must be at least 1"):
        EvidenceConfig(top=0)
    nan = SparseActs(torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32), torch.tensor([torch.nan]), 4)
    with pytest.raises(NumericsError):
        Active(nan)
