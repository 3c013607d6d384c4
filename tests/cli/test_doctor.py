"""`efface doctor`: what it looks for, and that it notices what is missing, old or damaged."""

import json
import shutil
from pathlib import Path

import pytest
from cli._kit import status

from efface.base.errors import ArtefactError
from efface.base.files import altered_files, sha256_file, write_json
from efface.cli import doctor
from efface.t2i import aliases


def findings(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict]]:
    code, out, err = status(" ".join(["doctor", "--json", *words]), capsys)
    assert "Traceback" not in err
    told = json.loads(out)
    assert told["ok"] == (code == 0)
    return code, {f["part"]: f for f in told["findings"]}


def test_a_sound_installation(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = findings(capsys)
    assert code == 0, {k: v for k, v in found.items() if v["needed"] and not v["ok"]}
    assert {"python", "torch", "transformers", "diffusers", "cpu", "cuda", "folder", "free", "smollm2", "icons", "synthetic", "npm"} <= set(
        found
    )
    assert found["torch"]["ok"]
    assert not found["torch"]["mend"]
    assert found["folder"]["found"].startswith(str(cache))
    assert not cache.exists()  # looked at, not made
    assert not found["diffusers"]["needed"]
    code, text, _ = status("doctor", capsys)
    assert code == 0
    assert "all that the main job needs is there" in text


def test_missing_and_old_packages_come_with_their_command(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda n: {"diffusers": None, "torch": "2.4.1+cpu"}.get(n, true(n)))
    code, found = findings(capsys)
    assert code == 1
    assert "2.4.1+cpu, >=2.6 is wanted" in found["torch"]["found"]
    assert found["torch"]["mend"].endswith("-m pip install 'torch>=2.6'")
    assert (found["diffusers"]["state"], found["diffusers"]["needed"]) == ("optional", False)
    assert found["diffusers"]["mend"].endswith("-m pip install 'diffusers>=0.36'")
    code, text, _ = status("doctor", capsys)
    assert code == 1
    assert "needed: torch - " in text
    assert "1 of what the main job needs" in text


def test_damaged_weights_are_found(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    true = aliases.packaged
    shutil.copytree(true("icons").parent, tmp_path / "weights")
    monkeypatch.setattr(aliases, "packaged", lambda alias: tmp_path / "weights" / alias)
    assert findings(capsys)[0] == 0  # the control: a sound copy
    weights = tmp_path / "weights" / "icons"
    data = bytearray((weights / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    data[-1] ^= 1
    (weights / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(data)
    (weights / "sae" / "sae_weights.safetensors").unlink()
    (tmp_path / "weights" / "judges" / "A" / "manifest.json").unlink()
    code, found = findings(capsys)
    assert code == 1
    assert "unet/diffusion_pytorch_model.safetensors" in found["icons"]["found"]
    assert "sae_weights.safetensors" in found["icons SAE"]["found"]
    assert "manifest.json is missing" in found["icons judge A"]["found"]
    assert found["icons judge B"]["ok"]
    assert found["icons"]["mend"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("EFFACE_MODELS", str(tmp_path / "nowhere"))
    code, found = findings(capsys)
    assert code == 1
    assert "cannot be written" in found["folder"]["found"]
    assert "EFFACE_CACHE" in found["folder"]["mend"]
    assert not found["EFFACE_MODELS"]["ok"]


def test_cards_without_a_torch_for_them(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cards", lambda: ["NVIDIA H100, 81559 MiB"])
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: None)
    code, found = findings(capsys)
    assert (code, found["cuda"]["ok"]) == (0, False)
    assert "built without CUDA" in found["cuda"]["found"]
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: "12.8")
    assert findings(capsys)[1]["cuda"]["ok"]


def test_trying_computes(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRY", "print('torch computes on cpu')")
    assert findings(capsys, "--try")[1]["tried"]["found"] == "torch computes on cpu"
    monkeypatch.setattr(doctor, "TRY", "raise ImportError('libc10.so')")
    code, found = findings(capsys, "--try")
    assert (code, found["tried"]["found"]) == (1, "ImportError: libc10.so")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.13.0+cpu", ">=2.6", True), ("2.4.1", ">=2.6", False), ("7.0", ">=6.54,<7", False), ("6.54", ">=6.54,<7", True),
        ("1.1.414", "==1.1.414", True), ("5", ">=5", True), ("5.0.0rc1", ">=5", True), ("0.9", "", True),
    ],
)  # fmt: skip
def test_versions_are_compared_by_number(version: str, wanted: str, fits: bool) -> None:
    assert doctor.meets(version, wanted) is fits


def test_a_line_of_requirements() -> None:
    assert doctor.requirement('diffusers>=0.36; extra == "t2i"') == ("diffusers", ">=0.36", "t2i")
    assert doctor.requirement("sae-lens<7,>=6.54 ; extra == 'saelens'") == ("sae-lens", "<7,>=6.54", "saelens")
    assert doctor.requirement("efface[icons,saelens]; extra == 'dev'") == ("efface", "", "dev")
    assert doctor.requirement("torch>=2.6") == ("torch", ">=2.6", "")


def test_both_kinds_of_manifests(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    sha = sha256_file(tmp_path / "a")
    write_json(tmp_path / "m.json", {"files": {"a": sha}})
    write_json(tmp_path / "n.json", {"files": {"a": {"bytes": 1, "sha256": sha}, "b": {"bytes": 1, "sha256": sha}}})
    assert altered_files(tmp_path / "m.json") == []
    assert altered_files(tmp_path / "n.json") == ["b"]
    (tmp_path / "a").write_text("b")
    assert altered_files(tmp_path / "m.json") == ["a"]
    write_json(tmp_path / "m.json", {"files": {"../a": sha}})
    with pytest.raises(ArtefactError, match="outside the folder"):
        altered_files(tmp_path / "m.json")
