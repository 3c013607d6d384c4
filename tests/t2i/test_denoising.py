"""Activations of a denoiser: which calls and rows are read, the same for the same seed, resumed to the bit; the time of a call."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from t2i._kit import DOGS, LAST, MIXED, REST, draw, edit_of, layer_part, projection, tiny_image_host, weights_part
from tiny_pipelines import FAMILIES, tiny_pipeline

from efface.base.errors import HookPointNotFound, InputError, MatchedNothing, UnknownName
from efface.cli.main import run
from efface.deactivate.edit import Edit
from efface.sae import SAE
from efface.t2i.clock import clock
from efface.t2i.denoising import DenoiserSource, read_drawing
from efface.t2i.drawing_config import DrawingConfig
from efface.t2i.host import ImageHost
from efface.t2i.saes import part_digest

POINT, OTHER = LAST["sd"], "unet.mid_block.attentions.0.out"
PROMPTS = [f"a {c} {w}" for c in ("red", "big", "blue", "old") for w in ("dog", "cat", "bus", "tree", "house", "sea")]
TWO = DrawingConfig(denoise_steps=2, size=(32, 32), pictures=2)


def hooks(host: ImageHost) -> dict[str, tuple[int, int]]:
    return {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in host.model.named_modules()}


def source(host: ImageHost, config: DrawingConfig = TWO, **options) -> DenoiserSource:
    return DenoiserSource(host, PROMPTS[:6], [POINT, OTHER], config, **{"batch": 32, "buffer": 64, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_time_of_a_call_is_what_the_denoiser_is_told(family: str) -> None:
    host, seen = tiny_image_host(family), list[torch.Tensor | None]()

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(host.timestep)
        return x

    states, before = host.encode(MIXED[:2]), hooks(host)
    with torch.no_grad(), clock(host), host.replaced(LAST[family], note):
        host.predict(torch.randn(2, 4, 4, 4), torch.tensor([500, 20]), states)
        host.predict(torch.randn(2, 4, 4, 4), 7, states)
        with pytest.raises(RuntimeError), host.replaced(LAST[family], _fails):
            host.predict(torch.randn(2, 4, 4, 4), 9, states)
        assert host.timestep is None
    with torch.no_grad(), host.replaced(LAST[family], note):
        host.predict(torch.randn(2, 4, 4, 4), 7, states)
    assert seen[0] is not None
    assert seen[0].round().tolist() == [500, 20]
    assert seen[1] is not None
    assert seen[1].round().unique().tolist() == [7]
    assert seen[-1] is None  # nobody asked for it
    assert hooks(host) == before


def _fails(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("within the denoiser")


def test_steps_rows_and_points_are_those_asked_for() -> None:
    host = tiny_image_host("sd")
    before = hooks(host)
    whole = read_drawing(host, DOGS, [1, 2], [POINT, OTHER], TWO)
    assert [round(t) for t in whole] == [501, 1]
    assert {p: tuple(x.shape) for p, x in whole[min(whole)].items()} == {POINT: (4 * 16, 8), OTHER: (4 * 4, 16)}
    own = read_drawing(host, DOGS, [1, 2], [POINT], DrawingConfig(2, (1,), None, "conditional", "", (32, 32)))
    assert list(own) == [min(whole)]
    assert torch.equal(own[min(whole)][POINT], whole[min(whole)][POINT][32:])  # the negative rows come first
    assert not torch.equal(whole[min(whole)][POINT][:32], whole[min(whole)][POINT][32:])
    bare = read_drawing(host, DOGS, [1, 2], [POINT], DrawingConfig(2, guidance=0.0, size=(32, 32)))
    assert len(bare[min(bare)][POINT]) == 32  # no half for a negative prompt
    other = read_drawing(host, DOGS, [1, 3], [POINT], TWO)
    assert torch.equal(other[max(other)][POINT][32:48], whole[max(other)][POINT][32:48])  # each from noise of its own
    assert not torch.equal(other[max(other)][POINT][48:], whole[max(other)][POINT][48:])
    assert hooks(host) == before


def test_points_of_unlike_sizes_are_not_read_together() -> None:
    host = tiny_image_host("sd")
    with pytest.raises(InputError, match="as many patches"):
        list(source(host))


def test_a_source_is_the_same_for_a_seed_and_goes_on_to_the_bit() -> None:
    host = tiny_image_host("sd")

    def one(**options) -> DenoiserSource:
        return DenoiserSource(host, PROMPTS[:5], [POINT], TWO, **{"batch": 48, "buffer": 64, "seed": 3, **options})

    first = one()
    want = [b[POINT] for b in first]
    assert sum(map(len, want)) == 5 * 2 * 2 * 16
    again = one()
    assert all(torch.equal(a, b[POINT]) for a, b in zip(want, again, strict=True))
    assert not torch.equal(next(iter(one(seed=4)))[POINT], want[0])
    second = [b[POINT] for b in again]  # the next pass draws anew
    assert not torch.equal(second[0], want[0])
    for stop in (1, 4):
        begun = one()
        taken = list(islice(begun, stop))
        state, resumed = begun.state(), one()
        resumed.restore(state)
        rest = [b[POINT] for b in resumed]
        assert len(taken) + len(rest) == len(want)
        assert all(torch.equal(a, b) for a, b in zip(want[stop:], rest, strict=True))
    assert first.token_policy == {
        "unit": "patch", "denoise_steps": 2, "collect": [], "guidance": 7.5, "halves": "both", "negative": "", "size": [32, 32],
        "times": [501.0, 1.0],
    }  # fmt: skip
    assert first.about == {"model": "tiny-sd", "model_digest": part_digest(host, POINT)}
    foreign = DenoiserSource(host, PROMPTS[:5], [POINT], DrawingConfig(3, size=(32, 32)), batch=48, buffer=64, seed=3)
    with pytest.raises(InputError, match="denoise_steps was 2"):
        foreign.restore(first.state())


def test_what_cannot_be_read_is_refused() -> None:
    host = tiny_image_host("sd")
    text = "text_encoder.layers.1.resid_post"
    for call, error, message in (
        (lambda: DenoiserSource(host, PROMPTS, [text]), InputError, "not in the unet"),
        (lambda: DenoiserSource(host, PROMPTS, [POINT, POINT]), InputError, "different"),
        (lambda: DenoiserSource(host, PROMPTS, ["unet.up_blocks.9.out"]), HookPointNotFound, "nearest"),
        (lambda: DrawingConfig(4, (4,)), InputError, "0 to 3"),
        (lambda: DrawingConfig(4, (1, 1)), InputError, "different steps"),
        (lambda: DrawingConfig(0), InputError, "denoise_steps"),
        (lambda: DrawingConfig(size=(0, 8)), InputError, "size"),
        (lambda: DrawingConfig(halves="left"), (UnknownName, TypeError), "left|halves"),
        (lambda: list(DenoiserSource(host, [" "], [POINT], TWO)), MatchedNothing, "no prompt"),
        (lambda: list(DenoiserSource(host, ["a red apple a big dog the blue bus a green tree"], [POINT], TWO)), InputError, "shorten"),
        (lambda: host.reader([POINT]), InputError, "DenoiserSource"),
    ):
        with pytest.raises(error, match=message):
            call()
    with edit_of(host, layer_part(host)).applied(host), pytest.raises(InputError, match="take it off"):
        read_drawing(host, DOGS, [1, 2], [POINT], TWO)
    base = read_drawing(host, DOGS, [1, 2], [POINT], TWO)
    with edit_of(host, weights_part(host, "cross_attention", size=2.0)).applied(host):
        assert not torch.equal(read_drawing(host, DOGS, [1, 2], [POINT], TWO)[1.0][POINT], base[1.0][POINT])
    with edit_of(host, projection(host, POINT)).applied(host, everywhere=True):
        assert not torch.equal(read_drawing(host, DOGS, [1, 2], [POINT], TWO)[1.0][POINT], base[1.0][POINT])


def test_the_commands_train_on_a_denoiser_and_erase_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, corpus = tmp_path / "sd", tmp_path / "prompts.txt"
    tiny_pipeline("sd").save_pretrained(folder)
    corpus.write_text("\n".join(PROMPTS))
    model = ["--model", str(folder), "--device", "cpu"]
    drawn = [x for s in ("denoise_steps=2", "size=[32, 32]", "pictures=4") for x in ("--set", s)]
    line = ["train", *model, "--at", POINT, "--corpus", str(corpus), "--d-sae", "32", "--k", "4", "--tokens", "1024", "--set", "batch=128"]

    def status(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(list(words))
        return code, *capsys.readouterr()

    for bad, message in ((["--set", "guidanse=3"], "nearest: guidance"), (["--set", "collect=[2]", "--set", "denoise_steps=2"], "collect")):
        code, _, err = status(*line, *drawn[2:], *bad, "--out", str(tmp_path / "bad"))
        assert (code, message in err) == (2, True), err
        assert not (tmp_path / "bad").exists()
    code, out, err = status(*line, *drawn, "--out", str(tmp_path / "sae"), "--json")
    assert code == 0, err
    assert set(json.loads(out)["metrics"]) == {POINT}
    sae, host = SAE.load(tmp_path / "sae"), tiny_image_host("sd")
    assert sae.card["hook_point"] == POINT
    assert sae.card["token_policy"]["times"] == [501.0, 1.0]
    assert sae.card["metrics"]["measured_on"] == "held-out source"
    host.check_sae(sae)
    concept = {"format": 1, "name": "dog", "target": {"train": DOGS}, "general": {"train": REST}}
    (tmp_path / "dog.json").write_text(json.dumps(concept))
    erase = ["erase", "saeuron", *model, "--concept", str(tmp_path / "dog.json"), "--sae", str(tmp_path / "sae")]
    code, out, err = status(*erase, "--set", "percentile=90", "--set", "gamma=-9", "--out", str(tmp_path / "edit"), "--json")
    assert code == 0, err
    assert json.loads(out)["parts"][0]["form"] == "stepwise"
    edit = Edit.load(tmp_path / "edit")
    assert edit.evidence["drawing"]["denoise_steps"] == 2  # type: ignore[call-overload]
    base = draw(host, DOGS)
    with edit.applied(host):
        assert not torch.equal(draw(host, DOGS), base)
    for words, message in ((["--set", "percentile=100"], r"[0, 100)"), (["--set", "between=[2000, 3000]"], "none of the times")):
        code, _, err = status(*erase, *words, "--out", str(tmp_path / "bad"))
        assert (code, message in err) == (2, True), err
        assert len(err.strip().splitlines()) <= 2
