"""Saved and read back: ours, and folders as sae-lens writes them; then everything that is refused."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.base.errors import ArtefactError, InputError, NumericsError
from efface.sae import SAE, SAEConfig
from efface.sae.config import ARCHITECTURES
from efface.sae.formats import native

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
