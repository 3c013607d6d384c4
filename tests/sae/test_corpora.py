"""Every kind of corpus is read as a stream; whatever is wrong with one is said with its name and the way out."""

import json
import random
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from efface.base.errors import ArtefactError, InputError, MatchedNothing
from efface.sae import corpora
from efface.sae.corpora import read_corpus

DOCS = ["First document.\nSecond line.", "Zweites Dokument: Grüße.", "Third."]


def jsonl(field="text"):
    return "".join(json.dumps({field: d, "topic": "x"}) + "\n" for d in DOCS)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(DOCS) + "\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(jsonl() + "\n", encoding="utf-8")
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl().encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": [*DOCS, "", None]}), tmp_path / "d.parquet")
    (tmp_path / "notes.md").write_text("not a corpus")
    return tmp_path


@pytest.mark.parametrize("name", ["a.txt", "b.jsonl", "c.jsonl.zst", "d.parquet"])
def test_every_kind_gives_the_same_documents(files, name):
    assert list(read_corpus(files / name)) == DOCS
    assert list(read_corpus(files / name, limit=2)) == DOCS[:2]


def test_a_folder_is_read_in_the_order_of_names(files):
    (files / "deep").mkdir()
    (files / "deep" / "e.txt").write_text("Deep.")
    assert list(read_corpus(files)) == [*DOCS * 4, "Deep."]
    (files / "empty").mkdir()
    with pytest.raises(MatchedNothing, match="holds no"):
        read_corpus(files / "empty")


def test_another_field(files):
    (files / "f.jsonl").write_text(jsonl("body"))
    assert list(read_corpus(files / "f.jsonl", field="body")) == DOCS
    with pytest.raises(InputError, match=r"line 1.*'text'.*found: body, topic"):
        list(read_corpus(files / "f.jsonl"))
    with pytest.raises(InputError, match=r"no column 'body' \(found: text\)"):
        list(read_corpus(files / "d.parquet", field="body"))


def test_what_is_not_there_is_an_error_before_reading(files):
    for spec, words in [
        (files / "nothing.txt", "no file or folder"),
        (files / "notes.md", "convert"),
        ("embeded", "hub:NAME or embedded"),
    ]:
        with pytest.raises(InputError, match=words):
            read_corpus(spec)
    with pytest.raises(InputError, match="limit"):
        read_corpus(files / "a.txt", limit=0)


def test_damaged_files(files):
    (files / "g.jsonl").write_text('{"text": "fine"}\n{"text": ')
    with pytest.raises(ArtefactError, match="line 2"):
        list(read_corpus(files / "g.jsonl"))
    whole = (files / "c.jsonl.zst").read_bytes()
    (files / "h.jsonl.zst").write_bytes(b"nonsense" + whole)
    with pytest.raises(ArtefactError, match="zstandard"):
        list(read_corpus(files / "h.jsonl.zst"))
    (files / "i.parquet").write_bytes((files / "d.parquet").read_bytes()[:100])
    with pytest.raises(ArtefactError, match="parquet"):
        list(read_corpus(files / "i.parquet"))
    (files / "j.txt").write_bytes(b"\xff\xfe latin")
    with pytest.raises(ArtefactError, match="UTF-8"):
        list(read_corpus(files / "j.txt"))
    (files / "k.txt").write_text("\n \n")
    with pytest.raises(MatchedNothing, match=r"k\.txt"):
        list(read_corpus(files / "k.txt"))


def read_until_error(path):
    read = []
    with pytest.raises(ArtefactError, match=path.name):
        for text in read_corpus(path):
            read.append(text)
    return read


def test_a_compressed_file_cut_anywhere_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "BLOCK", 100)
    rng = random.Random(0)
    docs = [" ".join(rng.choices(["river", "stone", "lamp", "over", "under"], k=200)) for _ in range(40)]
    lines = [json.dumps({"text": d}).encode() + b"\n" for d in docs]
    packer = zstandard.ZstdCompressor().compressobj()
    blocks = [packer.compress(line) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for line in lines]
    whole = b"".join(blocks) + packer.flush()
    path = tmp_path / "c.jsonl.zst"
    path.write_bytes(whole)
    assert list(read_corpus(path)) == docs  # the control: whole, it is read
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        read = read_until_error(path)
        assert read == docs[: len(read)]
        assert len(read) <= 4 * tenth + 1
    for n in (1, 20, 40):  # the bytes end where a line does: nothing but the missing end of the frame tells
        path.write_bytes(b"".join(blocks[:n]))
        assert read_until_error(path) == docs[:n]


def test_frames_one_after_another_are_one_file(tmp_path):
    path = tmp_path / "c.jsonl.zst"
    half = jsonl().index("\n") + 1
    frames = [zstandard.compress(t.encode()) for t in (jsonl()[:half], "", jsonl()[half:])]
    path.write_bytes(b"".join(frames))
    assert list(read_corpus(path)) == DOCS
    path.write_bytes(b"".join(frames)[:-1])
    assert read_until_error(path) == DOCS[:1]
    path.write_bytes(b"".join(frames) + b"rubbish")
    assert read_until_error(path) == DOCS


def test_embedded_names_the_missing_file_and_reads_it_where_it_is(monkeypatch, files):
    monkeypatch.setattr(corpora, "EMBEDDED", "data/of-another-name.jsonl.zst")
    with pytest.raises(InputError, match=r"of-another-name\.jsonl\.zst is missing"):
        read_corpus("embedded")
    monkeypatch.setattr(corpora, "EMBEDDED", str(files / "c.jsonl.zst"))
    assert list(read_corpus("embedded")) == DOCS


def test_hub_goes_through_datasets(monkeypatch):
    class Fake:
        @staticmethod
        def load_dataset(name, config, split, streaming):
            assert (name, config, split, streaming) == ("some/set", "en", "train", True)
            return iter([{"text": d} for d in DOCS])

    monkeypatch.setitem(sys.modules, "datasets", Fake)
    assert list(read_corpus("hub:some/set:en")) == DOCS

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to the hub\nand a second line")

    monkeypatch.setattr(Fake, "load_dataset", unreachable)
    with pytest.raises(InputError, match="corpus hub:some/set:en: no route to the hub; check the name"):
        list(read_corpus("hub:some/set:en"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install"):
        list(read_corpus("hub:some/set:en"))
