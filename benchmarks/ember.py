"""Concept files from the data of EMBER, for the tier of patience (a model of 1.5 billion parameters).

    python benchmarks/ember.py --data DIR --out concepts/ [--concept "Harry Potter" Baseball "Ancient Rome"] [--checked FILE]
    efface bench benchmarks/pisces_ember.yaml --out DIR

DIR holds EMBER's `mc_questions.json`, `concept_sentences.json` and `relearn_paragraphs.json`. Its 50 `train` questions are split 25 / 25 into
`train` and `validation`; `test` stays whole. Of 300 sentences the first hundred are `train`, the next `validation`, the last `test`: train and
validation keep those that name the concept (TOKENS below), test those that a person found to speak of it (`--checked`, {concept: [indices]}).
Options are shuffled by the scorer (in the data the right one always stands first).
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from efface.base.files import write_json
from efface.deactivate.concept import Concept

TOKENS = {
    "Harry Potter": ("Harry", "Potter", "Hogwarts", "Hermione", "Voldemort", "Dumbledore", "Gryffindor", "Quidditch", "Weasley", "Rowling"),
    "Baseball": ("baseball", "inning", "pitcher", "batter", "catcher", "shortstop", "umpire", "outfielder", "bunt", "MLB"),
    "Ancient Rome": ("Rome", "Roman", "Romans", "Caesar", "Augustus", "Senate", "emperor", "legion", "gladiator", "consul"),
}
CHECKED = Path(__file__).parent / "results" / "ember_checked.json"


def concept(name: str, data: dict[str, Any], checked: list[int]) -> dict[str, Any]:
    """The concept file of `name` as plain values."""
    questions, sentences = data["mc_questions"][name], data["concept_sentences"][name]
    named = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, TOKENS[name]))})(?!\w)", re.IGNORECASE)
    seen: set[str] = set()

    def items(key: str) -> list[dict[str, Any]]:
        fresh = [x for x in questions[key] if x["q"].casefold() not in seen]
        seen.update(x["q"].casefold() for x in fresh)
        return [{"q": x["q"], "options": x["options"], "answer": x["correct_answer"]} for x in fresh]

    def halves(key: str) -> dict[str, list[dict[str, Any]]]:
        test, train = items(f"{key}_test"), items(f"{key}_train")
        return {"train": train[::2], "validation": train[1::2], "test": test}

    kept = {"train": [s for s in sentences[:100] if named.search(s)], "validation": [s for s in sentences[100:200] if named.search(s)]}
    kept["test"] = [sentences[i] for i in checked]
    lines: set[str] = set()
    for split in ("test", "validation", "train"):
        kept[split] = [s for s in dict.fromkeys(kept[split]) if s not in lines]
        lines.update(kept[split])
    own, near = halves("QA"), halves("SimdomQA")
    return {
        "format": 1, "name": name, "kind": "topic", "form": "question",
        "tokens": [f" {t}" for t in TOKENS[name]],
        "target": kept,
        "neighbours": {s: [f"{x['q']} {x['answer']}." for x in near[s]] for s in near},
        "questions": own, "neighbour_questions": near,
        "relearn": list(dict.fromkeys(data["relearn_paragraphs"][name]["RelearnParagraphs"])),
    }  # fmt: skip


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--concept", nargs="*", default=list(TOKENS))
    args.add_argument("--checked", type=Path, default=CHECKED)
    options = args.parse_args()
    data = {n: json.loads((options.data / f"{n}.json").read_text()) for n in ("mc_questions", "concept_sentences", "relearn_paragraphs")}
    checked = json.loads(options.checked.read_text())
    for name in options.concept:
        values = concept(name, data, checked[name])
        path = options.out / f"{name.casefold().replace(' ', '-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values)
        loaded = Concept.load(path)
        counts = {k: {s: len(x) for s, x in getattr(loaded, k).items()} for k in ("target", "questions", "neighbour_questions")}
        print(f"{path}: {counts}, relearn {len(loaded.relearn)}")


if __name__ == "__main__":
    main()
