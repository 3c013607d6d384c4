"""Every architecture against a dense reference written out here, in float64; what training must and must not touch."""

import pytest
import torch
import torch.utils.flop_counter

from efface.base.config import from_mapping
from efface.base.errors import InputError, MatchedNothing, NumericsError, UnknownName
from efface.sae import SAE, SAEConfig, TrainConfig
from efface.sae.config import ARCHITECTURES
from efface.sae.initialise import geometric_median, input_scale
from efface.sae.losses import Coefficients
from efface.sae.sparse import FusedAdam, SparseActs, attach_row_grad, row_grad_of

N, D_IN, D_OUT, D_SAE, K = 48, 10, 7, 36, 4
KINDS = {"auto": {}, "transcoder": {"d_out": D_OUT}, "square": {"d_out": D_IN}, "skip": {"d_out": D_OUT, "skip": True}}
WEIGHTS = Coefficients(sparsity=0.3, auxk=0.25, pre_act=0.1)


def make(architecture, kind="auto", dtype="float64", **options):
    jumprelu = {"threshold_init": 0.4, "bandwidth": 0.6, **options} if architecture == "jumprelu" else options
    sae = SAE(SAEConfig(architecture, D_IN, D_SAE, k=K, k_aux=3, dtype=dtype, **KINDS[kind], **jumprelu))
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn_like(p))
        if architecture == "jumprelu":
            sae.threshold.abs_()
    return sae


def batch(kind="auto", n=N):
    x = torch.randn(n, D_IN, dtype=torch.float64) + 0.5
    return x, None if kind == "auto" else torch.randn(n, KINDS[kind]["d_out"], dtype=torch.float64)


def dead_mask():
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[-9:] = True
    return mask


def grad(p):
    assert p.grad is not None
    return p.grad


def keep_largest(a, k, across_batch=False):
    flat = a.reshape(1, -1) if across_batch else a
    kept = torch.zeros_like(flat).scatter(1, flat.topk(k * len(a) if across_batch else k, 1).indices, 1.0)
    return a.relu() * kept.reshape(a.shape)


def box(a, theta, h):
    """A function whose value is 1[a > theta] and whose gradient in theta is the estimator's, for autograd."""
    inside = ((a - theta).abs() < h / 2).double()
    ste = -(theta - theta.detach()) * inside / h
    return (a > theta).double() + ste


def reference(sae, x, y, dead):
    """Total loss by dense autograd, from the formulas."""
    cfg = sae.cfg
    y = x if y is None else y
    h = ((x - sae.b_dec) if cfg.apply_b_dec_to_input else x) @ sae.W_enc
    skip = x @ sae.W_skip.T if cfg.skip else 0.0
    norms = sae.W_dec.norm(dim=1)
    square = lambda e: e.pow(2).sum(1).mean()  # noqa: E731
    if cfg.architecture == "gated":
        gate, mag = h + sae.b_gate, h * sae.r_mag.exp() + sae.b_mag
        f, opened = (gate > 0) * mag.relu(), gate.relu()
        frozen = opened @ sae.W_dec.detach() + sae.b_dec.detach() + (x @ sae.W_skip.T.detach() if cfg.skip else 0.0)
        return square(y - f @ sae.W_dec - sae.b_dec - skip) + WEIGHTS.sparsity * (opened * norms).sum(1).mean() + square(y - frozen)
    a = h + sae.b_enc
    if cfg.architecture == "jumprelu":
        passed = box(a, sae.threshold, cfg.bandwidth)
        f = a * (a > sae.threshold) + sae.threshold.detach() * (passed - passed.detach())
        loss = square(y - f @ sae.W_dec - sae.b_dec - skip) + WEIGHTS.sparsity * passed.sum(1).mean()
        return loss + WEIGHTS.pre_act * ((sae.threshold - a).relu() * norms)[:, dead].sum(1).mean()
    if cfg.architecture == "relu":
        f = a.relu()
        return square(y - f @ sae.W_dec - sae.b_dec - skip) + WEIGHTS.sparsity * (f * norms).sum(1).mean()
    f = keep_largest(a, K, cfg.architecture != "topk")
    widths = cfg.groups or (D_SAE,)
    errors = [y - f[:, :n] @ sae.W_dec[:n] - sae.b_dec - skip for n in widths]
    e = errors[-1].detach()
    z = keep_largest(torch.where(dead, a, -torch.inf), min(3, int(dead.sum())))
    auxk = square(e - z @ sae.W_dec) / (e - e.mean(0)).pow(2).sum(1).mean()
    return sum(map(square, errors)) / len(errors) + WEIGHTS.auxk * (y - y.mean(0)).pow(2).sum(1).mean() * auxk


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_every_gradient_equal_the_dense_reference(architecture, kind):
    sae, (x, y), dead = make(architecture, kind), batch(kind), dead_mask()
    loss = sae.training_forward(x, y, dead, WEIGHTS)
    expected = reference(sae, x, y, dead)
    torch.testing.assert_close(loss.total, expected)
    names = [n for n, _ in sae.named_parameters()]
    ours = torch.autograd.grad(loss.total, list(sae.parameters()))
    theirs = torch.autograd.grad(expected, list(sae.parameters()))
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
        assert a.abs().sum() > 0, name


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("attached", [False, True])
def test_auxk_moves_dead_encoders_and_only_through_auxk(architecture, attached):
    sae, (x, _), dead = make(architecture), batch(), dead_mask()
    with torch.no_grad():
        sae.W_enc[:, dead] *= 0.02  # so that none of them is among the k largest
        sae.b_enc[dead] = 0.01
    if attached:
        attach_row_grad(sae.W_enc)
        attach_row_grad(sae.W_dec)

    def encoder_gradient(mask):
        optimizer = FusedAdam(sae.parameters())
        optimizer.zero_grad()
        loss = sae.training_forward(x, None, mask, WEIGHTS)
        loss.total.backward()
        assert not loss.fired()[dead].any()
        attached_grad = row_grad_of(sae.W_enc)
        rows = grad(sae.W_enc).T.clone() if attached_grad is None else attached_grad.to_dense()
        assert (attached_grad is not None) == attached
        return rows[dead].norm(dim=1)

    assert bool((encoder_gradient(dead) > 0).all())
    assert bool((encoder_gradient(None) == 0).all())  # control: without AuxK a silent encoder cannot move


def test_auxk_residual_is_detached():
    sae, (x, _), dead = make("topk"), batch(), dead_mask()
    alive = ~dead

    def gradient(weights):
        sae.zero_grad()
        loss = sae.training_forward(x, None, dead, weights)
        loss.total.backward()
        return grad(sae.W_dec)[alive].clone(), loss.fired()

    (with_aux, fired), (without, _) = gradient(WEIGHTS), gradient(Coefficients(auxk=0.0))
    assert fired[alive].any()
    assert torch.equal(with_aux, without)


def test_gated_auxiliary_term_leaves_the_decoder_alone():
    sae, (x, _) = make("gated"), batch()
    with torch.no_grad():
        sae.b_mag.fill_(-100.0)  # no latent passes, so only the auxiliary term could move the decoder
    loss = sae.training_forward(x, None, None, Coefficients(sparsity=0.0))
    loss.total.backward()
    assert loss.l0() == 0
    assert not grad(sae.W_dec).any()
    assert grad(sae.b_gate).any()  # control: the gates do learn


@pytest.mark.parametrize("loss", ["step", "tanh", "quadratic"])
@pytest.mark.parametrize("to_input", [False, True])
def test_jumprelu_ste_moves_the_threshold_and_the_encoder_only_if_told(loss, to_input):
    sae = make("jumprelu", sparsity_loss=loss, target_l0=3.0, ste_to_input=to_input)
    x, _ = batch()
    only = Coefficients(sparsity=1.0, pre_act=0.0)
    penalty = lambda w: sae.training_forward(x, None, None, w).total  # noqa: E731
    grads = [torch.autograd.grad(penalty(w), [sae.threshold, sae.b_enc]) for w in (only, Coefficients(sparsity=0.0))]
    threshold, encoder = (a - b for a, b in zip(*grads, strict=True))
    assert threshold.abs().sum() > 0
    moved = encoder.abs().sum() > 1e-12
    assert bool(moved) == (to_input or loss == "tanh")  # tanh reaches the encoder through the latents themselves


def test_threshold_can_leave_zero():
    sae = make("jumprelu")
    with torch.no_grad():
        sae.threshold.fill_(-1.0)
        sae.b_enc.fill_(0.05)
    loss = sae.training_forward(batch()[0], None, None, WEIGHTS)
    loss.total.backward()
    assert bool((sae.threshold == 0).all())
    assert bool((sae.threshold.grad != 0).any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_dense_and_forward_agree(architecture, kind):
    sae, (x, _) = make(architecture, kind), batch(kind)
    if architecture in ("batchtopk", "matryoshka"):
        sae.calibrate_threshold([x])
    acts = sae.encode_sparse(x)
    dense = sae.encode(x)
    assert torch.equal(acts.to_dense(), dense.detach())
    assert bool((acts.values > 0).all())
    out = sae.decode(dense, x)
    torch.testing.assert_close(sae.decode(acts, x), out)
    torch.testing.assert_close(sae(x), out)
    cube = x.view(4, 12, D_IN)
    assert torch.equal(sae(cube).reshape(N, -1), sae(x))
    assert sae.encode(cube).shape == (4, 12, D_SAE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_some_features_are_the_columns_of_all(architecture, kind):
    sae, (x, _) = make(architecture, kind), batch(kind)
    if architecture in ("batchtopk", "matryoshka"):
        sae.calibrate_threshold([x])
    ids = [7, 3, 30, 11, 12, 13]
    x.requires_grad_()
    some, whole = sae.encode_features(x, ids), sae.encode(x)[:, ids]
    torch.testing.assert_close(some, whole)
    assert 0 < int((some > 0).sum()) < some.numel()
    for want, got in zip(*(torch.autograd.grad(t.square().sum(), (x, sae.W_enc)) for t in (whole, some)), strict=True):
        torch.testing.assert_close(got, want)
    assert sae.encode_features(x.view(4, 12, D_IN), ids).shape == (4, 12, 6)


def test_some_features_cost_their_encoder_rows_where_latents_do_not_compete():
    sae, x = SAE(SAEConfig("jumprelu", 64, 2**15)), torch.randn(64, 64)
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter:
        sae.encode_features(x, range(10))
    assert counter.get_total_flops() == 2 * 64 * 64 * 10
    assert bool(sae.encode_features(x, range(10)).any())
    with pytest.raises(InputError, match=r"\[0, 32768\)"):
        sae.encode_features(x, [2**15])
    with pytest.raises(NumericsError, match="NaN"):
        sae.encode_features(x * torch.nan, [1])


def test_forward_is_differentiable_in_its_input():
    sae = make("topk")
    x = batch()[0][:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda t: sae(t), (x,), eps=1e-7, atol=1e-4)


def test_bfloat16_input_comes_back_as_bfloat16_and_thresholds_stay_wide():
    sae = make("jumprelu", dtype="float32").to(torch.bfloat16)
    assert sae.W_dec.dtype == torch.bfloat16
    assert sae.threshold.dtype == torch.float32
    assert sae(batch()[0].bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_calibrated_l0_is_k_on_uneven_batches(architecture):
    sae = make(architecture)
    x = torch.randn(400, D_IN, dtype=torch.float64)
    x[:50] *= 40  # one batch holds most of the large pre-activations
    with pytest.raises(InputError, match="calibrate_threshold"):
        sae.encode(x)
    sae.calibrate_threshold(x.split(50))
    assert sae.encode_sparse(x).l0() == pytest.approx(K, abs=1 / 400)
    a = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    assert int((a > sae.threshold).sum()) == K * 400
    before = sae.encode_sparse(x[:7]).to_dense()
    torch.testing.assert_close(before, sae.encode_sparse(x).to_dense()[:7])  # no vector depends on its batch


def test_calibration_of_jumprelu_scales_the_thresholds():
    sae, (x, _) = make("jumprelu", target_l0=2.0), batch(n=200)
    ratio = sae.threshold / sae.threshold[0]
    assert abs(sae.encode_sparse(x).l0() - 2) > 0.5
    sae.calibrate_threshold([x])
    assert sae.encode_sparse(x).l0() == pytest.approx(2.0, abs=0.02)
    torch.testing.assert_close(sae.threshold / sae.threshold[0], ratio)


def test_calibration_needs_vectors():
    with pytest.raises(MatchedNothing):
        make("batchtopk").calibrate_threshold([])
    with pytest.raises(InputError, match="no threshold"):
        make("topk").calibrate_threshold([batch()[0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_scale_gives_the_scaled_run_s_output(architecture, kind):
    sae, (x, _) = make(architecture, kind), batch(kind)
    s_in, s_out = 0.13, (0.13 if kind == "auto" else 2.5)
    if architecture in ("batchtopk", "matryoshka"):
        sae.calibrate_threshold([x * s_in])
    with torch.no_grad():
        before, active, norms = sae(x * s_in) / s_out, sae.encode(x * s_in) > 0, sae.W_dec.norm(dim=1)
        sae.fold_scale(s_in, None if kind == "auto" else s_out)
        torch.testing.assert_close(sae(x), before)
        assert torch.equal(sae.encode(x) > 0, active)
        assert torch.equal(sae.W_dec.norm(dim=1), norms)
    assert active.any()
    if kind == "auto":
        with pytest.raises(InputError, match="one scale"):
            sae.fold_scale(1.0, 2.0)


def test_start():
    sae = SAE(SAEConfig("topk", D_IN, D_SAE, k=K))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.T.is_contiguous()
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_error(architecture):
    torch.manual_seed(1)
    truth = torch.nn.functional.normalize(torch.randn(16, D_IN), dim=1)
    x = (torch.rand(512, 16) * (torch.rand(512, 16) < 0.1)) @ truth
    sae = SAE(SAEConfig(architecture, D_IN, D_SAE, k=2))
    attach_row_grad(sae.W_dec)
    optimizer = FusedAdam(sae.parameters(), lr=1e-2)
    first = last = 0.0
    for _ in range(25):
        loss = sae.training_forward(x, coefficients=Coefficients(sparsity=1e-3))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        first, last = first or float(loss.mse), float(loss.mse)
    assert last < 0.6 * first


def test_geometric_median():
    cloud = torch.randn(200, 3) + 5
    cloud[:60] += 1000  # a mean would follow these
    found = geometric_median(cloud)
    assert (found - 5).norm() < 2 < (cloud.mean(0) - 5).norm()
    distance = lambda p: float((cloud - p).norm(dim=1).double().sum())  # noqa: E731
    assert all(distance(found) <= distance(found + 0.05 * d) for d in (*torch.eye(3), *-torch.eye(3)))
    line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])  # the median is one of the points
    torch.testing.assert_close(geometric_median(line, iterations=1000), line[1], atol=1e-3, rtol=0)
    assert torch.equal(geometric_median(line[:1]), line[0])
    with pytest.raises(MatchedNothing):
        geometric_median(line[:0])
    with pytest.raises(NumericsError):
        geometric_median(line / 0)


def test_input_scale():
    x = torch.randn(64, D_IN) * 7
    assert (x * input_scale(x, "unit")).pow(2).sum(1).mean() == pytest.approx(1, rel=1e-5)
    assert (x * input_scale(x, "sqrt_d")).norm(dim=1).mean() == pytest.approx(D_IN**0.5, rel=1e-5)
    assert input_scale(x, "none") == 1
    with pytest.raises(InputError, match="zero"):
        input_scale(x * 0, "unit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "topkk"}, "nearest: topk"),
        ({"k": D_SAE + 1}, "lower k"),
        ({"d_sae": 0}, "d_sae must be at least 1"),
        ({"skip": True}, "needs a transcoder"),
        ({"d_out": 3, "apply_b_dec_to_input": True}, "b_dec lies in the output"),
        ({"groups": (4, D_SAE)}, "Matryoshka"),
        ({"architecture": "matryoshka", "groups": (8, 4)}, "ascend"),
        ({"architecture": "jumprelu", "sparsity_loss": "quadratic"}, "target_l0"),
        ({"architecture": "jumprelu", "sparsity_loss": "l0"}, "sparsity_loss"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_config_refuses(options, message):
    values = {"architecture": "topk", "d_in": D_IN, "d_sae": D_SAE, **options}
    with pytest.raises(InputError, match=message):
        SAEConfig(**values)


def test_config_defaults():
    assert SAEConfig("topk", 4, 64).apply_b_dec_to_input is True
    assert SAEConfig("topk", 4, 64, d_out=4).apply_b_dec_to_input is False
    assert SAEConfig("matryoshka", 4, 64).groups == (2, 6, 14, 30, 64)
    assert TrainConfig(tokens=2049, batch=2048).n_steps == 2
    for wrong in (
        {},
        {"steps": 1, "tokens": 1},
        {"steps": 0},
        {"steps": 1, "lr": -1.0},
        {"steps": 1, "decay_fraction": 2.0},
    ):
        with pytest.raises(InputError):
            from_mapping(TrainConfig, wrong)
    with pytest.raises(UnknownName):
        TrainConfig(steps=1, normalize="units")


def test_bad_input_is_named():
    sae, (x, _) = make("topk"), batch()
    with pytest.raises(InputError, match="d_in is 10"):
        sae(x[:, :4])
    with pytest.raises(NumericsError, match="NaN"):
        sae.encode_sparse(x.clone().index_fill_(0, torch.tensor([3]), torch.nan))
    with pytest.raises(NumericsError, match="training loss"):
        make("relu").training_forward(x / 0)
    with pytest.raises(InputError, match="needs target"):
        make("topk", "transcoder").training_forward(x)
    with pytest.raises(InputError, match="shape"):
        make("topk", "transcoder").training_forward(x, x)
    skip = make("topk", "skip")
    with pytest.raises(InputError, match="needs its input"):
        skip.decode(skip.encode(x))
    with pytest.raises(InputError, match="d_sae is 36"):
        sae.decode(torch.zeros(2, 5, dtype=torch.float64))


def test_wide_sae_encodes_sparse():
    sae = SAE(SAEConfig("topk", 4, 2**15, k=3))
    acts = sae.encode_sparse(torch.randn(9, 4))
    assert isinstance(acts, SparseActs)
    assert acts.nnz == 27
