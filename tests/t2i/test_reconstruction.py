"""What an SAE does to prompts and pictures, and which positions it is trained on."""

import pytest
import torch
from icon_kit import PixelJudge
from t2i._kit import SIZE, sae_at, tiny_image_host

from efface.base.errors import MatchedNothing, UnknownName
from efface.sae import SAE, SAEConfig, TrainConfig
from efface.sae.recipes import train_on_host
from efface.t2i.evaluation.reconstruction import embedding_drift, fvu_by_class, image_drift

POINT = "text_encoder.layers.1.resid_post"
PROMPTS = ["a red apple", "a big dog", "the blue bus", "a dog and a cat"]


def perfect(host, sae: SAE) -> SAE:
    """x = relu(x) - relu(-x)."""
    d = sae.cfg.d_in
    big = SAE(SAEConfig("relu", d, 2 * d), dict(sae.card))
    with torch.no_grad():
        eye = torch.eye(d)
        big.W_enc.copy_(torch.cat([eye, -eye], 1))
        big.W_dec.copy_(torch.cat([eye, -eye]))
        big.b_enc.zero_()
        big.b_dec.zero_()
    return big


def test_a_perfect_sae_moves_nothing_and_a_random_one_does():
    host = tiny_image_host("sd")
    good, bad = perfect(host, sae_at(host, POINT)), sae_at(host, POINT)
    fvu = fvu_by_class(host, good, PROMPTS)
    assert set(fvu) == {"own", "eos", "padding"}
    assert max(fvu.values()) < 1e-9 < 0.5 < min(fvu_by_class(host, bad, PROMPTS).values())
    assert embedding_drift(host, good, PROMPTS) < 1e-5 < 0.1 < embedding_drift(host, bad, PROMPTS)
    options = {"steps": 2, "size": SIZE}
    still, moved = (image_drift(host, s, PROMPTS, PixelJudge("object", "A"), **options) for s in (good, bad))
    assert still["reconstruction"] < 0.05 < moved["reconstruction"]
    assert still["other_noise"] == moved["other_noise"] > 0
    with pytest.raises(MatchedNothing):
        image_drift(host, good, PROMPTS[:1], PixelJudge("object", "A"))
    with pytest.raises(MatchedNothing):
        fvu_by_class(host, good, [])


def test_each_class_of_tokens_is_measured_apart():
    host = tiny_image_host("sd")
    sae = perfect(host, sae_at(host, POINT))
    reader = host.reader([POINT])
    ids, mask = reader.pad(reader.token_ids(PROMPTS))
    x = reader.activations(ids, mask, [POINT])[POINT]
    padding = x[~mask.bool()]
    with torch.no_grad():  # a shift that only vectors far along the padding's mean feel
        far = padding.mean(0) - x[reader.keep_mask(ids, mask)].mean(0)
        limit = (x[mask.bool()] @ far).max()
        sae.W_enc[:, 0], sae.b_enc[0] = far, -limit
        sae.W_dec[0] = far * 100
    fvu = fvu_by_class(host, sae, PROMPTS)
    assert fvu["padding"] > 10 * max(fvu["own"], fvu["eos"])


@pytest.mark.parametrize("positions", ["own", "padded", "all"])
def test_positions_are_chosen_and_written_down(positions, tmp_path):
    host = tiny_image_host("sd")
    reader = host.reader([POINT]).covering(positions)
    rows = reader.token_ids(["a big dog"])
    ids, mask = reader.pad(rows)
    own = len(rows[0]) - 1
    assert int(reader.keep_mask(ids, mask).sum()) == {"own": own, "padded": 11, "all": 12}[positions]
    config = TrainConfig(tokens=400, batch=40)
    sae = train_on_host(
        host,
        [f"a {c} {w}" for c in ("red", "big", "blue", "old", "green") for w in ("apple", "dog", "bus", "cat", "house", "sea", "tree")],
        [POINT],
        tmp_path / "sae",
        d_sae=24,
        k=4,
        config=config,
        positions=positions,
    )[POINT]
    policy = sae.card["token_policy"]
    assert (policy["padding"], policy["first_token"]) == {
        "own": ("dropped", "dropped"), "padded": ("kept", "dropped"), "all": ("kept", "kept")
    }[positions]  # fmt: skip
    with pytest.raises(UnknownName, match="padded"):
        reader.covering("padding")


def test_bos_is_not_put_through_an_sae_that_never_saw_it():
    from dataclasses import replace

    from efface.deactivate import DeactivationPart

    host = tiny_image_host("sd")
    sae = sae_at(host, POINT)
    x = host.activations(PROMPTS, [POINT])[POINT]
    part = DeactivationPart(sae, (0,), 1.0, "scale", keep_error=False, spare_first=True)
    assert not torch.allclose(part.deactivate(x)[:, 0], x[:, 0])
    sae.card["token_policy"] = {"first_token": "dropped"}
    after = replace(part).deactivate(x)
    assert torch.equal(after[:, 0], x[:, 0])
    torch.testing.assert_close(after[:, 1:], sae(x)[:, 1:])
