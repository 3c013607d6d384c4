import hashlib

import pytest
import torch
from safetensors.torch import save

from efface.base import blocks
from efface.base.errors import InputError
from efface.base.files import load_tensors, save_tensors
from efface.deactivate.parts import tensor_digest


@pytest.fixture(params=[2**25, 2**13, 64], ids=["whole", "cut", "small"])
def size(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", request.param)
    monkeypatch.setattr(blocks, "COLUMNS", 5)


def tensors():
    g = torch.Generator().manual_seed(0)
    made = {f"t.{kind}": torch.arange(-3, 40).to(getattr(torch, kind)) for kind in blocks.DTYPES if kind[0] != "u"}
    made |= {f"u.{kind}": torch.arange(43).to(getattr(torch, kind)) for kind in ("uint8", "uint16", "uint32", "uint64")}
    made["turned"] = torch.randn(23, 31, generator=g).T
    made["turned, half"] = torch.randn(7, 40, generator=g).bfloat16().T
    made["long"] = torch.randn(1500, generator=g)
    made["strided"] = torch.randn(12, 14, generator=g)[::3, ::2]
    made["deep"] = torch.randn(3, 4, 5, generator=g).transpose(0, 2)
    made['ü"\\\n'] = torch.nn.Parameter(torch.randn(3, 5, generator=g))
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "empty, turned": torch.zeros(4, 0, 2).transpose(0, 2)}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_file_is_that_of_safetensors_byte_for_byte(size, metadata):
    whole = save({n: t.detach().contiguous() for n, t in tensors().items()}, metadata)
    pieces = list(blocks.safetensors_file(tensors(), metadata))
    assert b"".join(pieces) == whole
    assert (len(pieces) > 20) == (blocks.BLOCK == 64)


def test_what_was_written_in_blocks_is_read(size, tmp_path):
    save_tensors(tmp_path / "t.safetensors", tensors())
    read = load_tensors(tmp_path / "t.safetensors")
    assert read.keys() == tensors().keys()
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in tensors().items())


def test_a_dtype_that_files_do_not_hold_leaves_none(tmp_path):
    with pytest.raises(InputError, match="z is of dtype complex128"):
        save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(3), "z": torch.ones(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_number_anywhere_is_found(size, bad):
    for t in (
        torch.ones(30, 21),
        torch.ones(30, 21).bfloat16().T,
        torch.ones(2, 15, 21).transpose(0, 2),
        torch.ones(()),
        torch.zeros(0, 3),
    ):
        assert blocks.finite(t)
        for at in range(0, t.numel(), 37):
            spoilt = t.clone()
            spoilt.as_strided((t.numel(),), (1,))[at] = bad
            assert spoilt.stride() == t.stride()
            assert not blocks.finite(spoilt)


def test_a_digest_does_not_depend_on_the_layout(size):
    w = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    expected = hashlib.sha256(b"w\0float32\0[30, 40]\0" + w.T.contiguous().numpy().tobytes()).hexdigest()
    assert tensor_digest("w", w.T) == tensor_digest("w", w.T.contiguous()) == expected
    assert tensor_digest("w", w) != expected
