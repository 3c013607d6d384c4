"""The deactivation layer in ItD's form, and gates that ask how far it moves a prompt, on a tiny real pipeline."""

from dataclasses import replace

import pytest
import torch
from t2i._kit import DOGS, MIXED, ON, REST, changed, draw, edit_of, sae_at, tiny_image_host

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.deactivate import ChangeGate, DeactivationPart, Edit, Gate, load_gate
from efface.sae import SAE

POINT = "text_encoder.layers.0.resid_pre"
POOL = [*REST, "an old house by the sea"]


def dog_sae(host) -> SAE:
    """Feature 0 reads «dog», the others are random."""
    sae, reader = sae_at(host, POINT), host.reader([POINT])
    table = reader.module.get_input_embeddings().weight.detach()
    word = table[reader.token_ids(["a big dog"])[0][3]]
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.W_enc[:, 0] = word / word.norm()
        sae.W_dec[0] = word / word.norm()
        sae.b_enc[0] = -0.7 * float(word.norm())
    return sae


def activations(host, prompts):
    return host.activations(prompts, [POINT])[POINT]


def test_one_times_a_feature_is_the_identity_or_the_plain_reconstruction():
    host = tiny_image_host("sd")
    x, sae = activations(host, DOGS), dog_sae(host)
    kept = DeactivationPart(sae, (0, 1, 2), 1.0, "scale")
    torch.testing.assert_close(kept.deactivate(x), x)
    torch.testing.assert_close(replace(kept, keep_error=False).deactivate(x), sae(x))
    assert not torch.allclose(sae(x), x, atol=1e-2)
    assert not torch.allclose(replace(kept, value=-8.0).deactivate(x), x, atol=1e-2)


def test_the_first_position_is_spared_and_silent_vectors_pass_to_the_bit():
    host = tiny_image_host("sd")
    x = activations(host, DOGS)
    part = DeactivationPart(dog_sae(host), tuple(range(24)), -8.0, "scale")
    spared = replace(part, spare_first=True)
    assert torch.equal(spared.deactivate(x)[:, 0], x[:, 0])
    assert torch.equal(spared.deactivate(x)[:, 1:], part.deactivate(x)[:, 1:])
    assert not torch.equal(part.deactivate(x)[:, 0], x[:, 0])  # the control: its features fire there
    whole = replace(spared, keep_error=False)
    torch.testing.assert_close(whole.deactivate(x)[:, 0], part.sae(x)[:, 0])  # reconstructed, not edited
    only = DeactivationPart(part.sae, (0,), 0.0, "clamp")
    y = activations(host, REST)
    assert torch.equal(only.deactivate(y), y)
    with pytest.raises(InputError, match="spare_first"):
        spared.deactivate(x[0])
    with pytest.raises(InputError, match="features"):
        DeactivationPart(part.sae, (99,))


def test_a_planted_direction_goes_and_nothing_else():
    host = tiny_image_host("sd")
    sae = dog_sae(host)
    part, x = DeactivationPart(sae, (0,), 0.0, "scale"), activations(host, DOGS)
    moved, fires = part.deactivate(x), part.change(x)[1]
    assert bool(fires.any())
    assert not bool(fires.all())
    assert torch.equal(moved[~fires], x[~fires])
    after = sae.encode(moved)[..., 0]
    assert float(after.detach().max()) <= 1e-5 < float(sae.encode(x)[..., 0].detach().max())
    lost = (x - moved)[fires]
    torch.testing.assert_close(lost, (lost @ sae.W_dec[0].detach())[:, None] * sae.W_dec[0].detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("measure", ["energy", "reconstruction"])
def test_scores_know_no_batch_and_the_gate_survives_its_file(measure, tmp_path):
    host = tiny_image_host("sd")
    gate = ChangeGate(DeactivationPart(dog_sae(host), (0,), -8.0, "scale", keep_error=measure == "energy", spare_first=True), measure)
    alone = torch.cat([gate.score(host, [p]) for p in MIXED])
    assert torch.equal(gate.score(host, MIXED), alone)
    torch.testing.assert_close(gate.score(host, MIXED, batch=4), alone, rtol=1e-5, atol=1e-9)
    assert bool((alone[ON] > alone[~ON].max()).all())
    assert measure == "reconstruction" or float(alone[~ON].max()) == 0
    made = gate.calibrated(host, DOGS, POOL, fpr=0.0)
    assert made.fires(made.score(host, MIXED)).tolist() == ON.tolist()
    edit = edit_of(host, made.layer).gated(made)
    edit.save(tmp_path / "edit")
    loaded = Edit.load(tmp_path / "edit")
    assert isinstance(loaded.gate, ChangeGate)
    other = replace(made, measure="energy" if measure == "reconstruction" else "reconstruction")
    assert loaded.digest == edit.digest != edit_of(host, made.layer).gated(other).digest
    assert "## Gate" in (tmp_path / "edit" / "README.md").read_text()
    base = draw(host)
    with loaded.applied(host):
        assert changed(draw(host), base).tolist() == ON.tolist()
    manifest = tmp_path / "edit" / "gate" / "gate.json"
    manifest.write_text(manifest.read_text().replace(f'"measure": "{measure}"', f'"measure": "{other.measure}"'))
    with pytest.raises(ArtefactError, match=r"altered|is not"):
        load_gate(tmp_path / "edit" / "gate")


def test_energy_is_the_same_at_any_padding():
    host = tiny_image_host("sd")
    gate = ChangeGate(DeactivationPart(dog_sae(host), (0,), -8.0, "scale"))
    reader = host.reader([POINT])
    rows = reader.token_ids(DOGS[:1])
    ids, mask = reader.pad(rows)
    short = reader.activations(ids[:, : len(rows[0])], mask[:, : len(rows[0])], [POINT])[POINT]
    change, _ = gate.layer.change(short)
    kept = reader.keep_mask(ids, mask)[:, : len(rows[0])]
    want = change.double().square().mean(-1).masked_fill(~kept, 0).amax(1)
    torch.testing.assert_close(gate.score_rows(host, rows), want)
    assert float(want.detach()) > 0


def test_energy_counts_a_prompts_own_tokens_alone():
    host = tiny_image_host("sd")
    sae, first = dog_sae(host), activations(host, DOGS)[0, 0]
    with torch.no_grad():
        sae.W_enc[:, 0] = first / first.norm()
        sae.b_enc[0] = -0.9 * float(first.norm())
    gate = ChangeGate(DeactivationPart(sae, (0,), -8.0, "scale"))
    fires = gate.layer.change(activations(host, DOGS))[1]
    assert bool(fires[:, 0].all())  # the layer moves BOS
    assert not bool(fires[:, 1:].any())
    assert gate.score(host, DOGS).tolist() == [0, 0]


def test_the_published_threshold_lets_every_target_prompt_through_and_states_no_rate():
    host = tiny_image_host("sd")
    layer = DeactivationPart(dog_sae(host), (0,), -8.0, "scale", keep_error=False, spare_first=True)
    gate = ChangeGate(layer, "reconstruction").as_published(host, DOGS)
    scores = gate.score(host, DOGS)
    assert gate.require_threshold().threshold == pytest.approx(0.99 * float(scores.min()))
    assert bool(gate.fires(scores).all())
    assert "unknown" in gate.summary()
    quiet = ChangeGate(DeactivationPart(dog_sae(host), (0,), -8.0, "scale"))
    with pytest.raises(MatchedNothing, match="red apple"):
        quiet.as_published(host, [*DOGS, REST[0]])
    for call in (lambda: quiet.as_published(host, []), lambda: quiet.calibrated(host, DOGS, []), lambda: quiet.calibrated(host, [], REST)):
        with pytest.raises(MatchedNothing):
            call()


def test_kinds_of_gates_do_not_pass_for_each_other(tmp_path):
    host = tiny_image_host("sd")
    gate = ChangeGate(DeactivationPart(dog_sae(host), (0,), -8.0, "scale")).calibrated(host, DOGS, POOL, fpr=0.0)
    gate.save(tmp_path / "g")
    assert load_gate(tmp_path / "g").digest == gate.digest
    with pytest.raises(ArtefactError):
        Gate.load(tmp_path / "g")
    with pytest.raises((UnknownName, Exception), match="measure"):
        ChangeGate(gate.layer, "loudness")  # type: ignore[arg-type]
