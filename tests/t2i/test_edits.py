"""Edits on pipelines: conditional rows alone, per prompt, to the bit; nesting, offloading, LoRA; what would go past them is refused."""

import gc
from pathlib import Path

import pytest
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module
from safetensors.torch import load_file
from t2i._kit import (
    DOGS,
    LAST,
    MIXED,
    ON,
    REST,
    all_applied,
    bits,
    changed,
    dog_gate,
    draw,
    edit_of,
    layer_part,
    parts_of_kind,
    projection,
    sae_at,
    same,
    tiny_image_host,
    weights_part,
)
from tiny_pipelines import FAMILIES

from efface.base.errors import ArtefactError, HookPointNotFound, InputError, UnknownName
from efface.deactivate.gate import Gate, GateSource
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.ledger import LEDGER, apply_edits, overlay_of, undo_edits
from efface.t2i import load_pipeline
from efface.t2i.host import Batch, ImageHost

KINDS = ("text hook", "text weights", "denoiser hook", "denoiser weights", "all")
CASES = [("sd", k) for k in KINDS] + [(f, k) for f in FAMILIES[1:] for k in ("text weights", "all")]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_below_the_threshold_the_bits_are_the_base(family: str, kind: str) -> None:
    host = tiny_image_host(family)
    edit = edit_of(host, *parts_of_kind(host, family, kind))
    gated = edit.gated(dog_gate(host))
    before, base = bits(host), draw(host)
    states, loss = host.encode(MIXED), host.loss(Batch(MIXED, base, steps=[500] * 4))
    with edit.applied(host):
        all_edited = host.encode(MIXED)
    with gated.applied(host):
        drawn, got, got_loss = draw(host), host.encode(MIXED), host.loss(Batch(MIXED, base, steps=[500] * 4))
        one_batch = draw(host, REST[:2] * 2)
        assert overlay_of(host).current == ()
    assert changed(drawn, base).tolist() == ON.tolist()
    assert torch.equal(got.embeds[~ON], states.embeds[~ON])
    assert torch.equal(got.embeds[ON], all_edited.embeds[ON])
    if kind.startswith("text"):
        assert changed(got.embeds, states.embeds).tolist() == ON.tolist() or family == "flux"
        assert not torch.equal(got.embeds, states.embeds) or not torch.equal(got.pooled, states.pooled)
    assert not torch.equal(got_loss, loss)
    assert torch.equal(one_batch, draw(host, REST[:2] * 2))
    assert same(bits(host), before)
    assert torch.equal(draw(host), base)


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_that_act_on_activations_leave_negative_and_empty_prompts_alone(family: str) -> None:
    host = tiny_image_host(family)
    edit = edit_of(host, layer_part(host), projection(host, LAST[family]))
    prompts = ["", *DOGS]
    base = draw(host, prompts, guidance=0.0 if family == "sd" else None)
    latents = torch.randn(3, 4, 4, 4)
    with torch.no_grad():
        away = host.encode(prompts, negative=True)
        noise, noise_away = host.predict(latents, 500, host.encode(prompts)), host.predict(latents, 500, away)
    with torch.no_grad(), edit.applied(host) as fired:
        drawn = draw(host, prompts, guidance=0.0 if family == "sd" else None)
        again = host.encode(prompts, negative=True)
        assert torch.equal(again.embeds, away.embeds)
        assert torch.equal(host.predict(latents, 500, again), noise_away)
        assert changed(host.predict(latents, 500, host.encode(prompts)), noise).tolist() == [False, True, True]
        assert fired[LAST[family]] > 0 < fired["text_encoder.layers.1.resid_post"]
    assert changed(drawn, base).tolist() == [False, True, True]
    with torch.no_grad(), edit.applied(host, everywhere=True):
        assert changed(draw(host, prompts, guidance=0.0 if family == "sd" else None), base).all()
    with pytest.raises(InputError, match="judges prompts"), edit.gated(dog_gate(host)).applied(host, everywhere=True):
        pass


def test_the_negative_rows_of_a_guided_batch_are_the_base() -> None:
    host = tiny_image_host("sd")
    seen: list[torch.Tensor] = []
    edit = edit_of(host, projection(host, LAST["sd"]))
    own = host.pipeline.scheduler.scale_model_input
    host.pipeline.scheduler.scale_model_input = lambda x, t: own(x, t)
    states, away = host.encode(MIXED), host.encode([""] * 4, negative=True)
    latents, both = torch.randn(8, 4, 4, 4), torch.cat([away.embeds, states.embeds])
    with torch.no_grad():
        base = host.denoiser(latents, 500, both, return_dict=False)[0]
        with edit.applied(host), host.rows([None] * 4 + MIXED):
            seen.append(host.denoiser(latents, 500, both, return_dict=False)[0])
            seen.append(host.denoiser(latents, 500, both).sample)
            with pytest.raises(InputError, match="7 rows, and 8 prompts"):
                host.denoiser(latents[1:], 500, both[1:])
    for out in seen:
        assert changed(out, base).tolist() == [False] * 4 + [True] * 4


def test_nesting_order_exceptions_and_undo() -> None:
    host = tiny_image_host("sd")
    before, base, own = bits(host), draw(host), dict(host.pipeline.__dict__)
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in host.model.named_modules()}
    text, weights = edit_of(host, layer_part(host), seed=1), edit_of(host, weights_part(host, "cross_attention", size=2.0), seed=2)
    gated = edit_of(host, weights_part(host, "text_mlp"), seed=3).gated(dog_gate(host))
    with text.applied(host), weights.applied(host), gated.applied(host):
        inner = draw(host)
    with gated.applied(host), weights.applied(host), text.applied(host):
        assert torch.equal(draw(host), inner)
    with text.applied(host), weights.applied(host):
        without = draw(host)
    assert changed(inner, without).tolist() == ON.tolist()
    assert changed(without, base).all()
    with pytest.raises(RuntimeError), gated.applied(host), host.replaced(LAST["sd"], _fails):
        draw(host)
    assert same(bits(host), before)
    assert torch.equal(draw(host), base)
    moved = weights.apply_(host)
    assert min(moved.values()) > 0
    permanent = draw(host)
    assert changed(permanent, base).all()
    assert sorted(weights.undo_(host)) == sorted(moved)
    assert same(bits(host), before)
    assert host.pipeline.__dict__.keys() == own.keys()
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in host.model.named_modules()} == hooks
    with pytest.raises(InputError, match="no permanent form"):
        text.apply_(host)


def _fails(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("within the denoiser")


def test_calls_past_the_host() -> None:
    """The plain call is edited by changes of weights, and refused where rows are selected by prompt; embeddings go past the encoder."""
    for family in ("sd", "flux"):
        host = tiny_image_host(family)
        options = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}

        def plain(host: ImageHost = host, options: dict = options, **given: object) -> torch.Tensor:
            return host.pipeline(generator=[torch.Generator().manual_seed(i) for i in range(2)], **options, **given).images

        base = plain(prompt=DOGS)
        embeds = host.family.call(host.encode(DOGS), None)
        given = {k: v for k, v in embeds.items() if v is not None}
        weights, hook = edit_of(host, weights_part(host, "text_mlp"), seed=1), edit_of(host, layer_part(host), seed=2)
        with weights.applied(host):
            edited = plain(prompt=DOGS)
            assert torch.equal((edited * 255).round().to(torch.uint8), draw(host, DOGS))
            with pytest.raises(InputError, match=r"prompt_embeds.*go past the edit"):
                plain(**given)
        assert changed(edited, base).all()
        unread = edit_of(host, weights_part(host, "cross_attention", size=2.0))
        with unread.applied(host):
            assert changed(plain(**given), base).all()  # nothing on the text side
        for edit in (hook, weights.gated(dog_gate(host)), unread.gated(dog_gate(host))):
            with edit.applied(host):
                with pytest.raises(InputError, match=r"call host.generate\(prompts"):
                    plain(prompt=DOGS)
                with pytest.raises(InputError, match=r"call host.generate\(prompts"):
                    plain(**given)
        with hook.applied(host, everywhere=True):
            assert changed(plain(prompt=DOGS), base).all()
        torch.testing.assert_close(plain(**given), base)


def test_gate_scores_on_the_unedited_host_each_prompt_alone() -> None:
    host = tiny_image_host("sdxl")
    deep = Gate([GateSource(sae_at(host, "text_encoder_2.layers.2.resid_post"), (0, 1, 2, 3))]).calibrated(host, DOGS, REST)
    scores = deep.score(host, MIXED)
    for i, prompt in enumerate(MIXED):
        assert torch.equal(deep.score(host, [prompt])[0], scores[i])
    with edit_of(host, weights_part(host, "text_mlp")).applied(host), edit_of(host, layer_part(host)).applied(host):
        assert torch.equal(deep.score(host, MIXED), scores)
        assert not torch.equal(
            host.activations(MIXED, ["text_encoder_2.layers.2.resid_post"])["text_encoder_2.layers.2.resid_post"][0, 0], scores
        )
    t5_gate = dog_gate(tiny_image_host("flux"), "text_encoder_2")
    assert t5_gate.require_threshold().pool.mean == 0
    two = Gate([GateSource(sae_at(host, f"{p}.layers.0.resid_post"), (0,)) for p in ("text_encoder", "text_encoder_2")])
    with pytest.raises(InputError, match="one text encoder at a time"):
        two.score(host, MIXED)


def test_under_offloading_hooks_and_a_lora() -> None:
    from peft import LoraConfig

    host = tiny_image_host("sd")
    text, weights = edit_of(host, layer_part(host), seed=1), edit_of(host, weights_part(host, "cross_attention", size=2.0), seed=2)
    gated = edit_of(host, weights_part(host, "text_mlp"), projection(host, LAST["sd"]), seed=3).gated(dog_gate(host))

    def drawn(host: ImageHost) -> list[torch.Tensor]:
        out = [draw(host)]
        for edits in ([text], [weights], [gated], [text, weights, gated]):
            with all_applied(host, edits):
                out.append(draw(host))
        return out

    want = drawn(host)
    for part in ("text_encoder", "unet"):
        add_hook_to_module(host.model[part], CpuOffload("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(drawn(host), want, strict=True))
    host.pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_q"], init_lora_weights=True))
    assert any(".base_layer." in n for n, _ in host.model.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(drawn(host), want, strict=True))  # B of a new LoRA is zero
    with pytest.raises(InputError, match="LoRA lies on unet"):
        apply_edits(host, [weights], "never-written")
    assert not Path("never-written").exists()
    for p in host.pipeline.unet.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        for n, p in host.model.named_parameters():
            if "lora_B" in n:
                p.normal_()
    assert changed(drawn(host)[0], want[0]).all()


def test_what_cannot_take_effect_is_refused() -> None:
    host = tiny_image_host("sd")
    text, weights = edit_of(host, layer_part(host)), edit_of(host, weights_part(host, "cross_attention"))
    with pytest.raises(UnknownName, match="parameter"):
        weights.applied(tiny_image_host("flux")).__enter__()
    with pytest.raises(HookPointNotFound):
        edit_of(tiny_image_host("flux"), layer_part(host, "unet.mid_block.attentions.0.out"))
    sae = sae_at(host, "text_encoder.layers.1.resid_post")
    sae.card["hook_point"] = "text_encoder.layers.1.mlp_hidden"
    with pytest.raises(InputError, match="width is 16, the host's 32"):
        edit_of(host, DeactivationPart(sae, (0,)))
    host.denoiser._compiled_call_impl = lambda *a, **k: None
    for edit in (text, weights.gated(dog_gate(host))):
        with pytest.raises(InputError, match="compiled"), edit.applied(host):
            pass
    host.denoiser._compiled_call_impl = None
    host.denoiser.conv_in.to("meta")
    with pytest.raises(InputError, match="offloaded one by one"), weights.applied(host):
        pass
    assert not overlay_of(host).entries


@pytest.mark.parametrize("family", FAMILIES)
def test_apply_and_undo_in_folders(tmp_path: Path, family: str) -> None:
    host = tiny_image_host(family)
    host.pipeline.save_pretrained(tmp_path / "base")
    a, b = edit_of(host, weights_part(host, "text_mlp"), seed=1), edit_of(host, weights_part(host, "cross_attention", seed=4), seed=2)
    a.save(tmp_path / "a")
    apply_edits(tmp_path / "base", [tmp_path / "a", b], tmp_path / "both")
    applied = load_pipeline(tmp_path / "both")
    with a.applied(host), b.applied(host):
        assert (draw(applied, DOGS).int() - draw(host, DOGS).int()).abs().max() <= 1  # convolutions in another layout
    assert changed(draw(applied, DOGS), draw(load_pipeline(tmp_path / "base"), DOGS)).all()
    assert set(overlay_of(applied).entries) == {a.digest, b.digest}
    undo_edits(tmp_path / "both", [tmp_path / "a"], tmp_path / "b")
    undo_edits(tmp_path / "b", None, tmp_path / "none")
    assert not (tmp_path / "none" / LEDGER).exists()
    assert tensors(tmp_path / "none") == tensors(tmp_path / "base") != tensors(tmp_path / "b") != tensors(tmp_path / "both")
    (tmp_path / "both" / LEDGER).write_text((tmp_path / "both" / LEDGER).read_text()[:-9])
    with pytest.raises(ArtefactError):
        undo_edits(tmp_path / "both", None, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def tensors(folder: Path) -> dict[str, bytes]:
    """Every tensor on disk."""
    found = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name != "efface_edits":
            found |= {f"{path.parent.name}.{n}": t.numpy().tobytes() for n, t in load_file(path).items()}
    return found


def test_hosts_of_one_pipeline_share_their_edits() -> None:
    one = tiny_image_host("sd")
    two = ImageHost(one.pipeline, "again")
    base = draw(one, DOGS)
    with edit_of(one, weights_part(one, "cross_attention", size=2.0)).applied(one):
        assert torch.equal(draw(two, DOGS), draw(one, DOGS))
        assert changed(draw(two, DOGS), base).all()
    with edit_of(one, layer_part(one)).applied(one), pytest.raises(InputError, match="selected by prompt"):
        draw(two, DOGS)
    gc.collect()
