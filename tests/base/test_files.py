import json
import os

import pytest
import torch

from efface.base import files
from efface.base.errors import ArtefactError, InputError


def test_write_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space.*a\.json"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch, nth):
    out = tmp_path / "out"
    with files.new_folder(out) as work:
        (work / "old").write_text("x")
    calls = []
    rename = os.replace

    def failing(a, b):
        calls.append(a)
        if len(calls) == nth:
            raise OSError(28, "No space left on device", str(b))
        rename(a, b)

    with monkeypatch.context() as m, pytest.raises(OSError, match="No space"), files.new_folder(out, overwrite=True) as work:
        m.setattr(os, "replace", failing)
        (work / "new").write_text("y")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["old"]
    with files.new_folder(out, overwrite=True) as work:
        (work / "new").write_text("y")
    assert [p.name for p in out.iterdir()] == ["new"]


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"

    def broken():
        with files.new_folder(out) as work:
            (work / "half").write_text("x")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        broken()
    assert not list(tmp_path.iterdir())
    with files.new_folder(out) as work:
        (work / "whole").write_text("x")
        assert not out.exists()
    assert (out / "whole").exists()
    with pytest.raises(InputError, match="exists already"), files.new_folder(out):
        pass


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_names_cannot_lead_out_of_their_folder(tmp_path, name):
    with pytest.raises(ArtefactError, match="outside"):
        files.inside(tmp_path, name)
    assert files.inside(tmp_path, "a/b") == (tmp_path / "a/b").resolve()


def test_tensors_truncated_pickled_or_not_finite_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    files.save_tensors(path, {"w": torch.ones(64)})
    assert torch.equal(files.load_tensors(path)["w"], torch.ones(64))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ArtefactError, match="whole safetensors"):
        files.load_tensors(path)
    files.save_tensors(path, {"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(ArtefactError, match="NaN"):
        files.load_tensors(path)
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ArtefactError, match="pickled"):
        files.load_tensors(tmp_path / "w.pt")


def test_slugs_differ_for_names_that_look_alike():
    assert files.slug("Harry Potter") != files.slug("harry-potter")
    assert files.slug("日本").startswith("x-")
    assert "/" not in files.slug("../../etc")
