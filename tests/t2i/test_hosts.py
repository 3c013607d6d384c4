"""Image hosts on tiny real pipelines of four families: the six questions, hook points, both layouts of CLIP, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from t2i._kit import DOGS, MIXED, SIZE, bits, changed, draw, sae_at, same, tiny_image_host
from t2i._old_clip import OldTextModel
from tiny_pipelines import FAMILIES, LAYERS, TOKENS, WIDTH, tiny_pipeline

from efface.base.errors import HookPointNotFound, InputError, MatchedNothing, UnknownName
from efface.llm.hooks import captured
from efface.t2i.host import Batch, ImageHost, States

TOO_LONG = "a red apple a big dog the blue bus a green tree"


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_those_of_the_plain_pipeline(family: str) -> None:
    host = tiny_image_host(family)
    drawn = draw(host, MIXED[:2], seed=3)
    generators = [torch.Generator().manual_seed(3 + i) for i in range(2)]
    plain = host.pipeline(MIXED[:2], num_inference_steps=2, output_type="pt", height=SIZE[0], width=SIZE[1], generator=generators).images
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (2, 3, *SIZE)
    assert torch.equal(drawn, (plain * 255).round().to(torch.uint8))
    assert changed(drawn, draw(host, MIXED[:2], seed=4)).all()


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_noise_depends_neither_on_batch_nor_on_place(family: str) -> None:
    host = tiny_image_host(family)
    seen: list[torch.Tensor] = []
    own = host.pipeline.prepare_latents

    def prepare(*args: object, **kwargs: object) -> object:
        out = own(*args, **kwargs)
        seen.append(out[0] if isinstance(out, tuple) else out)
        return out

    host.pipeline.prepare_latents = prepare
    draw(host, MIXED, seeds=[7, 8, 9, 10])
    draw(host, MIXED[::-1], seeds=[10, 9, 8, 7], batch=3)
    whole, parts = seen[0], torch.cat(seen[1:])
    assert [len(s) for s in seen] == [4, 3, 1]
    assert torch.equal(whole, parts.flip(0))
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_encode_predict_and_loss(family: str) -> None:
    host = tiny_image_host(family)
    states = host.encode(MIXED)
    assert states.prompts == tuple(MIXED)
    assert host.encode(["", ""], negative=True).prompts == (None, None)
    latents = torch.randn(4, 4, 4, 4)
    with torch.no_grad():
        out = host.predict(latents, 500, states)
        assert out.shape == latents.shape
        assert changed(out, host.predict(latents, 10, states)).all()
        assert changed(out, host.predict(latents, 500, host.encode(MIXED[::-1]))).any()
    images = draw(host)
    batch = Batch(MIXED, images, seed=5)
    loss = host.loss(batch)
    loss.backward()
    assert torch.equal(loss, host.loss(Batch(MIXED, latents=host.latents(images), seed=5)))
    assert not torch.equal(loss, host.loss(Batch(MIXED, images, seed=6)))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in host.weights("cross_attention").values())
    for bad in (lambda: Batch(MIXED), lambda: Batch(MIXED[:2], images), lambda: Batch([], images)):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(InputError, match=r"\[0, 1000\)"):
        host.loss(Batch(MIXED, images, steps=[0, 1, 2, 1000]))


def test_a_perfect_denoiser_has_no_loss() -> None:
    host = tiny_image_host("sd")
    images = draw(host)
    batch = Batch(MIXED, images, steps=[0, 200, 500, 999])
    worse = host.loss(batch)
    clean = host.latents(images)
    scheduler = host.pipeline.scheduler

    def knows(pipeline: object, noisy: torch.Tensor, steps: torch.Tensor, states: States) -> torch.Tensor:
        kept = scheduler.alphas_cumprod[steps][:, None, None, None]
        return (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()

    host.family = SimpleNamespace(**{**vars(host.family), "predict": knows})  # type: ignore[assignment]
    assert host.loss(batch) < 1e-6 < 0.1 < worse


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_point_fires_and_has_the_width_it_says(family: str) -> None:
    host = tiny_image_host(family)
    sites = [host.resolve(p) for p in host.hook_points()]
    with captured(sites) as seen:
        draw(host, MIXED[:1], guidance=1.0)
    for site in sites:
        assert seen[site.hook_point].shape[-1] == site.d, site.hook_point
        assert seen[site.hook_point].ndim == 3
    first = f"{host.family.denoiser}.{'up_blocks.1.attentions.1' if host.family.spatial else 'transformer_blocks.0'}.out"
    assert first in seen
    assert "text_encoder.layers.1.resid_post" in seen
    assert ("text_encoder.layers.2.resid_post" in seen) == (family != "sdxl")
    for typo, near in (
        ("text_encoder.layers.9.resid_post", "text_encoder.layers"),
        ("unet.up_block.1.out", host.family.denoiser),
        ("layers.1.x", "The part comes first"),
    ):
        with pytest.raises(HookPointNotFound, match=near):
            host.resolve(typo)


def test_reading_stops_behind_the_deepest_layer() -> None:
    host = tiny_image_host("sdxl")
    ran: list[int] = []
    for i, layer in enumerate(host.readers["text_encoder"].layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    points = ["text_encoder.layers.0.mlp_hidden", "text_encoder_2.layers.1.resid_post"]
    seen = host.activations(MIXED, points)
    assert ran == []
    assert [seen[p].shape for p in points] == [(4, TOKENS, 32), (4, TOKENS, WIDTH)]
    host.activations(MIXED, ["text_encoder.layers.1.mlp_in"])
    assert ran == [0]
    host.encode(MIXED)
    assert ran == [0, *range(LAYERS)]
    with pytest.raises(InputError, match="unet"):
        host.activations(MIXED, ["unet.mid_block.attentions.0.out"])
    with pytest.raises(MatchedNothing):
        host.activations(MIXED, [])


def test_both_layouts_of_clip() -> None:
    new, pipeline = tiny_image_host("sd"), tiny_pipeline("sd")
    pipeline.__dict__["text_encoder"] = OldTextModel(pipeline.text_encoder)
    old = ImageHost(pipeline, "old")
    assert (new.readers["text_encoder"].path, old.readers["text_encoder"].path) == ("encoder.layers", "text_model.encoder.layers")
    assert old.hook_points() == new.hook_points()
    points = [p for p in new.hook_points() if p.startswith("text_encoder")]
    a, b = new.activations(MIXED, points), old.activations(MIXED, points)
    assert all(torch.equal(a[p], b[p]) for p in points)
    assert not torch.equal(a[points[0]], a[points[-1]])
    for host in (new, old):
        base = host.encode(MIXED).embeds
        with host.replaced("text_encoder.layers.1.resid_post", lambda x: 2 * x) as fired:
            assert not torch.equal(host.encode(MIXED).embeds, base)
        fired.check()
        assert torch.equal(host.encode(MIXED).embeds, base)
    assert set(old.weights("text_mlp")) == {n.replace("text_encoder.", "text_encoder.text_model.") for n in new.weights("text_mlp")}
    with_projection = tiny_image_host("sdxl").readers["text_encoder_2"]
    assert with_projection.path == "text_model.encoder.layers"


@pytest.mark.parametrize("hook_point", ["text_encoder.layers.1.resid_post", "text_encoder.layers.2.resid_pre"])
def test_hidden_states_that_a_pipeline_reads_are_the_rewritten_ones(hook_point: str) -> None:
    """SD 3 reads `hidden_states[-2]`, which transformers records with a hook of its own on the same layer."""
    host = tiny_image_host("sd3")
    base = host.encode(MIXED).embeds  # the recording hook now lies there, before ours
    with host.replaced(hook_point, lambda x: x + 1), host.replaced(hook_point, lambda x: 2 * x):
        new = host.encode(MIXED).embeds
    torch.testing.assert_close(new[:, :TOKENS, :WIDTH], 2 * (base[:, :TOKENS, :WIDTH] + 1))
    assert torch.equal(new[:, TOKENS:], base[:, TOKENS:])


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_by_role(family: str) -> None:
    host = tiny_image_host(family)
    named = dict(host.model.named_parameters())
    for role in ("cross_attention", "text_mlp", "down_proj", "text_attention", "text_embedding", "denoiser", "all"):
        found = host.weights(role)
        assert found
        assert all(named[n] is p for n, p in found.items())
    assert len(host.weights("text_mlp")) >= 2 * len(host.weights("down_proj"))
    assert set(host.weights("down_proj")) < set(host.weights("text_mlp"))
    cross = host.weights("cross_attention")
    width = {p.shape[1] for p in cross.values()}
    assert len(width) == 1
    if host.family.spatial:
        assert width == {host.denoiser.config.cross_attention_dim}
    with pytest.raises(UnknownName, match="cross_attention"):
        host.weights("cross_atention")


def test_token_roles() -> None:
    host = tiny_image_host("flux")
    roles = host.token_roles("a big dog", "dog")
    assert (roles.subject, roles.last_subject, roles.eos, len(roles.input_ids)) == ((3,), 3, 4, TOKENS)
    assert roles.padding == tuple(range(5, TOKENS))
    t5 = host.token_roles("a big dog", "big", part="text_encoder_2")
    assert (t5.subject, t5.eos, len(t5.input_ids)) == ((1,), 3, 512)
    with pytest.raises(MatchedNothing, match="cat"):
        host.token_roles("a big dog", "cat")


def test_which_tokens_count() -> None:
    reader = tiny_image_host("sd").readers["text_encoder"]
    ids, mask = reader.pad(reader.token_ids(["a big dog", "the puppy"]))
    assert ids.shape == (2, TOKENS)
    first = reader.tokenizer(["a big dog"], padding="max_length", max_length=TOKENS, return_tensors="pt")
    assert torch.equal(ids[:1], first.input_ids)
    assert torch.equal(mask[:1], first.attention_mask)
    kept = reader.keep_mask(ids, mask)[0]
    assert kept.tolist() == [False, True, True, True, True] + [False] * (TOKENS - 5)  # BOS, a, big, dog, EOS, padding
    assert reader.token_policy["eos"] == "kept"


def test_what_is_refused() -> None:
    for family in FAMILIES:
        host = tiny_image_host(family)
        for call in (
            lambda h=host: h.encode([TOO_LONG]),
            lambda h=host: draw(h, [TOO_LONG]),
            lambda h=host: h.activations([TOO_LONG], ["text_encoder.layers.1.resid_post"]),
        ):
            with pytest.raises(InputError, match=rf"16 tokens.*takes {TOKENS}"):
                call()
    host = tiny_image_host("sd")
    for options, message in (
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"seeds": [1]}, "seeds"),
        ({"negative": ["a"]}, "negative"),
        ({"negative": TOO_LONG}, "16 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            draw(host, MIXED, **options)
    with pytest.raises(InputError, match="no negative prompt"):
        draw(tiny_image_host("flux"), MIXED, negative="a dog")
    for prompts in ([], "a dog"):
        with pytest.raises(InputError):
            host.generate(prompts)
    pipeline = tiny_pipeline("sd")
    pipeline.text_encoder = None
    with pytest.raises(InputError, match="no text_encoder"):
        ImageHost(pipeline, "blind")
    with pytest.raises(UnknownName, match="StableDiffusionPipeline"):
        ImageHost(host.pipeline.unet, "a part")
    no_t5 = tiny_pipeline("sd3")
    no_t5.text_encoder_3 = None
    assert draw(ImageHost(no_t5, "no-t5"), DOGS).shape[0] == 2


def test_an_sae_of_another_encoder() -> None:
    host, point = tiny_image_host("sdxl"), "text_encoder.layers.1.resid_post"
    sae = sae_at(host, point)
    sae.card |= {"model_digest": host.reader([point]).digest, "model": "here"}
    host.check_sae(sae)
    sae.card["hook_point"] = "text_encoder_2.layers.1.resid_post"
    with pytest.raises(InputError, match="another text encoder"):
        host.check_sae(sae)
    with pytest.raises(InputError, match="width 32"):
        host.check_sae(sae_at_width(sae, "text_encoder_2.layers.1.mlp_hidden"))
    with pytest.raises(InputError, match="one text encoder at a time"):
        host.reader([point, "text_encoder_2.layers.1.resid_post"])
    other = tiny_image_host("sd3").reader([point]).digest
    assert other != host.reader([point]).digest == tiny_image_host("sd").reader([point]).digest


def sae_at_width(sae: object, point: str) -> object:
    """The same SAE said to be elsewhere."""
    sae.card["hook_point"] = point
    return sae


def test_the_digest_follows_the_weights() -> None:
    host = tiny_image_host("sd")
    before, state = host.digest, bits(host)
    assert before == tiny_image_host("sd").digest
    name, weight = next(iter(host.weights("cross_attention").items()))
    with torch.no_grad():
        weight.add_(1)
    assert host.digest != before
    with torch.no_grad():
        weight.copy_(state[name])
    assert host.digest == before
    assert same(bits(host), state)
