"""Bad input at the command line: status 2, one or two lines that name the fault and the way out, nothing written."""

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli._kit import Places, make_places, overflowing, save_model, status
from deactivate._kit import weights_edit
from planted import magic_values, planted_sae, sentences
from tiny import tiny_host

from efface.base.files import load_tensors
from efface.sae import SAE

MAGIC = sentences(("wizard", "witch", "wand", "spell", "potion"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return make_places(tmp_path_factory.mktemp("places"))


@pytest.fixture
def places(made: Places, tmp_path: Path) -> Places:
    """A copy that a test may damage."""
    shutil.copytree(made.root, tmp_path / "p")
    return Places(tmp_path / "p", tmp_path / "p" / "out")


def refused(line: str, says: str, places: Places, capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Runs `line`, which must fail in the way promised; returns what it said."""
    got, out, err = status(line.replace("{p}", str(places)), capsys)
    assert got == code, err
    assert not out
    assert "Traceback" not in err
    assert 1 <= len(err.strip().splitlines()) <= 2, err
    assert re.search(says, err), err
    if code == 2:
        assert not list(places.out.iterdir())
    return err


def damaged(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def edited_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


UNKNOWN = [
    ("generate --model smolm2 --prompt a --out {p}/out/x.txt", "unknown model 'smolm2'.*smollm2"),
    ("train --model {p}/model --at layers.1.mlp_ot --out {p}/out/s", r"unknown hook point.*layers\.1\.mlp_out"),
    ("train --model {p}/model --at layers.9.mlp_out --out {p}/out/s", r"unknown hook point.*layers\.\d\.mlp_out"),
    ("train --model {p}/model --at layers.1.mlp_out --arch topkk --out {p}/out/s", "unknown architecture 'topkk'.*topk"),
    ("train --model {p}/model --at layers.1.mlp_out --set stepz=3 --out {p}/out/s", "'stepz'.*steps"),
    ("train --model {p}/model --at layers.1.mlp_out --corpus embeded --out {p}/out/s", "corpus 'embeded'.*embedded"),
    ("features --sae {p}/sae --model {p}/model --concept basebal", "unknown concept 'basebal'.*baseball"),
    ("erase pisces --model {p}/model --concept baseball --sae {p}/sae --set muu=3 --out {p}/out/e", "'muu'.*mu"),
    ("eval --model {p}/model --concept basebal --out {p}/out/r", "unknown concept 'basebal'.*baseball"),
    ("eval --model {p}/model --concept {p}/magic.json --set drawz=1 --out {p}/out/r", "'drawz'.*draws"),
    ("eval --model {p}/model --concept {p}/magic.json --split tst --out {p}/out/r", "validation or test"),
    ("export {p}/edit --format lorra --out {p}/out/l", "unknown export format 'lorra'.*lora"),
    ("generate --model {p}/model --device tpu --prompt a --out {p}/out/x.txt", "--device 'tpu'"),
    ("generate --model {p}/model --dtype float31 --prompt a --out {p}/out/x.txt", "unknown dtype 'float31'.*float32"),
    ("undo --model {p}/model --out {p}/out/b", "nothing was applied"),
    ("cache rm ../..", r"unknown cache entry '\.\./\.\.'"),
    ("trian", "'trian'.*train"),
    ("train --modl x", "--modl.*--model"),
    ("train --model x", "Missing option '--at'"),
    ("train --model x --at y --out {p}/out/s --d-sae wide", "--d-sae"),
    ("erase piscis --model x", "'piscis'.*pisces"),
]


@pytest.mark.parametrize(("line", "says"), UNKNOWN)
def test_unknown_names_say_the_nearest(line: str, says: str, made: Places, capsys: pytest.CaptureFixture[str]) -> None:
    refused(line, says, made, capsys)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --model {p}/model --at layers.1.mlp_out --k 0 --out {p}/out/s", "k"),
        ("train --model {p}/model --at layers.1.mlp_out --tokens 0 --out {p}/out/s", "tokens"),
        ("train --model {p}/model --at layers.1.mlp_out --d-sae -4 --out {p}/out/s", "d_sae"),
        ("train --model {p}/model --at layers.1.mlp_out --set lr=nan --out {p}/out/s", "lr must be a finite number"),
        ("train --model {p}/model --at layers.1.mlp_out --seed -1 --out {p}/out/s", "--seed"),
        ("generate --model {p}/model --prompt a --seed 99999999999999999999 --out {p}/out/x.txt", "--seed"),
        (
            "eval --model {p}/model --concept {p}/magic.json --set seed=99999999999999999999 --out {p}/out/r",
            r"seed must lie in \[0, 4294967296",
        ),
        ("features --sae {p}/sae --model {p}/model --concept {p}/magic.json --top 0", "--top"),
        ("gate --sae {p}/sae --model {p}/model --concept {p}/magic.json --fpr 1.5 --out {p}/out/g", r"fpr must lie in \[0, 1\), 1.5"),
        ("gate --sae {p}/sae --model {p}/model --concept {p}/magic.json --fpr nan --out {p}/out/g", r"fpr must lie in \[0, 1\), nan"),
        ("train --model {p}/model --at layers.1.mlp_out --resume --out {p}/edit", "no checkpoint to resume, but README.md, edit.json"),
        ("train --model {p}/model --at layers.1.mlp_out --set lr=[1 --out {p}/out/s", "'lr=.1'.*no YAML"),
        ("train --model {p}/model --at layers.1.mlp_out --set lr --out {p}/out/s", "key=value"),
        ("generate --model {p}/model --edit nowhere --prompt a --out {p}/out/x.txt", "nowhere is not an edit folder"),
        ("generate --model {p}/model --prompt a --out {p}/sae", "exists already"),
        ("generate --model {p}/model --prompt a --out {p}/magic.json/x.txt", r"(Not a directory|File exists).*magic\.json"),
        ("features --sae {p}/out --model {p}/model --concept {p}/magic.json", "no SAE folder.*efface train"),
        ("features --sae {p}/sae --concept {p}/magic.json", "unknown model 'tiny-llama'"),
        ("compare {p}/magic.json", "not a result file"),
        ("bench {p}/magic.json --out {p}/out/b", "unknown key in the grid 'name'.*axes"),
        ("apply {p}/sae --model {p}/model --out {p}/out/m", "not an edit folder"),
        ("erase pisces --model {p}/model --concept {p}/magic.json --out {p}/out/e", "pisces needs an SAE: .*--sae.*efface train"),
    ],
)
def test_values_and_paths_that_do_not_fit(line: str, says: str, made: Places, capsys: pytest.CaptureFixture[str]) -> None:
    refused(line, says, made, capsys)


CONCEPTS = {
    "an unknown key": ({"targets": MAGIC}, "'targets'.*target"),
    "an unknown split": ({"target": {**MAGIC, "tset": ["x"]}}, "'tset'.*test"),
    "overlapping splits": ({"target": {**MAGIC, "test": [*MAGIC["test"], MAGIC["train"][0]]}}, "disjoint.*share the line"),
    "empty": ({"target": {"train": []}}, "the concept is empty"),
    "a format of the future": ({"format": 2}, "format"),
    "an answer that is no option": ({"questions": {"test": [{"q": "a", "options": ["b", "c"], "answer": "d"}]}}, "one of the options"),
    "a kind there is not": ({"kind": "thing"}, "unknown kind.*One of knowledge, .*topic"),
    "a line that became a key": ({"target": {**MAGIC, "test": [{"the witch said": "abracadabra"}]}}, r"test\[0\]: text in quotes .*colon"),
    "a file outside its folder": ({"target": {"train": {"file": "../../secret.jsonl", "field": "text"}}}, "outside"),
}


@pytest.mark.parametrize("kind", CONCEPTS)
def test_concept_files(kind: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    values, says = CONCEPTS[kind]
    (places.root / "bad.json").write_text(json.dumps({**magic_values(), **values}))
    refused("erase pisces --model {p}/model --concept {p}/bad.json --sae {p}/sae --out {p}/out/e", says, places, capsys)


def test_more_than_fits_into_memory_is_one_line(made: Places, capsys: pytest.CaptureFixture[str]) -> None:
    line = "train --model {p}/model --at layers.1.mlp_out --d-sae 100000000000 --out {p}/out/s"
    refused(line, "out of memory; .*--d-sae", made, capsys, code=1)
    assert not list(made.out.iterdir())


def test_a_broken_concept_file(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    (places.root / "bad.yaml").write_text("format: 1\nname: [")
    refused("features --sae {p}/sae --model {p}/model --concept {p}/bad.yaml", "not valid YAML", places, capsys)
    (places.root / "bad.yaml").write_text("format: 1\nname: a\ntarget:\n\ttrain: [b]\n")
    refused("concepts {p}/bad.yaml", "line 4.*indent with spaces", places, capsys)


def test_what_is_not_there_is_answered_with_what_lies_beside_it(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    for line, says in (
        ("concepts {p}/magc.json", r"magc\.json is not there; nearest: \S*/magic\.json; .*--new"),
        ("concepts {p}/sae", "sae is a folder; `efface concepts --new"),  # nothing is called like it
        ("erase itd --model {p}/modle --concept icons/dog --out {p}/out/e", r"--model \S*modle is not a folder; nearest: \S*/model;"),
        ("generate --model {p}/modle --prompt a --out {p}/out/x.txt", r"modle is not a folder; nearest: \S*/model;"),
        ("apply {p}/edti --model {p}/model --out {p}/out/m", r"not an edit folder: .*; nearest: \S*/edit;"),
        ("apply {p}/sea --model {p}/model --out {p}/out/m", "not an edit folder: edit.json is missing; `efface erase` writes one"),
    ):
        refused(line, says, places, capsys)
    (places.root / "begun").mkdir()
    (places.root / "begun" / "train.jsonl").write_text("")
    refused("features --sae {p}/begun --concept {p}/magic.json", "training there is not finished.*--resume", places, capsys)


def test_saes_of_another_model_or_place(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    line = "erase pisces --model {p}/%s --concept {p}/magic.json --sae {p}/%s --out {p}/out/e"
    refused(line % ("other", "sae"), "trained on another model", places, capsys)
    refused(line % ("model", "sae") + " --dtype bfloat16", "the same in another dtype", places, capsys)
    refused(line % ("wide", "sae"), "d_in is 32, but .* has width 64", places, capsys)
    host = tiny_host()
    for name, changes, says in [
        (
            "deep",
            {"hook_point": "layers.7.mlp_out"},
            r"unknown hook point of the SAE of \S+ \(--sae\) 'layers\.7\.mlp_out'.*layers\.\d.*another model than",
        ),
        ("hidden", {"hook_point": "layers.1.mlp_hidden"}, "d_in is 32, but .* has width 64"),
        ("nowhere", {"hook_point": None}, "names no hook point"),
    ]:
        sae = planted_sae(host)
        sae.card |= changes
        sae.save(places.root / name)
        refused(line % ("model", name), says, places, capsys)
    gate = "gate --model {p}/model --sae {p}/deep --concept {p}/magic.json --out {p}/out/g"
    refused(gate, "unknown hook point", places, capsys)


def test_numbers_that_overflow_stop_training_and_the_batch_is_kept(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    overflowing(places.root / "hot")
    (places.root / "text.txt").write_text("\n\n".join(f"the wizard and the dog saw {i} castles by the road" for i in range(400)))
    line = (
        "train --model {p}/hot --at layers.1.mlp_out --corpus {p}/text.txt --tokens 2000 --set batch=100 --d-sae 40 --k 4 --out {p}/out/s"
    )
    told = refused(line, "NaN or infinity in the activations at .*mlp_out", places, capsys, code=1)
    kept = next((places.out / "s").glob("bad-batch-*.safetensors"))
    assert str(kept) in told
    assert any(not torch.isfinite(t).all() for t in load_tensors(kept, finite=False).values())
    assert not list(places.out.rglob("efface.json"))
    assert not list(places.out.rglob("cfg.json"))


def test_weights_that_are_nan_are_not_loaded(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    host = tiny_host()
    with torch.no_grad():
        next(host.model.parameters())[0, 0] = torch.nan
    save_model(host, places.root / "nan")
    refused("generate --model {p}/nan --prompt a --out {p}/out/x.txt", "has NaN or infinity", places, capsys)


def test_truncated_and_corrupt_files(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    def cut(data: bytes) -> bytes:
        return data[: len(data) // 2]

    damaged(places.root / "other" / "model.safetensors", cut)
    refused("generate --model {p}/other --prompt a --out {p}/out/x.txt", "not a whole safetensors file", places, capsys)
    damaged(places.root / "wide" / "config.json", cut)
    refused("generate --model {p}/wide --prompt a --out {p}/out/x.txt", "wide", places, capsys)
    damaged(places.root / "sae" / "sae_weights.safetensors", cut)
    refused("features --sae {p}/sae --model {p}/model --concept {p}/magic.json", "not a whole safetensors file", places, capsys)
    damaged(next((places.root / "edit").rglob("*.safetensors")), cut)
    refused("apply {p}/edit --model {p}/model --out {p}/out/m", "truncated or was altered", places, capsys)
    refused("eval --edit {p}/edit --model {p}/model --concept {p}/magic.json --out {p}/out/r", "truncated or was altered", places, capsys)


def test_manifests_that_lead_outside(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    (places.root / "secret").write_text("mine")
    edited_json(places.root / "edit" / "edit.json", files={"../secret": {"sha256": "", "bytes": 4}})
    refused("apply {p}/edit --model {p}/model --out {p}/out/m", "outside the folder", places, capsys)
    assert status(f"apply {edit(places)} --model {places}/model --out {places}/applied", capsys)[0] == 0
    ledger = places.root / "applied" / "efface_ledger.json"
    ledger.write_text(ledger.read_text().replace('"folder": "', '"folder": "../../'))
    refused("undo --model {p}/applied --out {p}/out/b", "outside the folder", places, capsys)
    assert (places.root / "secret").read_text() == "mine"


def edit(places: Places) -> Path:
    """A sound edit."""
    folder = places.root / "sound"
    weights_edit(tiny_host(), 3).save(folder)
    return folder


def test_pickles_are_refused_wherever_they_are_offered(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    fired = places.root / "fired"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(fired), "w"))  # type: ignore[return-value]

    bomb = pickle.dumps(Bomb())
    theirs = places.root / "theirs"
    theirs.mkdir()
    (theirs / "ae.pt").write_bytes(bomb)
    features = "features --sae %s --model {p}/model --concept {p}/magic.json"
    refused(features % "{p}/theirs", r"only pickled weights \(ae\.pt\)", places, capsys)
    refused(features % "{p}/theirs/ae.pt", "pickled weights are refused", places, capsys)
    (places.root / "sae" / "sae_weights.safetensors").write_bytes(bomb)
    refused(features % "{p}/sae", "not a whole safetensors", places, capsys)
    model = places.root / "other"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(bomb)
    refused("generate --model {p}/other --prompt a --out {p}/out/x.txt", "pickled, which is refused", places, capsys)
    edited_json(places.root / "edit" / "edit.json", files={"part-0/w.pt": {"sha256": "", "bytes": 0}})
    refused("apply {p}/edit --model {p}/model --out {p}/out/m", "pickled weights are refused", places, capsys)
    assert not fired.exists()
    pickle.loads(bomb)
    assert fired.exists()  # the control: loaded, it would have fired


@pytest.mark.parametrize("base", ["other", "wide"])
def test_an_edit_on_the_wrong_base(base: str, made: Places, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        f"apply {{p}}/edit --model {{p}}/{base} --out {{p}}/out/m",
        f"generate --edit {{p}}/edit --model {{p}}/{base} --prompt a --out {{p}}/out/x.txt",
        f"eval --edit {{p}}/edit --model {{p}}/{base} --concept {{p}}/magic.json --out {{p}}/out/r",
    ):
        refused(line, "made for", made, capsys)


@pytest.mark.parametrize(
    "line",
    [
        "train --model {p}/model --at layers.1.mlp_out --corpus {p}/text.txt --tokens 600 --set batch=100 --d-sae 40 --k 4 --out {p}/out/s",
        "erase pisces --model {p}/model --concept {p}/magic.json --sae {p}/sae --set features=['1:0:+'] --set filters=false --out {p}/out/e",
        "gate --model {p}/model --sae {p}/sae --concept {p}/magic.json --fpr 0.2 --out {p}/out/g",
        "apply {p}/edit --model {p}/model --out {p}/out/m",
        "export {p}/edit --out {p}/out/l",
        "generate --model {p}/model --prompt a --max-new-tokens 2 --out {p}/out/x.txt",
        "generate --model {p}/model --prompt a --prompt b --max-new-tokens 2 --out {p}/out/x",
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    line: str, places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (places.root / "text.txt").write_text("\n\n".join(f"the wizard and the dog saw {i} castles by the road" for i in range(200)))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        refused(line, "No space left on device: .*; free some space", places, capsys, code=1)
    written = [p for p in places.out.rglob("*") if p.is_file() and p.name != "train.jsonl"]
    assert not written
    again = line + (" --resume" if line.startswith("train") else "")
    assert status(again.replace("{p}", str(places)), capsys)[0] == 0  # the control: with room it works


def test_text_with_markup_stays_text(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    script = "<script>alert(1)</script>"
    host = tiny_host()
    sae = planted_sae(host)
    sae.card["labels"] = {"0": script}
    sae.save(places.root / "marked")
    assert SAE.load(places.root / "marked").card["labels"]["0"] == script
    (places.root / "marked.json").write_text(json.dumps({**magic_values(), "name": script, "anchor": script}))
    erase = (
        "erase pisces --model {p}/model --concept {p}/marked.json --sae {p}/marked --set features=['1:0:+'] --set filters=false --out {p}/e"
    )
    assert status(erase.replace("{p}", str(places)), capsys)[0] == 0
    small = "--set texts=2 --set continuations=0 --set draws=1"
    line = f"eval --model {{p}}/model --edit {{p}}/e --sae {{p}}/marked --concept {{p}}/marked.json {small} --out {{p}}/out/r"
    code, out, err = status(line.replace("{p}", str(places)), capsys)
    assert code == 0, err
    page = (places.out / "r" / "report.html").read_text(encoding="utf-8")
    assert script not in page
    assert "&lt;script&gt;alert(1)" in page
    assert script in out  # the control: on the terminal it is plain text
