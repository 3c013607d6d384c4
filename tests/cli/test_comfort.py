"""What every command owes: JSON, help of each option, nearest names, tables by where they go, completion."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from cli._kit import Places, make_places, status
from result_cards import result

from efface.base.running import progress
from efface.cli.concept_files import FEW, NEEDS
from efface.cli.editing import _told
from efface.cli.main import app, run
from efface.cli.options import comparison
from efface.deactivate.evaluation.compare import compare
from efface.deactivate.registry import methods

WITHOUT_JSON: dict[str, str] = {}
"""Command -> why it has no --json."""


def leaves(command, words=()):
    """(words of a command, the command) of all that can be run."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(words), command
    for name, one in (inner or {}).items():
        yield from leaves(one, [*words, name])


COMMANDS = dict(leaves(typer.main.get_command(app)))


def faults(command) -> list[str]:
    """What a command owes and has not."""
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    found = [f"{'/'.join(p.opts)}: no help of one line" for p in command.params if not p.opts or not _one_line(getattr(p, "help", None))]
    found += ["no --json"] if not any("--json" in p.opts for p in options) else []
    return found + ([] if _one_line((command.help or "").split("\n\n")[0].replace("\n", " ")) else ["no help"])


def _one_line(text: str | None) -> bool:
    return bool(text and text.strip()) and "\n" not in text.strip()


def test_every_command_has_json_and_every_option_a_line_of_help() -> None:
    assert {"train", "erase pisces", "cache rm", "doctor", "icons train", "synthetic check", "demo"} <= set(COMMANDS)
    assert not {n: f for n, c in COMMANDS.items() if (f := [x for x in faults(c) if not (x == "no --json" and n in WITHOUT_JSON)])}
    assert set(WITHOUT_JSON) <= set(COMMANDS)
    bare = typer.Typer()

    @bare.command()
    def forgotten(size: int = 3) -> None: ...

    found = faults(typer.main.get_command(bare))  # the control
    assert "no --json" in found
    assert any("--size" in f for f in found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return make_places(tmp_path_factory.mktemp("places"))


UNKNOWN = {
    "model": ("generate --model smolm2 --prompt a --out {p}/out/x.txt", "smollm2"),
    "model of pictures": ("generate --model icns --prompt a --out {p}/out/x.png", "icons"),
    "model of an image eraser": ("erase itd --model icns --concept icons/dog --out {p}/out/e", "icons"),
    "model that is evaluated": ("eval --model sintetic --concept synthetic/river --out {p}/out/r", "synthetic"),
    "model that is trained on": ("train --model smolm2 --at layers.1.mlp_out --out {p}/out/s", "smollm2"),
    "concept": ("features --sae {p}/sae --model {p}/model --concept basebal", "baseball"),
    "concept of icons": ("erase itd --model icons --concept icons/dgo --out {p}/out/e", "icons/dog"),
    "concept of icons that is written": ("icons concepts flag-frnce --out {p}/out/c", "flag-france"),
    "concept of synthetic": ("eval --model synthetic --concept synthetic/rivr --out {p}/out/r", "synthetic/river"),
    "eraser": ("erase piscis --model {p}/model", "pisces"),
    "preset": ("erase pisces --model {p}/model --concept {p}/magic.json --set preset=papr --out {p}/out/e", "paper"),
    "preset of an attack": ("attack gcg --model {p}/model --concept {p}/magic.json --set preset=papr --out {p}/out/a", "paper"),
    "attack": ("attack beest --model {p}/model --concept {p}/magic.json --out {p}/out/a", "beast"),
    "judge": ("eval --model icons --concept icons/dog --judge icns --out {p}/out/r", "icons"),
    "head of a judge": ("eval --model icons --concept icons/dog --judge icons/objct --out {p}/out/r", "object"),
    "copy of a judge": ("eval --model icons --concept icons/dog --judge icons/object/C --out {p}/out/r", "A, B"),
    "recipe": ("icons train --recipe icon --out {p}/out/t", "icons"),
    "judge that is trained": ("icons judges --only C --out {p}/out/j", "A, B"),
    "domain": ("synthetic train --without rivr --out {p}/out/w", "river"),
    "domain that is asked": ("synthetic check --domain rivr --out {p}/out/w.json", "river"),
    "suite": ("eval --model synthetic --concept synthetic/river --suite languag --out {p}/out/r", "language"),
    "entry of the cache": ("cache rm models/smolm2", "models/smollm2"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_name_of_any_kind_ends_with_the_nearest(
    kind: str, made: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    line, near = UNKNOWN[kind]
    code, out, err = status(line.replace("{p}", str(made)), capsys)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert 1 <= len(err.strip().splitlines()) <= 2
    assert near in re.split(r"nearest|Did you mean", err)[-1], err
    assert re.search("nearest|Did you mean", err), err
    assert not list(made.out.iterdir())


def on_a_terminal(*args: str) -> str:
    """What a command shows where stdout is a terminal."""
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen([sys.executable, "-m", "efface.cli.main", *args], stdout=follower, stderr=follower, env=env) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the other end was closed
                break
            if not piece:
                break
            shown += piece
    os.close(leader)
    assert process.returncode == 0, shown
    return shown.decode()


def test_tables_are_drawn_on_a_terminal_and_plain_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = on_a_terminal("methods")
    code, plain, _ = status("methods", capsys)
    assert code == 0
    assert "┃" in drawn
    assert not re.search("[\x1b┃│]", plain)
    for name in (m.name for m in methods()):
        assert name in drawn
        assert name in plain
    assert json.loads(on_a_terminal("methods", "--json"))["methods"][0]["name"] == "crisp"


@pytest.mark.parametrize(("width", "turned"), [(200, False), (60, True)])
def test_a_comparison_that_is_too_wide_has_a_metric_a_line(width: int, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = compare([result()])
    assert comparison(found) == found.plain()  # on a pipe
    monkeypatch.setattr("efface.cli.options.on_terminal", lambda: True)
    drawn = comparison(found)
    assert any("result" in line and " row " in line for line in drawn.splitlines()) != turned
    assert max(map(len, re.sub("\x1b.*?m", "", drawn.split(found.legend()[0][:20])[0]).splitlines())) <= width
    assert "best edited row" in drawn


def offered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash offers for the last word of a line (`efface generate --model smo`), by typer's own mechanism."""
    words = line.split(" ")
    monkeypatch.setenv("_EFFACE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run([])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert not err
    return out.split()


@pytest.mark.parametrize(
    ("line", "there", "not_there"),
    [
        ("efface generate --model smo", ["smollm2"], "icons"),
        ("efface generate --model ", ["smollm2", "icons", "synthetic"], "baseball"),
        ("efface erase p", ["pisces"], "itd"),
        ("efface erase pisces --concept bas", ["baseball"], "dogs"),
        ("efface eval --concept icons/flag-fra", ["icons/flag-france"], "icons/dog"),
        ("efface eval --concept synthetic/ri", ["synthetic/river", "synthetic/river-cloze"], "synthetic/star"),
        ("efface icons concepts style-no", ["style-noto"], "dog"),
        ("efface erase pisces --set preset=", ["preset=paper", "preset=efface"], "mu="),
        ("efface erase pisces --set ", ["tau=0.4", "preset=paper"], "--set"),
        ("efface attack g", ["gcg"], "beast"),
        ("efface eval --split ", ["validation", "test"], "train"),
        ("efface eval --judge icons/o", ["icons/object", "icons/object/A"], "icons/style"),
        ("efface train --arch top", ["topk"], "relu"),
        ("efface features --sae ", ["saes", "saes/one", "saes/two", "icons"], "edits/first"),
        ("efface features --sae saes/t", ["saes/two"], "saes/one"),
        ("efface apply edits/", ["edits/first"], "saes/one"),
        ("efface cache rm models/", ["models/smollm2"], "secret"),
    ],
)
def test_shells_complete_names(
    line: str, there: list[str], not_there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("saes/one/cfg.json", "saes/two/cfg.json", "edits/first/edit.json", "cache/models/smollm2/a", "cache/secret/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    found = offered(line, monkeypatch, capsys)
    assert set(there) <= set(found)
    assert not_there not in found


def test_completion_imports_nothing_heavy() -> None:
    words = ["efface", "features", "--concept", "icons/d"]
    env = {**os.environ, "_EFFACE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": "3"}
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); from efface.cli.main import run; run([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout.split(), done.stderr.split()) == (["icons/dog"], ["False"])


def test_a_bar_has_rate_and_time_left_and_is_there_only_for_what_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EFFACE_QUIET", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(progress(range(3), desc="short")) == [0, 1, 2]
    assert not capsys.readouterr().err
    monkeypatch.setattr("efface.base.running.SHOWN_AFTER", 0.05)
    for _ in progress(range(8), desc="long", unit="text"):
        time.sleep(0.06)
    shown = capsys.readouterr().err
    assert "long" in shown
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", shown)  # elapsed < left
    assert re.search(r"text/s|s/text", shown)


def test_a_concept_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "bicycles.yaml"
    assert status(f"concepts --new {place}", capsys)[0] == 0
    code, out, err = status(f"concepts {place} icons/dog --json", capsys)
    assert code == 0, err
    own, dog = json.loads(out)["concepts"]
    assert own["lines"]["target"] == {"train": 6, "validation": 4, "test": 4}
    assert {c for c, lacks in own["lacks"].items() if lacks} == {"eval of a pipeline"}  # the sample goes all the way with a language model
    assert dog["lacks"]["eval, attack on a language model"] == ["questions.validation"]
    assert not dog["lacks"]["eval of a pipeline"]
    assert own["few"]["erase pisces --set preset=efface"] == "2 of questions.train: below 100 they are learnt by heart"
    assert own["few"]["features, gate"].startswith("6 of target.train")
    assert not own["of_the_sample"]
    assert not dog["of_the_sample"]
    place.write_text(place.read_text().replace("My bicycle has a flat tyre again.", "The moon is full."))
    out = status(f"concepts {place}", capsys)[1]
    assert re.search(r"still of the sample: \d\d lines, such as '", out), out
    place.write_text(place.read_text().replace("neighbour_questions:", "neighbour_question:"))
    for line, says in (
        (f"concepts --new {place}", "exists already"),
        (f"concepts --new {tmp_path}/x.json", r"ends in \.yaml"),
        (f"concepts {place} --new {tmp_path}/x.yaml", "one of them"),
        (f"concepts {place}", "'neighbour_question'.*neighbour_questions"),
        ("concepts basebal", "baseball"),
    ):
        code, out, err = status(line, capsys)
        assert (code, out) == (2, "")
        assert re.search(says, err), err
    code, out, _ = status("concepts baseball", capsys)
    assert code == 0
    assert "neighbour_questions" in out
    assert "by heart" not in out


def test_few_is_what_the_erasers_and_gates_call_few() -> None:
    from efface.llm.gating import FEWEST
    from efface.llm.methods.pisces.effect import FEW as QUESTIONS

    assert {place: least for place, least, _ in FEW.values()} == {"target.train": FEWEST, "questions.train": QUESTIONS}
    assert set(FEW) <= set(NEEDS)


def test_long_lists_are_cut_on_the_terminal() -> None:
    assert (
        _told({"kind": "hook", "share": 0.12345, "features": list(range(200))})
        == "  hook: share 0.1235; features 0, 1, 2, 3, 4, 5, 6, 7, … (200)"
    )
    assert _told({"kind": "hook", "features": [1, 2]}) == "  hook: features [1, 2]"


def test_the_list_of_concepts_fits_on_a_page_and_json_has_all(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = status("concepts", capsys)
    _, whole, _ = status("concepts --json", capsys)
    known = json.loads(whole)["concepts"]
    flags = [n for n in known if n.startswith("icons/flag-")]
    assert len(flags) > 200
    assert f"… and {len(flags) - 2} more flags" in out
    assert len(out.splitlines()) < 100 < len(known)
    left_out = [n for n in known if n not in out.splitlines()]
    assert all(n.startswith(("icons/flag-", "synthetic/thing-")) for n in left_out)
    assert {"baseball", "icons/dog", "synthetic/river"} <= set(out.splitlines())
