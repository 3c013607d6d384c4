"""What the losses of RMU, CRISP, NPO and gradient difference promise, each with its negative control."""

import dataclasses
import itertools

import pytest
import torch
from planted import magic, planted_sae, same_changes, trained_host
from tiny import tiny_host

from efface.base.config import from_mapping
from efface.base.errors import InputError, MatchedNothing
from efface.deactivate.parts import Dense, LowRank
from efface.llm.evaluation.controls import random_directions
from efface.llm.evidence import FeatureConfig
from efface.llm.features import scan_pools
from efface.llm.methods.crisp import CrispConfig
from efface.llm.methods.crisp.fit import fit as crisp
from efface.llm.methods.crisp.math import distance, firing_loss, suppression_loss
from efface.llm.methods.crisp.select import chosen_features
from efface.llm.methods.graddiff import GradDiffConfig
from efface.llm.methods.graddiff.fit import fit as graddiff
from efface.llm.methods.graddiff.math import ascent_loss
from efface.llm.methods.npo import NpoConfig
from efface.llm.methods.npo.math import npo_loss, npo_weight
from efface.llm.methods.rmu import RmuConfig
from efface.llm.methods.rmu.fit import fit as rmu
from efface.llm.methods.rmu.math import control_vector, forget_loss, retain_loss
from efface.sae import SAE, SAEConfig


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


def test_npo_starts_as_gradient_ascent_and_ends_flat():
    logp = torch.tensor([-12.0, -30.0, -7.0], dtype=torch.float64, requires_grad=True)
    ascent = torch.full((3,), 1 / 3, dtype=torch.float64)
    for beta in (0.01, 0.1, 2.0):
        loss = npo_loss(logp, logp.detach(), beta)
        assert float(loss.detach()) == pytest.approx(2 * 0.6931471805599453 / beta)
        assert torch.allclose(gradient(loss, logp), ascent)  # at the reference: the gradient of mean log p
    far = logp.detach() + 40.0
    assert torch.allclose(gradient(npo_loss(logp, far, 1e-6), logp), ascent, atol=1e-4)  # beta -> 0: ascent anywhere
    assert gradient(npo_loss(logp, far, 2.0), logp).abs().max() < 1e-6  # and else it ends
    assert float(npo_loss(logp, far, 2.0).detach()) >= 0
    w = npo_weight(logp.detach(), far, 0.1)
    assert torch.allclose(gradient(npo_loss(logp, far, 0.1), logp), w / 3)
    assert (w < 1).all()


def test_gradient_difference_ends_at_a_ceiling_alone():
    logp = torch.tensor([-1.0, -20.0], requires_grad=True)
    assert torch.allclose(gradient(ascent_loss(logp), logp), torch.tensor([0.5, 0.5]))
    assert torch.allclose(gradient(ascent_loss(logp, 9.0), logp), torch.tensor([0.5, 0.0]))
    assert float(ascent_loss(logp, 9.0).detach()) == -5.0


def test_rmu_control_and_losses():
    c = control_vector(64, 20.0, torch.Generator().manual_seed(3))
    assert float(c.norm()) == pytest.approx(20.0, rel=1e-5)
    assert (c > 0).all()  # not centred
    assert not torch.equal(c, control_vector(64, 20.0, torch.Generator().manual_seed(4)))
    h = torch.randn(2, 5, 64, requires_grad=True)
    counted = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    g = gradient(forget_loss(h, c, counted), h)
    assert torch.equal(g[0, 3:], torch.zeros(2, 64))
    assert torch.allclose(g[counted], 2 * (h.detach() - c)[counted] / (8 * 64), atol=1e-6)
    assert float(forget_loss(c.expand(2, 5, 64), c, counted)) == 0.0
    assert gradient(retain_loss(h, h.detach(), counted), h).abs().max() == 0.0
    assert gradient(retain_loss(h, h.detach() + 1, counted), h).abs().max() > 0


def test_rmu_leads_the_concepts_activations_to_its_vector_and_leaves_the_rest():
    host, concept = trained_host(), magic()
    config = RmuConfig(layer=1, steps=40, lr=2e-2, steering=1.0, relative=True, keep=5.0, retain=("neighbours", "general"))
    edit = rmu(host, [concept], config=config)
    told = edit.evidence["concepts"][0]
    control = control_vector(host.d_model, told["control norm"], torch.Generator().manual_seed(0))

    def read(texts):
        ids, mask = host.encode_texts(list(texts))
        return host.activations(ids, mask, ["layers.1.resid_post"])["layers.1.resid_post"][host.keep_mask(ids, mask)]

    own, rest = concept.target["test"], concept.general["test"]
    before = read(own), read(rest)
    with edit.applied(host):
        after = read(own), read(rest)
    fallen = [float((a - control).square().mean() / (b - control).square().mean()) for a, b in zip(after, before, strict=True)]
    moved = [float((a - b).square().mean()) for a, b in zip(after, before, strict=True)]
    assert fallen[0] < 0.7
    assert moved[0] > 2 * moved[1]
    assert all(isinstance(d, Dense) for d in edit.weights[0].deltas.values())
    assert set(edit.weights[0].deltas) == {host.down_proj(x)[0] for x in (0, 1)}
    control_edit = random_directions(host, edit, 0).weights[0].deltas
    for n, d in edit.weights[0].deltas.items():
        assert torch.allclose(control_edit[n].change.norm(dim=0), d.change.norm(dim=0), atol=1e-5)
        assert not torch.allclose(control_edit[n].change, d.change, atol=1e-3)


def test_rmu_official_counts_padding_and_its_layers_are_checked():
    host, concept = tiny_host(), magic()
    small = RmuConfig(layer=1, steps=2, lr=1e-2, retain=("neighbours",))
    plain, official = (rmu(host, [concept], config=dataclasses.replace(small, compat=c)) for c in ("none", "official"))
    assert not same_changes(plain, official)
    assert RmuConfig().place(32) == (7, (5, 6, 7))
    assert RmuConfig().place(30) == (7, (5, 6, 7))
    for values in ({"layer": 9}, {"layer": 1, "layers": (2,)}, {"layer": 1, "layers": (-1,)}):
        with pytest.raises(InputError, match="layer"):
            rmu(host, [concept], config=RmuConfig(**values))


def test_crisp_losses():
    acts = torch.tensor([[0.0, 2.0], [4.0, 0.0]], requires_grad=True)
    silent = torch.zeros(3, 2)
    assert float(suppression_loss([acts.detach()], [1.0])) == 1.5
    assert float(suppression_loss([acts.detach()], [3.0])) == 0.5
    assert float(suppression_loss([silent], [1.0])) == float(firing_loss([silent])) == 0.0
    assert float(firing_loss([acts.detach()])) == 3.0
    one_less = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert float(suppression_loss([one_less], [1.0])) < 1.5  # ours falls when a feature falls silent
    assert float(firing_loss([one_less])) > 3.0  # the authors' rises
    h = torch.randn(4, 6, requires_grad=True)
    assert gradient(distance(h, h.detach()), h).abs().max() == 0.0
    assert float(distance(h.detach() + 2, h.detach(), 4.0)) == pytest.approx(1.0, rel=1e-5)


def test_crisp_silences_the_planted_feature():
    host, concept = tiny_host(), magic()
    sae = planted_sae(host)
    config = CrispConfig(layers=(0, 1), n_features=2, steps=15, batch=8, lr=2e-2, relative=True, balance=0.5, dropout=0.0, n_contrast=24)
    edit = crisp(host, [concept], config=config, saes=[sae])
    told = edit.evidence["concepts"][0]["features"]
    assert 0 in [f["id"] for f in told]  # it reads the concept's words; 1 reads the neighbours'
    assert 1 not in [f["id"] for f in told]
    ids = [f["id"] for f in told]

    def fires(texts):
        tokens, mask = host.encode_texts(list(texts))
        x = host.activations(tokens, mask, ["layers.1.mlp_out"])["layers.1.mlp_out"][host.keep_mask(tokens, mask)]
        return sae.encode(x).detach()

    before, near = fires(concept.target["test"]), fires(concept.neighbours["test"])
    with edit.applied(host):
        after, near_after = fires(concept.target["test"]), fires(concept.neighbours["test"])
    assert after[:, ids].mean() < 0.6 * before[:, ids].mean()
    assert near_after[:, 1].mean() > 0.6 * near[:, 1].mean()
    assert all(isinstance(d, LowRank) for d in edit.weights[0].deltas.values())
    with pytest.raises(InputError, match="behind the deepest SAE"):
        crisp(host, [concept], config=dataclasses.replace(config, layers=(2,)), saes=[sae])
    with pytest.raises(MatchedNothing, match="min_rho"):
        crisp(host, [concept], config=dataclasses.replace(config, min_rho=1e9), saes=[sae])
    with pytest.raises(InputError, match=r"no target.*validation.*min_auroc=0"):
        train = {"train": list(concept.target["train"])}
        crisp(host, [magic(target=train)], config=dataclasses.replace(config, min_auroc=0.6), saes=[sae])
    with pytest.raises(InputError, match="coherence=0"):
        crisp(host, [magic(neighbours=None)], config=dataclasses.replace(config, retain=("general",)), saes=[sae])


def test_crisp_trains_through_saes_whose_features_compete():
    host = tiny_host()
    torch.manual_seed(1)
    sae = SAE(SAEConfig("topk", host.d_model, 24, k=6), {"hook_point": "layers.1.resid_post"})
    config = CrispConfig(layers=(0,), steps=2, batch=4, lr=1e-2, min_rho=1.0, n_contrast=24, retain=("general",), coherence=0.0)
    edit = crisp(host, [magic()], config=config, saes=[sae])
    assert edit.evidence["concepts"][0]["features"]
    assert all(p.grad is None and p.requires_grad for p in sae.parameters())
    assert crisp(host, [magic()], config=config, saes=[sae]).digest == edit.digest


def test_crisp_official_counts_otherwise():
    host, concept = tiny_host(), magic()
    sae = planted_sae(host)
    scans = scan_pools(host, concept, {"layers.1.mlp_out": sae}, FeatureConfig(), ("train",))
    plain = chosen_features(scans, "layers.1.mlp_out", CrispConfig(n_contrast=24))
    official = chosen_features(scans, "layers.1.mlp_out", CrispConfig(n_contrast=24, compat="official"))
    assert plain
    assert plain != official


def test_ceiling_and_weights_are_read():
    host, concept = tiny_host(), magic()
    small = GradDiffConfig(rank=2, steps=2, accumulate=1, lr=1e-2)
    other = [{}, {"ceiling": 0.5}, {"keep": 0.0}, {"retain_loss": "kl"}]
    edits = [graddiff(host, [concept], config=dataclasses.replace(small, **c)) for c in other]
    assert not any(same_changes(a, b) for a, b in itertools.combinations(edits, 2))
    assert same_changes(graddiff(host, [concept], config=small), edits[0])
    for cls, values in (
        (NpoConfig, {"beta": 0}),
        (GradDiffConfig, {"ceiling": 0}),
        (RmuConfig, {"steering": 0}),
        (CrispConfig, {"balance": 1}),
    ):
        with pytest.raises(InputError, match=next(iter(values))):
            from_mapping(cls, values)
        assert from_mapping(cls, {"preset": "efface"}).preset == "efface"
