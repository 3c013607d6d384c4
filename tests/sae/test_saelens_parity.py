"""Against the other packages where installed: sae-lens 6 both ways and one training step; the others' files."""

import json

import pytest
import torch

from efface.sae import SAE, SAEConfig
from efface.sae.config import ARCHITECTURES
from efface.sae.formats import dictionary_learning
from efface.sae.losses import Coefficients

D_IN, D_OUT, D_SAE, K = 10, 6, 40, 4
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def lens():
    return pytest.importorskip("sae_lens")


@pytest.fixture
def x():
    return torch.randn(64, D_IN) + 0.3


def jitter(module):
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.add_(0.1 * torch.randn_like(p))
            if name == "threshold":
                p.abs_().add_(0.1)
    return module


def ours(architecture, **options):
    sae = jitter(SAE(SAEConfig(architecture, D_IN, D_SAE, k=K, **options)))
    if architecture in ("batchtopk", "matryoshka"):
        sae.calibrate_threshold([torch.randn(64, D_IN)])
    return sae


LOADABLE = [(a, {}) for a in ARCHITECTURES] + [
    (a, {"d_out": D_OUT, "skip": skip}) for a in ("relu", "jumprelu", "batchtopk") for skip in (False, True)
]


@pytest.mark.parametrize(("architecture", "options"), LOADABLE)
def test_sae_lens_reads_ours(lens, architecture, options, tmp_path, x):
    sae = ours(architecture, **options)
    theirs = lens.SAE.load_from_disk(str(sae.save(tmp_path / "out")))
    torch.testing.assert_close(theirs.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(x), sae(x), rtol=1e-5, atol=1e-5)
    assert theirs.encode(x).any()


INFERENCE = {
    "StandardSAE": {},
    "TopKSAE": {"k": K},
    "TopKSAE rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
    "JumpReLUSAE": {"apply_b_dec_to_input": False},
    "GatedSAE": {},
    "Transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "SkipTranscoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "JumpReLUTranscoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "JumpReLUSkipTranscoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
}


@pytest.mark.parametrize("name", INFERENCE)
def test_ours_reads_sae_lens(lens, name, tmp_path, x):
    cls = name.split()[0]
    where = lens if hasattr(lens, cls) else pytest.importorskip("sae_lens.saes.transcoder")
    theirs = jitter(getattr(where, cls)(getattr(where, f"{cls}Config")(d_in=D_IN, d_sae=D_SAE, **INFERENCE[name])))
    theirs.save_model(tmp_path)
    sae = SAE.load(tmp_path)
    torch.testing.assert_close(sae(x), theirs(x), rtol=1e-5, atol=1e-5)
    if "rescaled" not in name:
        torch.testing.assert_close(sae.encode(x), theirs.encode(x), rtol=1e-5, atol=1e-5)


def test_from_pretrained_goes_through_sae_lens(lens, monkeypatch, x):
    theirs = jitter(lens.GatedSAE(lens.GatedSAEConfig(d_in=D_IN, d_sae=D_SAE)))
    theirs.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
    asked = []
    monkeypatch.setattr(lens.SAE, "from_pretrained", lambda *a: asked.append(a) or theirs)
    sae = SAE.from_pretrained("release", "id")
    assert asked == [("release", "id")]
    assert sae.card["hook_point"] == "layers.3.mlp_out"
    torch.testing.assert_close(sae(x), theirs(x), rtol=1e-5, atol=1e-5)


TRAINING = {
    "relu": ("StandardTrainingSAE", {"l1_coefficient": 0.2}, {}),
    "topk": ("TopKTrainingSAE", {"k": K, "rescale_acts_by_decoder_norm": False}, {}),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": K, "rescale_acts_by_decoder_norm": False}, {}),
    "matryoshka": (
        "MatryoshkaBatchTopKTrainingSAE",
        {"k": K, "rescale_acts_by_decoder_norm": False, "matryoshka_widths": [10, 20, D_SAE]},
        {"groups": (10, 20, D_SAE)},
    ),
    **{
        f"jumprelu {mode}": (
            "JumpReLUTrainingSAE",
            {
                "jumprelu_sparsity_loss_mode": mode,
                "l0_coefficient": 0.2,
                "jumprelu_bandwidth": 0.4,
                "target_l0": 3.0,
                "jumprelu_ste_to_input": to_input,
                "pre_act_loss_coefficient": 0.05,
            },
            {"sparsity_loss": mode, "bandwidth": 0.4, "target_l0": 3.0, "ste_to_input": to_input},
        )
        for mode, to_input in (("step", False), ("tanh", True), ("quadratic", False))
    },
    "gated": ("GatedTrainingSAE", {"l1_coefficient": 0.2}, {}),
}


@pytest.mark.parametrize("name", TRAINING)
def test_one_training_step_s_loss_and_gradients(lens, name, x):
    """Matryoshka: theirs sums over the prefixes, ours is the mean. Gated: their auxiliary term moves the decoder."""
    from sae_lens.saes.sae import TrainStepInput

    cls, options, mine = TRAINING[name]
    theirs = jitter(getattr(lens, cls)(getattr(lens, f"{cls}Config")(d_in=D_IN, d_sae=D_SAE, **options)))
    sae = SAE(SAEConfig(name.split()[0], D_IN, D_SAE, k=K, **mine))
    state = theirs.state_dict()
    with torch.no_grad():
        for key, p in sae.named_parameters():
            p.copy_(state[key])
    dead = torch.arange(D_SAE) >= 30 if "jumprelu" in name else None
    coefficients = {"l1": 0.2, "l0": 0.2}
    step = theirs.training_forward_pass(TrainStepInput(x, coefficients, dead, 0, False))
    loss = sae.training_forward(x, None, dead, Coefficients(sparsity=0.2, pre_act=0.05))
    factor = len(mine["groups"]) if "groups" in mine else 1
    torch.testing.assert_close(factor * loss.total, step.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.mse, step.losses["mse_loss"], rtol=1e-5, atol=1e-5)
    (factor * loss.total).backward()
    step.loss.backward()
    other = dict(theirs.named_parameters())
    for key, p in sae.named_parameters():
        if name == "gated" and key in ("W_dec", "b_dec"):
            assert (p.grad - other[key].grad).abs().max() > 1e-3  # what freezing the decoder is for
            continue
        torch.testing.assert_close(p.grad, other[key].grad, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_auxk_is_sae_lens_s_over_the_residual_s_variance(lens, x):
    """Where all dead pre-activations are positive, so our ReLU is the identity, and at least `d/2` latents are dead."""
    from sae_lens.saes.sae import TrainStepInput

    theirs = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, rescale_acts_by_decoder_norm=False))
    dead = torch.arange(D_SAE) >= 30
    with torch.no_grad():
        theirs.b_enc[dead] = 8.0
        theirs.b_enc[~dead] = 60.0
    sae = SAE(SAEConfig("topk", D_IN, D_SAE, k=K))
    with torch.no_grad():
        for key, p in sae.named_parameters():
            p.copy_(theirs.state_dict()[key])
    step = theirs.training_forward_pass(TrainStepInput(x, {}, dead, 0, False))
    error = (x - sae(x)).detach()
    variance = (error - error.mean(0)).pow(2).sum(1).mean()
    got = sae.training_forward(x, None, dead).auxk * variance
    torch.testing.assert_close(got, step.losses["auxiliary_reconstruction_loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"transcode": True}, {"transcode": True, "skip_connection": True}])
def test_sparsify_files(options, tmp_path, x, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    sparsify = pytest.importorskip("sparsify")
    theirs = jitter(sparsify.SparseCoder(D_IN, sparsify.SparseCoderConfig(num_latents=D_SAE, k=K, **options)))
    theirs.save_to_disk(tmp_path)
    torch.testing.assert_close(SAE.load(tmp_path)(x), theirs(x).sae_out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", dictionary_learning.KINDS)
def test_dictionary_learning_files(name, tmp_path, x):
    pytest.importorskip("dictionary_learning")
    from dictionary_learning import dictionary as plain
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    cls = next(getattr(m, name) for m in (plain, batch_top_k, matryoshka_batch_top_k, top_k) if hasattr(m, name))
    options: dict[str, object] = {"k": K} if "TopK" in name else {}
    if "Matryoshka" in name:
        options["group_sizes"] = [10, 30]
    theirs = jitter(cls(D_IN, D_SAE, **options))
    if options:
        theirs.threshold.fill_(0.2)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, **options}}))
    sae = dictionary_learning.read(tmp_path)
    torch.testing.assert_close(sae(x), theirs(x), rtol=1e-5, atol=1e-5)
