"""Pipelines from folders and aliases, and the commands that take them."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from t2i._kit import DOGS, draw, edit_of, layer_part, tiny_image_host, weights_part
from tiny_pipelines import TOKENS, WIDTH, tiny_pipeline

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.base.files import sha256_file, write_json
from efface.cli.main import run
from efface.deactivate.edit import Edit
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.registry import method
from efface.sae import SAE
from efface.sae.sources.host import HostSource
from efface.t2i import aliases, load_pipeline

POINT = "text_encoder.layers.1.resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline on disk, left as it is."""
    path = tmp_path_factory.mktemp("pipelines") / "sd"
    tiny_pipeline("sd").save_pretrained(path)
    return path


def copy(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to))


def manifest(folder: Path) -> None:
    files = {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_json(folder / "efface-model.json", {"format": 1, "alias": "icons-xs", "files": files})


def status(line: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(line)
    out, err = capsys.readouterr()
    return code, out, err


def test_an_alias_is_checked_file_by_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.t2i import models

    monkeypatch.setattr(models, "packaged", lambda alias: tmp_path / alias)
    with pytest.raises(InputError, match="efface icons train --recipe icons-xs"):
        load_pipeline("icons-xs")
    with pytest.raises(UnknownName, match="icons-xs"):
        load_pipeline("icon-xs")
    place = copy(folder, tmp_path / "icons-xs")
    manifest(place)
    host = load_pipeline("icons-xs")
    assert host.name == "icons-xs"
    drawn, direct = draw(host, DOGS).int(), draw(tiny_image_host("sd"), DOGS).int()
    assert (drawn - direct).abs().max() <= 1  # another layout of the convolutions, other rounding
    assert (drawn[0] - drawn[1]).abs().max() > 1
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="altered"):
        load_pipeline("icons-xs")


def test_damaged_folders(folder: Path, tmp_path: Path) -> None:
    unet, text = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    for number, (file, harm, message) in enumerate(
        (
            (unet, lambda p: p.write_bytes(p.read_bytes()[:-9]), "safetensors|cannot be loaded"),
            (unet, lambda p: _edit_tensors(p, drop="conv_in.weight"), r"unet lacks conv_in\.weight"),
            (text, lambda p: _edit_tensors(p, drop="encoder.layers.0.mlp.fc1.weight"), "text_encoder lacks"),
            (unet, lambda p: _edit_tensors(p, nan="conv_in.weight"), "conv_in.weight.*NaN"),
            (unet, lambda p: p.rename(p.with_suffix(".bin")), "pickled"),
            ("model_index.json", lambda p: p.write_text("{}"), "model_index.json"),
            ("model_index.json", lambda p: p.write_text('{"_class_name": "StableDifusionPipeline"}'), "StableDiffusionPipeline"),
        )
    ):
        place = copy(folder, tmp_path / str(number))
        harm(place / file)
        with pytest.raises(InputError, match=message):
            load_pipeline(place)
    for bad, error in (("./nowhere", "not a folder"), ("nowhere", "icons")):
        with pytest.raises(InputError, match=error):
            load_pipeline(bad)
    with pytest.raises(UnknownName, match="float16"):
        load_pipeline(folder, dtype="flot16")
    load_pipeline(folder)


def _edit_tensors(path: Path, drop: str = "", nan: str = "") -> None:
    tensors = load_file(path)
    tensors.pop(drop, None)
    if nan:
        tensors[nan][0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


def test_own_dtypes_and_old_key_names(folder: Path, tmp_path: Path) -> None:
    place = copy(folder, tmp_path / "half")
    path = place / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({n: t.half() for n, t in load_file(path).items()}, path, {"format": "pt"})
    path = place / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{n}": t for n, t in load_file(path).items()}, path, {"format": "pt"})
    host = load_pipeline(place, dtype="auto")
    assert host.dtype == torch.float16
    assert host.pipeline.text_encoder.dtype == torch.float32
    assert load_pipeline(place).dtype == torch.float32
    assert host.readers["text_encoder"].digest == load_pipeline(folder).readers["text_encoder"].digest


def test_prompts_become_vectors_at_the_fixed_length() -> None:
    host = tiny_image_host("sd")
    reader = host.reader([POINT])
    texts = ["a big dog\n\nthe puppy\na red apple", "the blue bus"]
    source = HostSource(reader, texts, [POINT], batch=4, buffer=4)
    rows = torch.cat([b[POINT] for b in source])
    prompts = ["a big dog", "the puppy", "a red apple", "the blue bus"]
    whole = host.activations(prompts, [POINT])[POINT]
    ids, mask = reader.pad(reader.token_ids(prompts))
    want = whole[reader.keep_mask(ids, mask)].detach()
    assert len(rows) == len(want) == 4 + 3 + 4 + 4
    assert torch.cdist(rows, want).amin(1).max() < 1e-3 < torch.cdist(rows, want).max()
    assert source.token_policy == reader.token_policy
    with pytest.raises(InputError, match=f"takes {TOKENS}"):
        list(HostSource(reader, ["a big dog " * 5], [POINT], batch=4, buffer=4))
    with pytest.raises(MatchedNothing):
        list(HostSource(reader, [], [POINT], batch=4, buffer=4))


def test_the_commands_on_a_pipeline(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    corpus = tmp_path / "prompts.txt"
    words = ["apple", "dog", "bus", "cat", "house", "sea", "tree"]
    corpus.write_text("\n".join(f"a {c} {w}" for c in ("red", "big", "blue", "old", "green") for w in words))
    sae_dir = tmp_path / "sae"
    line = ["train", "--model", str(folder), "--at", POINT, "--corpus", str(corpus), "--out", str(sae_dir), "--d-sae", "32", "--k", "4"]
    code, out, err = status([*line, "--tokens", "512", "--set", "batch=64", "--device", "cpu", "--json"], capsys)
    assert code == 0, err
    sae = SAE.load(sae_dir)
    assert sae.cfg.d_in == WIDTH
    assert sae.card["hook_point"] == POINT
    assert sae.card["token_policy"]["eos"] == "kept"
    assert set(json.loads(out)["metrics"]) == {POINT}
    host = load_pipeline(folder)
    host.check_sae(sae)
    edit = Edit([DeactivationPart(sae, tuple(range(32)), -8.0, "scale")], "layer", {}, [{"name": "x", "digest": "0"}]).bound(host)
    edit.save(tmp_path / "hook")
    edit_of(host, weights_part(host, "cross_attention", size=2.0)).save(tmp_path / "weights")
    draws = ["generate", "--model", str(folder), "--prompt", DOGS[0], "--steps", "2", "--size", "32", "--device", "cpu", "--seed", "3"]
    for name, edits in (("base", []), ("hooked", ["--edit", str(tmp_path / "hook")])):
        code, _, err = status([*draws, "--prompt", DOGS[1], "--out", str(tmp_path / name), *edits], capsys)
        assert code == 0, err
    pictures = {n: [_picture(tmp_path / n / f"00{i}.png") for i in range(2)] for n in ("base", "hooked")}
    assert torch.equal(torch.stack(pictures["base"]), draw(host, DOGS, seed=3))
    with edit.applied(host):
        assert torch.equal(torch.stack(pictures["hooked"]), draw(host, DOGS, seed=3))
    assert all(not torch.equal(a, b) for a, b in zip(*pictures.values(), strict=True))
    assert status([*draws, "--out", str(tmp_path / "one.png")], capsys)[0] == 0
    assert torch.equal(_picture(tmp_path / "one.png"), draw(host, DOGS[:1], seed=3)[0])
    assert status(["apply", str(tmp_path / "weights"), "--model", str(folder), "--out", str(tmp_path / "applied")], capsys)[0] == 0
    assert not torch.equal(draw(load_pipeline(tmp_path / "applied"), DOGS), draw(host, DOGS))
    assert status(["undo", "--model", str(tmp_path / "applied"), "--out", str(tmp_path / "undone")], capsys)[0] == 0
    assert torch.equal(draw(load_pipeline(tmp_path / "undone"), DOGS), draw(host, DOGS))


def _picture(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return (
            torch.tensor(
                list(image.getdata() if not hasattr(image, "get_flattened_data") else image.get_flattened_data()), dtype=torch.uint8
            )
            .reshape(32, 32, 3)
            .permute(2, 0, 1)
        )


def test_bad_input_of_the_commands(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tiny_image_host("sd")
    edit_of(host, layer_part(host)).save(tmp_path / "hook")
    monkeypatch.setattr("efface.t2i.models.packaged", lambda alias: tmp_path / alias)
    model = ["--model", str(folder), "--device", "cpu"]
    out = ["--out", str(tmp_path / "out")]
    before = sorted(p.name for p in tmp_path.iterdir())
    for line, message in (
        (["generate", *model, *out, "--prompt", "a dog", "--greedy"], "--greedy: for texts"),
        (["generate", *model, "--out", str(tmp_path / "x.jpg"), "--prompt", "a dog"], "PNG"),
        (["generate", *model, *out, "--prompt", "a dog " * 9, "--steps", "1", "--size", "32"], f"takes {TOKENS}"),
        (["generate", "--model", "icons", *out, "--prompt", "a dog"], "efface icons train"),
        (["generate", "--model", "icns", *out, "--prompt", "a dog"], "icons"),
        (["train", *model, *out, "--at", POINT], "one prompt a line"),
        (["train", *model, *out, "--at", "text_encoder.layers.7.resid_post", "--corpus", str(folder / "model_index.json")], "nearest"),
        (["apply", str(tmp_path / "hook"), *model, *out], "no permanent form"),
        (["erase", "pisces", *model, *out, "--concept", "baseball"], "pisces is for llm hosts"),
        (["eval", *model, *out, "--concept", "baseball"], "has no judge"),
    ):
        code, _, err = status(line, capsys)
        assert code == 2, (line, err)
        assert message in err, (line, err)
        assert len(err.strip().splitlines()) <= 2
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert status(["generate", "--model", "smollm2", *out, "--prompt", "a", "--steps", "3"], capsys)[0] == 2


def test_erasers_for_the_other_kind_of_host_are_refused() -> None:
    from efface.deactivate.erasing import erase

    assert method("pisces").domain == "llm"
    with pytest.raises(InputError, match="language models"):
        erase("pisces", tiny_image_host("sd"), "baseball", [object()])


def test_models_are_listed_and_told_apart(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = status(["models", "--json"], capsys)
    assert code == 0
    rows = {r["name"]: r for r in json.loads(out)["models"]}
    assert {"icons", "icons-xs", "smollm2"} <= rows.keys()
    assert rows["icons"]["cached"] == aliases.packaged("icons").is_dir()
    assert aliases.is_pipeline("icons")
    assert aliases.is_pipeline(str(folder))
    assert not aliases.is_pipeline("smollm2")
    assert not aliases.is_pipeline(str(tmp_path))
    assert not aliases.is_pipeline("someone/some-model")  # offline, and not in the cache
