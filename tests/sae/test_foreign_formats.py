"""SAEs as other packages write them: Gemma Scope, sparsify, dictionary_learning; and what is refused of them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from efface.base.errors import ArtefactError, InputError
from efface.sae import SAE
from efface.sae.formats import dictionary_learning

D_IN, D_OUT, D_SAE = 8, 5, 24


@pytest.fixture
def x():
    return torch.randn(32, D_IN)


def arrays(d_out=D_IN):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, d_out), "b_enc": (D_SAE,), "b_dec": (d_out,)}
    made = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    return {**made, "threshold": np.abs(rng.normal(size=D_SAE)).astype(np.float32)}


@pytest.mark.parametrize("d_out", [D_IN, D_OUT])
def test_gemma_scope(d_out, tmp_path, x):
    params = arrays(d_out)
    np.savez(tmp_path / "params.npz", **params)
    t = {k: torch.from_numpy(v) for k, v in params.items()}
    a = x @ t["W_enc"] + t["b_enc"]
    expected = (a * (a > t["threshold"])) @ t["W_dec"] + t["b_dec"]
    for path in (tmp_path, tmp_path / "params.npz"):
        sae = SAE.load(path)
        torch.testing.assert_close(sae(x), expected)
    assert sae.cfg.transcoder == (d_out != D_IN)
    torch.testing.assert_close(SAE.load(sae.save(tmp_path / "ours"))(x), expected)


def test_gemma_scope_refusals(tmp_path):
    path, params = tmp_path / "params.npz", arrays()

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    cases = {
        "plain arrays": {**params, "b_enc": np.array([Evil()], dtype=object)},
        "unknown tensors extra": {**params, "extra": params["b_enc"]},
        "threshold missing": {k: v for k, v in params.items() if k != "threshold"},
        "shape": {**params, "b_enc": params["b_enc"][:3]},
        "NaN or infinity": {**params, "b_enc": params["b_enc"] * np.nan},
        "floating-point": {**params, "b_enc": params["b_enc"].astype(np.int64)},
    }
    for message, values in cases.items():
        np.savez(path, **values)
        with pytest.raises(ArtefactError, match=message):
            SAE.load(tmp_path)
    np.savez(path, **params)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtefactError, match="not a whole npz"):
        SAE.load(path)


@pytest.mark.parametrize("kind", ["auto", "transcode", "skip"])
def test_sparsify(kind, tmp_path, x):
    folder = tmp_path / "layers.3.mlp"
    folder.mkdir()
    t = {
        "encoder.weight": torch.randn(D_SAE, D_IN),
        "encoder.bias": torch.randn(D_SAE),
        "W_dec": torch.randn(D_SAE, D_IN),
    }
    t["b_dec"] = torch.randn(D_IN)
    if kind == "skip":
        t["W_skip"] = torch.randn(D_IN, D_IN)
    values = {
        "activation": "topk",
        "k": 3,
        "transcode": kind != "auto",
        "skip_connection": kind == "skip",
        "d_in": D_IN,
    }
    save_file(t, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(values))
    inside = x if kind != "auto" else x - t["b_dec"]
    top = (inside @ t["encoder.weight"].T + t["encoder.bias"]).relu().topk(3)
    expected = (top.values[..., None] * t["W_dec"][top.indices]).sum(1) + t["b_dec"]
    if kind == "skip":
        expected = expected + x @ t["W_skip"].T
    sae = SAE.load(folder)
    torch.testing.assert_close(sae(x), expected)
    assert sae.card["hook_point"] == "layers.3.mlp"
    for wrong, message in (
        ({"activation": "groupmax"}, "groupmax"),
        ({"k": 0}, "k must"),
        ({"transcode": kind == "auto"}, ""),
    ):
        (folder / "cfg.json").write_text(json.dumps({**values, **wrong}))
        if message:
            with pytest.raises(ArtefactError, match=message):
                SAE.load(folder)
    save_file({k: v for k, v in t.items() if k != "encoder.weight"}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(values))
    with pytest.raises(ArtefactError, match=r"encoder\.weight"):
        SAE.load(folder)


def dl_folder(tmp_path, name, **extra):
    """A folder as dictionary_learning's trainer writes it, with the state dict of one of its classes."""
    linear = {"encoder.weight": torch.randn(D_SAE, D_IN), "decoder.weight": torch.randn(D_IN, D_SAE)}
    bias, out, one = torch.randn(D_SAE), torch.randn(D_IN), torch.rand(D_SAE)
    plain = {"W_enc": linear["encoder.weight"].T, "W_dec": linear["decoder.weight"].T, "b_enc": bias, "b_dec": out}
    k, theta = torch.tensor(3, dtype=torch.int), torch.tensor(0.3)
    states = {
        "AutoEncoder": {**linear, "encoder.bias": bias, "bias": out},
        "AutoEncoderNew": {**linear, "encoder.bias": bias, "decoder.bias": out},
        "GatedAutoEncoder": {**linear, "decoder_bias": out, "gate_bias": bias, "mag_bias": one, "r_mag": -one},
        "AutoEncoderTopK": {**linear, "encoder.bias": bias, "b_dec": out, "k": k, "threshold": theta},
        "BatchTopKSAE": {**linear, "encoder.bias": bias, "b_dec": out, "k": k, "threshold": theta},
        "MatryoshkaBatchTopKSAE": {**plain, "k": k, "threshold": theta, "group_sizes": torch.tensor([4, 20])},
        "JumpReluAutoEncoder": {**plain, "threshold": one},
    }
    torch.save({**states[name], **extra}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": 3, "lm_name": "pythia"}, "buffer": {}}))
    return states[name]


def dl_reference(name, s, x):
    W_enc = s["W_enc"] if "W_enc" in s else s["encoder.weight"].T
    W_dec = s["W_dec"] if "W_dec" in s else s["decoder.weight"].T
    b_dec = next(s[k] for k in ("b_dec", "bias", "decoder_bias", "decoder.bias") if k in s)
    h = (x if name in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - b_dec) @ W_enc
    if name == "GatedAutoEncoder":
        f = (h + s["gate_bias"] > 0) * (s["r_mag"].exp() * h + s["mag_bias"]).relu()
    else:
        a = h + (s["b_enc"] if "b_enc" in s else s["encoder.bias"])
        f = a.relu()
        if name == "AutoEncoderTopK":
            f = torch.zeros_like(f).scatter(1, f.topk(3).indices, f.topk(3).values)
        elif "threshold" in s:
            f = f * (f > s["threshold"])
    return f @ W_dec + b_dec


@pytest.mark.parametrize("name", dictionary_learning.KINDS)
def test_dictionary_learning(name, tmp_path, x):
    state = dl_folder(tmp_path, name)
    sae = dictionary_learning.read(tmp_path)
    expected = dl_reference(name, state, x)
    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(SAE.load(sae.save(tmp_path / "ours"))(x), expected)
    assert sae.card["model"] == "pythia"
    if name == "MatryoshkaBatchTopKSAE":
        assert sae.cfg.groups == (4, 24)


def test_dictionary_learning_refusals(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    dl_folder(tmp_path, "BatchTopKSAE", threshold=torch.tensor(-1.0))
    with pytest.raises(InputError, match="calibrate_threshold"):
        dictionary_learning.read(tmp_path).encode(torch.randn(2, D_IN))
    dl_folder(tmp_path, "AutoEncoder", other=torch.ones(3))
    with pytest.raises(ArtefactError, match="unknown tensors other"):
        dictionary_learning.read(tmp_path)
    torch.save({"encoder.weight": Evil()}, tmp_path / "ae.pt")
    with pytest.raises(ArtefactError, match="more than tensors"):
        dictionary_learning.read(tmp_path)
    dl_folder(tmp_path, "AutoEncoder")
    (tmp_path / "ae.pt").write_bytes((tmp_path / "ae.pt").read_bytes()[:300])
    with pytest.raises(ArtefactError, match="damaged"):
        dictionary_learning.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopk"}}))
    with pytest.raises(ArtefactError, match="AutoEncoderTopK"):
        dictionary_learning.read(tmp_path)


def test_from_pretrained_without_sae_lens_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    with pytest.raises(InputError, match=r"efface\[saelens\]"):
        SAE.from_pretrained("release", "id")
