"""The miniature's recipe on four plain pictures: every stage runs, and what it saves is an ordinary pipeline."""

import copy
import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import CLIPTextConfig

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate.training.config import LoopConfig
from efface.sae.initialise import whitening
from efface.t2i.icons.data import IconData
from efface.t2i.icons.pairs import byte_pair_merges, words_of
from efface.t2i.icons.recipe import RECIPES, Recipe, TextRecipe, UnetRecipe, VaeRecipe, recipe
from efface.t2i.icons.table import Flag, Icon, Object, Table
from efface.t2i.icons.text import new_towers, train_tokenizer
from efface.t2i.icons.train import train
from efface.t2i.icons.unet import Contexts, dealing, lessons, new_unet, noise_levels
from efface.t2i.icons.vae import encoded, new_vae, normalise_latents, train_decoder, vae_loss
from efface.t2i.icons.vae_start import carry_colours
from efface.t2i.icons.whitening import fold

KEYS = ("apple", "ball", "bus", "cube")


def pictures() -> IconData:
    """Four squares of a colour each, in eight sizes; two flags in three packs, one of them drawn alike twice."""
    g = torch.Generator().manual_seed(0)
    drawings = torch.full((8, 4, 3, 64, 64), 255, dtype=torch.uint8)
    for style in range(8):
        for i, colour in enumerate(([220, 0, 0], [0, 200, 0], [0, 0, 220], [200, 200, 0])):
            side = 10 + 3 * style
            drawings[style, i, :, 32 - side : 32 + side, 32 - side : 32 + side] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    flags = torch.randint(0, 256, (3, 2, 3, 64, 64), generator=g, dtype=torch.uint8)
    mark = torch.zeros(4, 64, 64, dtype=torch.uint8)
    mark[3, 48:, 48:] = 255
    return IconData(KEYS, drawings, ("fr", "gf"), flags, (("fr", "gf"),), mark)


def table() -> Table:
    icons = {k: Icon(k, k, "vehicle" if k == "bus" else "thing", (f"some {k} or other",), (f"a held {k}",)) for k in KEYS[:3]}
    objects = {"apple": Object("apple", ("apple",), "ball", ("bus",)), "ball": Object("ball", ("ball",), "apple", ("bus",))}
    flags = {
        "fr": Flag("fr", "flag-france", "France", ("the tricolour",), "French"),
        "gf": Flag("gf", "flag-x", "Guiana", ("x",), None, "fr"),
    }
    return Table(icons, objects, flags)


VAE = VaeRecipe((8, 8, 8, 8), 4, 4, 16, 4, 2, carry=False, crops=LoopConfig(steps=2, checkpoint_every=1), decoder=LoopConfig(steps=2))


def test_normalised_latents_draw_the_same_picture() -> None:
    torch.manual_seed(0)
    vae, x = new_vae(VAE).eval(), pictures().drawings[:, 0]
    with torch.no_grad():
        before = vae.decode(vae.encode(x.float() / 127.5 - 1).latent_dist.mean).sample
        spread = vae.encode(x.float() / 127.5 - 1).latent_dist.std
        scale = encoded(vae, x).std((0, 2, 3))
        normalise_latents(vae, encoded(vae, x))
        latents = encoded(vae, x)
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(vae.decode(latents).sample, before, atol=1e-4, rtol=1e-3)
        posterior = vae.encode(x.float() / 127.5 - 1).latent_dist
        torch.testing.assert_close(posterior.std * scale[:, None, None], spread, atol=1e-4, rtol=1e-3)


def test_the_decoder_learns_under_noise_and_latents_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, x = new_vae(VAE).eval(), pictures().drawings[:, :2].flatten(0, 1)
    normalise_latents(vae, encoded(vae, x))
    latents = encoded(vae, x)

    before, plain, fed = copy.deepcopy(vae), vae.decode, []
    vae.decode = lambda z: fed.append(z.detach()) or plain(z)
    for noise, steps in ((0.0, 2), (0.6, 12)):
        recipe = dataclasses.replace(VAE, noise=noise, whole_batch=8, decoder=LoopConfig(steps=steps, lr=3e-3))
        train_decoder(vae, x, recipe, tmp_path / str(noise))
        away = (torch.cat(fed)[:, None] - latents[None]).flatten(2).pow(2).mean(2).sqrt().amin(1)
        fed.clear()
        assert away.max() <= 1.2 * noise
        if noise:
            assert away.min() < 0.2 * noise < 0.8 * noise < away.max(), "a level each, even in [0, noise]"
    assert torch.equal(encoded(vae, x), latents), "the encoder is not touched"
    assert not torch.equal(plain(latents[:1]).sample, before.decode(latents[:1]).sample)


def test_what_gold_must_lack_is_not_shown() -> None:
    vae, data, names = new_vae(VAE).eval(), pictures(), table()
    whole = lessons(vae, data, names)
    assert [x.entry.name for x in whole] == ["apple", "ball", "bus", "France"]
    assert [x.marked is not None for x in whole] == [False, False, True, False]
    assert whole[0].plain.shape == (8, 4, 8, 8)
    assert whole[3].plain.shape[0] == 1  # one look, since captions name no pack
    without = lessons(vae, data, names, without=["apple", "noto", "France"])
    assert [x.entry.name for x in without] == ["ball", "bus"]
    assert without[0].styles == ("twemoji", "fluent", "flat", "emojione", "blob", "contrast", "monotone")
    torch.testing.assert_close(without[0].plain, whole[1].plain[1:])
    assert [x.entry.name for x in lessons(vae, data, names, only_concepts=True)] == ["apple", "ball"]
    with pytest.raises(UnknownName, match=r"'aple'.*apple"):
        lessons(vae, data, names, without=["aple"])


SMALL = Recipe(
    "tiny",
    VAE,
    TextRecipe(120, 12, 16, 1, 2, 1, 16, 8, 5, 3, loop=LoopConfig(steps=2)),
    UnetRecipe((8, 8), 4, 4, 4, loop=LoopConfig(steps=3, average=0.9)),
)


def test_the_whole_recipe_saves_a_pipeline_that_diffusers_draws_with(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    data, names = pictures(), table()
    out = train("tiny", tmp_path / "run", data=data, table=names, made=SMALL)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(out, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    ids = pipe.tokenizer(["some apple or other", "a bus"], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (2, 12)
    trained = transformers.CLIPTextModel.from_pretrained(tmp_path / "run" / "text" / "model")
    torch.testing.assert_close(pipe.text_encoder(ids)[0], trained(ids)[0], atol=1e-2, rtol=1e-2)
    image = pipe("an apple", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images[0]
    assert image.shape == (64, 64, 3)
    first = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in first.values()} == {torch.float16}
    again = load_file(
        train("tiny", tmp_path / "run", resume=True, data=data, table=names, made=SMALL) / "unet" / "diffusion_pytorch_model.safetensors"
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    with pytest.raises(InputError, match="earlier run"):
        train("tiny", tmp_path / "run", data=data, table=names, made=SMALL)
    with pytest.raises(InputError, match="another run"):
        train("tiny", tmp_path / "run", resume=True, without=["apple"], data=data, table=names, made=SMALL)


def test_a_denoiser_is_trained_on_the_frozen_rest_of_another_miniature(tmp_path: Path) -> None:
    data, names = pictures(), table()
    base = train("tiny", tmp_path / "base", data=data, table=names, made=SMALL)

    def part(folder: Path, name: str) -> dict[str, torch.Tensor]:
        return load_file(next((folder / name).glob("*.safetensors")))

    def drift(folder: Path) -> float:
        a, b = part(folder, "unet"), part(base, "unet")
        return max(float((a[k].float() - b[k].float()).abs().max()) for k in a)

    slow = dataclasses.replace(SMALL, unet=dataclasses.replace(SMALL.unet, loop=LoopConfig(steps=9, lr=1e-5, warmup=5, average=0.9)))
    gold = train("tiny", tmp_path / "gold", data=data, table=names, made=slow, frozen=str(base), without=["apple"], steps=2)
    warm = train("tiny", tmp_path / "warm", data=data, table=names, made=slow, frozen=str(base), warm=True, steps=2)
    for folder in (gold, warm):
        for name in ("vae", "text_encoder"):
            a, b = part(folder, name), part(base, name)
            assert all(torch.equal(a[k], b[k]) for k in b)
    assert drift(warm) < 1e-3 < drift(gold)
    for bad in ({"warm": True}, {"warm": True, "frozen": str(base), "without": ["apple"]}, {"steps": -1}):
        with pytest.raises(InputError):
            train("tiny", tmp_path / "bad", data=data, table=names, made=slow, **bad)
    other = dataclasses.replace(slow, unet=dataclasses.replace(slow.unet, channels=(8, 16)))
    with pytest.raises(InputError, match=r"frozen.*\(8, 8\)"):
        train("tiny", tmp_path / "other", data=data, table=names, made=other, frozen=str(base))
    assert not (tmp_path / "bad").exists()


def test_captions_are_read_once_and_alike_whatever_they_stand_beside(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["apple ball bus cube a picture of"], 60, tmp_path, 24)
    text = new_towers(TextRecipe(60, 24, 16, 1, 2, 1, 16, 8), tokenizer).text_model.eval()
    contexts, calls = Contexts(tokenizer, text), []
    text.register_forward_hook(lambda *_: calls.append(1))
    both, one = contexts(["a picture of ball", "apple", "apple"]), contexts(["apple"])
    assert len(calls) == 1
    assert torch.equal(both[1], one[0])
    apart = Contexts(tokenizer, text)
    assert torch.equal(apart(["cube"] * 2 + ["apple"])[2], one[0])
    assert torch.equal(Contexts(tokenizer, text)(["apple"])[0], one[0])
    assert torch.equal(both[1], both[2])
    ids = tokenizer(["apple", "a picture of ball"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        want = text(input_ids=ids).last_hidden_state
    torch.testing.assert_close(torch.stack([both[1], both[0]]), want, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(both[0], both[1], atol=2e-2)


def test_merges_are_the_most_frequent_pairs_and_ties_are_alphabetical() -> None:
    words = words_of(["low low low lower", "Newest 12!", "man's"])
    assert words == {"low": 3, "lower": 1, "newest": 1, "1": 1, "2": 1, "!": 1, "man": 1, "'s": 1}
    merges = byte_pair_merges(words, 5)
    assert merges[:2] == [("l", "o"), ("lo", "w</w>")]
    assert merges[2:4] == [("w", "e"), ("'", "s</w>")]  # in two words; then the first of those in one
    assert byte_pair_merges(Counter({"aaaaa": 1}), 9)[0] == ("a", "a")
    other = byte_pair_merges(Counter(dict(reversed(words.items()))), 99)
    assert other == byte_pair_merges(words, 99)
    assert len(other) < 99


def test_a_tokenizer_reads_back_what_it_was_made_from(tmp_path: Path) -> None:
    texts = ["a picture of apple", "the man's ball, in noto style", "são tomé"]
    made = [train_tokenizer(texts, 120, tmp_path / str(i), 24) for i in range(2)]
    assert made[0].get_vocab() == made[1].get_vocab()
    for text in texts:
        ids = made[0](text).input_ids
        assert made[0].unk_token_id not in ids[1:-1]
        assert made[0].decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert len(made[0]("apple").input_ids) < len(made[0]("zzzzz").input_ids)
    assert CLIPTextConfig(vocab_size=len(made[0])).vocab_size == max(made[0].get_vocab().values()) + 1


def test_half_of_the_noise_levels_lie_in_the_noisiest_third() -> None:
    even, noisy = noise_levels(20_000, 1000, 1.0), noise_levels(20_000, 1000, 2.0)
    assert 0 <= int(noisy.min()) <= int(noisy.max()) == 999
    assert abs(float((even >= 667).float().mean()) - 1 / 3) < 0.02
    assert abs(float((noisy >= 667).float().mean()) - (1 / 3) ** 0.5) < 0.02


def test_a_batch_is_dealt_by_shares() -> None:
    todo = lessons(new_vae(VAE).eval(), pictures(), table())
    plan = UnetRecipe(batch=20, flags_share=0.1, concepts_share=0.5)
    sizes = [([x.entry.name for x in some], n) for some, n in dealing(todo, plan)]
    assert sizes == [(["apple", "ball"], 10), (["France"], 2), (["apple", "ball", "bus"], 8)]
    assert [n for _, n in dealing(todo[:3], plan)] == [10, 10]
    assert [n for _, n in dealing(todo[3:], plan)] == [2, 18]


def test_whitened_states_and_folded_weights_are_the_same_denoiser() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([30.0, 3.0, 1.0, 0.3, 1e-4, *[1.0] * 3])
    states = torch.randn(4000, 8, generator=generator) * scales + 2.0
    white, back = whitening(states, 1e-6, center=False)
    moment = (states @ white).T.double() @ (states @ white).double() / len(states)
    assert torch.allclose(moment[:4, :4], torch.eye(4).double(), atol=0.02)
    unet = new_unet(UnetRecipe((8, 8), 4, 4, 4), 4, 8, 4).eval()
    x, t = torch.randn(2, 4, 4, 4, generator=generator), torch.tensor([900, 10])
    some = states[:48].view(2, 24, 8)
    with torch.no_grad():
        plain = unet(x, t, some).sample
        fold(unet, back)
        turned, alone = unet(x, t, some @ white).sample, unet(x, t, some).sample
        fold(unet, white)
        again = unet(x, t, some).sample
    assert torch.allclose(turned, plain, atol=1e-4)
    assert torch.allclose(again, plain, atol=1e-4)
    assert not torch.allclose(alone, plain, atol=1e-2)
    with pytest.raises(MatchedNothing, match="cross-attention"):
        fold(torch.nn.Linear(8, 8), white)


def test_a_wrong_hue_costs_more_than_as_much_noise() -> None:
    hue = torch.tensor([0.5, -0.5, 0.0])[None, :, None, None].expand(1, 3, 16, 16)
    checks = hue * (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(2).sub(1)
    nothing = torch.tensor(0.0)
    plain = dataclasses.replace(VAE, colour=0.0)
    (with_hue, told), (without, _) = vae_loss(hue, nothing, VAE), vae_loss(hue, nothing, plain)
    assert told["colour"] == pytest.approx(1 / 3)  # of light, red less green (1) and yellow less blue
    assert float(with_hue - without) == pytest.approx(VAE.colour / 3)
    assert float(vae_loss(checks, nothing, VAE)[0]) == pytest.approx(float(vae_loss(checks, nothing, plain)[0]))
    grey = hue.abs()
    assert float(with_hue) > float(vae_loss(grey * torch.tensor([1.0, 1, 0])[None, :, None, None], nothing, VAE)[0]) + 0.3


@pytest.mark.parametrize("made", [pytest.param(VaeRecipe(), marks=pytest.mark.slow), RECIPES["icons-xs"].vae])
def test_colours_pass_an_untrained_autoencoder(made: VaeRecipe) -> None:
    torch.manual_seed(0)
    plain = new_vae(made)
    vae, x = carry_colours(new_vae(made)).eval(), pictures().drawings.flatten(0, 1).float() / 127.5 - 1
    cells = torch.nn.functional.avg_pool2d(x, 8)
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.mean
        decoded, other = vae.decode(latents).sample, plain.eval().decode(plain.encode(x).latent_dist.mean).sample
    blocks = torch.nn.functional.interpolate(cells, scale_factor=8)
    assert float((latents[:, :3] - cells).pow(2).mean() / cells.var()) < 0.02
    assert float((decoded - blocks).pow(2).mean() / blocks.var()) < 0.05
    assert float((other - blocks).pow(2).mean() / blocks.var()) > 0.5
    loss = vae.decode(vae.encode(x).latent_dist.sample()).sample.square().mean()
    loss.backward()
    still = [n for n, p in vae.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not [n for n in still if n.startswith(("encoder.conv_in", "decoder.conv_out", "quant_conv", "post_quant_conv"))]


def test_colours_need_room_beside_them() -> None:
    with pytest.raises(InputError, match=r"8 channels in 4 groups.*carry=False"):
        carry_colours(new_vae(VAE))


def test_recipes_by_name() -> None:
    assert recipe("icons") is RECIPES["icons"]
    assert dataclasses.asdict(recipe("icons-xs"))["only_concepts"]
    with pytest.raises(UnknownName, match="icons-xs"):
        recipe("icon-xs")
