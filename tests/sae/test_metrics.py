"""Metrics against their formulas on all vectors at once, and where a batch-wise mean would lie."""

import pytest
import torch

from efface.base.errors import InputError, MatchedNothing, NumericsError
from efface.sae import SAE, SAEConfig, evaluate


def small(**options):
    sae = SAE(SAEConfig("topk", 6, 20, k=3, **options))
    with torch.no_grad():
        sae.b_dec.add_(0.3)
    return sae


def test_global_sums_equal_the_formulas_however_the_vectors_are_split():
    sae = small()
    x = torch.randn(100, 6) * torch.linspace(0.1, 5, 100)[:, None] + 2
    y, out = x.double(), sae(x).detach().double()
    got = evaluate(sae, x.split([1, 9, 40, 50]))
    fvu = (y - out).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert got["fvu"] == pytest.approx(float(fvu), rel=1e-9)
    assert got["cosine"] == pytest.approx(float(torch.cosine_similarity(y, out).mean()), rel=1e-6)
    assert got["l2_ratio"] == pytest.approx(float((out.norm(dim=1) / y.norm(dim=1)).mean()), rel=1e-6)
    assert got["relative_bias"] == pytest.approx(float(out.pow(2).sum() / (out * y).sum()), rel=1e-6)
    assert got["l0"] == sae.encode_sparse(x).l0()
    assert got["n"] == 100
    assert evaluate(sae, [x])["fvu"] == pytest.approx(got["fvu"], rel=1e-9)
    means = [float((a - b).pow(2).sum() / (a - a.mean(0)).pow(2).sum()) for a, b in zip(y.split(50), out.split(50), strict=True)]
    assert abs(sum(means) / 2 - got["fvu"]) > 1e-3  # control: a mean of batch figures is another number


def test_fvu_survives_a_huge_mean():
    sae = small()
    x = torch.randn(200, 6, dtype=torch.float32)
    with torch.no_grad():
        near = evaluate(sae, [x])["fvu"]
        sae.b_dec.add_(1000)
    assert evaluate(sae, (x + 1000).split(30))["fvu"] == pytest.approx(near, rel=1e-2)


def test_a_constant_reconstruction_at_the_mean_has_fvu_one():
    sae, x = small(), torch.randn(64, 6)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
        sae.b_enc.fill_(-100.0)
    got = evaluate(sae, [x])
    assert got["fvu"] == pytest.approx(1.0, rel=1e-5)
    assert got["l0"] == 0
    assert got["dead_share"] == 1
    assert got["below_1e-5"] == 1
    assert got["dense"] == 0


def test_dead_share_counts_latents_silent_on_all_batches():
    sae, x = small(), torch.randn(300, 6)
    with torch.no_grad():
        sae.b_enc[:5] = -100.0
    got = evaluate(sae, x.split(100))
    silent = (sae.encode_sparse(x).counts() == 0).float().mean()
    assert got["dead_share"] == pytest.approx(float(silent))
    assert got["dead_share"] >= 5 / 20
    assert got["dense"] > 0


def test_transcoders_are_measured_against_their_target():
    sae = small(d_out=4, skip=True)
    x, y = torch.randn(50, 6), torch.randn(50, 4)
    got = evaluate(sae, [(x, y)])
    assert got["fvu"] == pytest.approx(float((y - sae(x).detach()).pow(2).sum() / (y - y.mean(0)).pow(2).sum()), rel=1e-5)
    with pytest.raises(InputError, match="pairs"):
        evaluate(sae, [x])


def test_what_cannot_be_measured_is_an_error():
    sae, x = small(), torch.randn(10, 6)
    with pytest.raises(MatchedNothing):
        evaluate(sae, [])
    with pytest.raises(InputError, match="alike"):
        evaluate(sae, [torch.ones(8, 6)])
    transcoder = small(d_out=6)
    with pytest.raises(NumericsError):
        evaluate(transcoder, [(x, x / 0)])
