"""Saved and read back: ours, and folders as the other packages write them; then everything that is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.base.errors import ArtefactError, InputError, NumericsError
from efface.sae import SAE, SAEConfig
from efface.sae.config import ARCHITECTURES
from efface.sae.formats import dictionary_learning, native

D_IN, D_OUT, D_SAE = 8, 5, 24
KINDS = {"auto": {}, "transcoder": {"d_out": D_OUT}, "skip": {"d_out": D_OUT, "skip": True}}


def make(architecture, kind="auto", **options):
    sae = SAE(SAEConfig(architecture, D_IN, D_SAE, k=3, threshold_init=0.2, **KINDS[kind], **options))
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn_like(p).abs())
    if architecture in ("batchtopk", "matryoshka"):
        sae.calibrate_threshold([torch.randn(64, D_IN)])
    sae.card = {"model": "tiny", "hook_point": "layers.1.mlp_out", "token_policy": {"special": "dropped"}}
    return sae


@pytest.fixture
def x():
    return torch.randn(32, D_IN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip(architecture, kind, tmp_path, x):
    sae = make(architecture, kind)
    assert sae.save(tmp_path / "out") == tmp_path / "out"
    back = SAE.load(tmp_path / "out")
    assert back.cfg == sae.cfg
    assert torch.equal(back(x), sae(x))
    assert torch.equal(back.encode(x), sae.encode(x))
    assert back.card == sae.card
    assert back.card["hook_point"] == "layers.1.mlp_out"
    assert back.W_enc.T.is_contiguous()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "cfg.json",
        "efface.json",
        "sae_weights.safetensors",
    ]


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batchtopk"])
def test_a_cast_sae_is_saved_as_what_it_is(architecture, tmp_path, x):
    sae = make(architecture).to(torch.bfloat16)
    back = SAE.load(sae.save(tmp_path / "out"))
    assert back.dtype == torch.bfloat16
    assert back.cfg.dtype == "bfloat16"
    assert torch.equal(back(x), sae(x))
    if architecture != "topk":
        assert back.threshold.dtype == torch.float32


NAMES = {
    ("relu", "auto"): "standard",
    ("topk", "auto"): "topk",
    ("batchtopk", "auto"): "jumprelu",
    ("matryoshka", "auto"): "jumprelu",
    ("jumprelu", "auto"): "jumprelu",
    ("gated", "auto"): "gated",
    ("relu", "transcoder"): "transcoder",
    ("relu", "skip"): "skip_transcoder",
    ("jumprelu", "transcoder"): "jumprelu_transcoder",
    ("batchtopk", "skip"): "jumprelu_skip_transcoder",
    ("topk", "transcoder"): "topk_transcoder",
}


@pytest.mark.parametrize(("architecture", "kind"), NAMES)
def test_the_folder_without_our_manifest_is_sae_lens_s(architecture, kind, tmp_path, x):
    sae = make(architecture, kind)
    folder = sae.save(tmp_path / "out")
    (folder / "efface.json").unlink()
    cfg = json.loads((folder / "cfg.json").read_text())
    assert cfg["architecture"] == NAMES[architecture, kind]
    assert cfg["metadata"]["hook_name"] == "layers.1.mlp_out"
    back = SAE.load(folder)
    assert back.card["model"] == "tiny"
    torch.testing.assert_close(back(x), sae(x))
    assert torch.equal(back.encode(x) > 0, sae.encode(x) > 0)


def test_rescaled_acts_are_folded(tmp_path, x):
    sae = make("topk")
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) * 5 + 0.1)
    folder = sae.save(tmp_path / "out")
    (folder / "efface.json").unlink()
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, "rescale_acts_by_decoder_norm": True}))
    norms = sae.W_dec.norm(dim=1)
    a = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    f = torch.zeros_like(a).scatter(1, a.topk(3).indices, a.topk(3).values.relu())
    back = SAE.load(folder)
    torch.testing.assert_close(back(x), (f / norms) @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(back.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert (back(x) - sae(x)).abs().max() > 1e-2  # control: not the plain reading


def test_existing_folders_and_unfinished_saes_are_refused(tmp_path):
    sae = make("topk")
    sae.save(tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        sae.save(tmp_path / "out")
    sae.save(tmp_path / "out", overwrite=True)
    with pytest.raises(InputError, match="calibrate_threshold"):
        SAE(SAEConfig("batchtopk", D_IN, D_SAE, k=3)).save(tmp_path / "raw")
    with torch.no_grad():
        sae.W_dec[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="W_dec"):
        sae.save(tmp_path / "nan")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_save_that_fails_at_any_write_leaves_nothing(tmp_path, monkeypatch):
    sae = make("topk")
    for name in ("write_json", "save_tensors"):

        def full(path, *args, **kwargs):
            raise OSError(28, "No space left on device", str(path))

        with monkeypatch.context() as m:
            m.setattr(native, name, full)
            with pytest.raises(OSError, match="No space"):
                sae.save(tmp_path / "out")
        assert not list(tmp_path.iterdir())
    sae.save(tmp_path / "out")
    SAE.load(tmp_path / "out")


def weights(change):
    """Rewrites the tensors, with the digest in the manifest kept true, so that the later checks are what refuses."""

    def apply(folder):
        path = folder / "sae_weights.safetensors"
        save_file(change(load_file(path)), path)
        manifest = json.loads((folder / "efface.json").read_text())
        manifest["weights"]["sha256"] = native.sha256_file(path)
        (folder / "efface.json").write_text(json.dumps(manifest))

    return apply


def text(name, **values):
    def apply(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return apply


def truncate(name):
    def apply(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return apply


def pickled(folder):
    (folder / "sae_weights.safetensors").write_bytes(pickle.dumps({"W_enc": [1.0]}))


DAMAGE = {
    "truncated weights": (truncate("sae_weights.safetensors"), "not a whole safetensors"),
    "truncated manifest": (truncate("efface.json"), "not valid JSON"),
    "pickle under the weights' name": (pickled, "not a whole safetensors"),
    "no weights": (lambda f: (f / "sae_weights.safetensors").unlink(), "missing"),
    "one bit": (
        lambda f: (f / "sae_weights.safetensors").write_bytes(_flip((f / "sae_weights.safetensors").read_bytes())),
        "sha256",
    ),
    "shape": (weights(lambda t: {**t, "b_enc": t["b_enc"][:-1].clone()}), "shape"),
    "missing tensor": (weights(lambda t: {k: v for k, v in t.items() if k != "b_dec"}), "b_dec missing"),
    "unknown tensor": (weights(lambda t: {**t, "W_extra": t["b_dec"].clone()}), "unknown W_extra"),
    "integers": (weights(lambda t: {**t, "b_dec": t["b_dec"].long()}), "floating-point"),
    "NaN": (weights(lambda t: {**t, "b_dec": t["b_dec"] / 0}), "NaN or infinity"),
    "other weights of the right shape": (weights(lambda t: {**t, "W_dec": t["W_dec"] * 1.1}), "output stored"),
    "format": (text("efface.json", format=99), "format 99"),
    "config": (text("efface.json", config={"architecture": "topk", "d_in": 8, "d_sae": 24, "kk": 3}), "kk"),
    "no config": (text("efface.json", config=None), "no config"),
    "fingerprint": (text("efface.json", fingerprint={"size": "x"}), "fingerprint"),
    "no digest": (text("efface.json", weights=None), "sha256"),
}


def _flip(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused(damage, tmp_path):
    apply, message = DAMAGE[damage]
    folder = make("topk").save(tmp_path / "out")
    SAE.load(folder)
    apply(folder)
    with pytest.raises(ArtefactError, match=message):
        SAE.load(folder)


def test_a_calibrated_sae_with_unequal_thresholds_is_refused(tmp_path):
    folder = make("batchtopk").save(tmp_path / "out")
    weights(lambda t: {**t, "threshold": torch.arange(D_SAE).float()})(folder)
    with pytest.raises(ArtefactError, match="one threshold"):
        SAE.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "temporal"}, "unknown architecture"),
        ({"architecture": "tpok"}, "nearest: topk"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations"),
        ({"reshape_activations": "hook_z"}, "reshape_activations"),
        ({"d_in": -1}, "d_in"),
        ({"d_in": 9}, "shape"),
        ({"d_sae": 23}, "shape"),
        ({"k": None}, "k must"),
        ({"k": 1000}, "lower k"),
        ({"dtype": "int4"}, "dtype"),
    ],
)
def test_sae_lens_configs_that_do_not_fit_are_refused(values, message, tmp_path):
    folder = make("topk").save(tmp_path / "out")
    (folder / "efface.json").unlink()
    text("cfg.json", **values)(folder)
    with pytest.raises(ArtefactError, match=message):
        SAE.load(folder)


def test_what_is_no_sae_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="no SAE folder"):
        SAE.load(tmp_path / "none")
    with pytest.raises(ArtefactError, match="neither"):
        SAE.load(tmp_path)
    for name in ("ae.pt", "sae.bin"):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        with pytest.raises(ArtefactError, match="pickled weights are refused"):
            SAE.load(tmp_path / name)
    with pytest.raises(ArtefactError, match=r"dictionary_learning\.read"):
        SAE.load(tmp_path)
    (tmp_path / "ae.pt").unlink()
    with pytest.raises(ArtefactError, match="refused"):
        SAE.load(tmp_path)


def test_card_fields_can_be_added_to_a_saved_folder(tmp_path):
    folder = make("topk").save(tmp_path / "out")
    native.update_card(folder, metrics={"fvu": 0.25})
    assert SAE.load(folder).card["metrics"] == {"fvu": 0.25}
    with pytest.raises(InputError, match="fingerprint"):
        native.update_card(folder, fingerprint={})


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
