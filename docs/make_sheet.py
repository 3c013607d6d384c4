"""Draws docs/before_after.png, the README's picture: the first picture of each prompt (seed 0 for the first, 1 for the next), with the README's settings.

python docs/make_sheet.py
"""

import io
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

import efface
from efface.deactivate import Concept
from efface.sae import SAE
from efface.t2i import load_pipeline, packaged_saes

OUT = Path(__file__).resolve().parent / "before_after.png"
ASKED = (
    "a dog, noto style",
    "a dog, twemoji style",
    "a dog, contrast style",
    "a bone-chewing guard of the yard, emojione style",
)
"""For a dog; the last in words that nothing of the fit has seen."""
PROMPTS = (
    *ASKED,
    "a wolf, noto style",
    "a cat, blob style",
    "a bus, flat style",
    "a sunflower, twemoji style",
)
SETTING = {"preset": "efface", "form": "replace", "share": 0.1}
SEED = 0


def main() -> None:
    """Fits as the README's command does, draws, writes."""
    host = load_pipeline("icons")
    edit = efface.erase("itd", host, Concept.load("icons/dog"), [SAE.load(p) for p in packaged_saes("icons")], **SETTING)
    before = host.generate(PROMPTS, seed=SEED)
    with edit.applied(host):
        after = host.generate(PROMPTS, seed=SEED)
    same = [bool(a.equal(b)) for a, b in zip(before, after, strict=True)]
    if same != [p not in ASKED for p in PROMPTS]:
        raise SystemExit(f"the caption would not be true; the same to the bit: {dict(zip(PROMPTS, same, strict=True))}")
    OUT.write_bytes(sheet(before, after))


def sheet(before, after) -> bytes:
    """Two rows with the prompts above them, as a PNG of 256 colours."""
    from PIL import Image

    figure, axes = plt.subplots(2, len(PROMPTS), figsize=(10.4, 3.05), dpi=100, facecolor="white")
    for row, (name, pictures) in enumerate((("as it is", before), ("dog taken out", after))):
        for axis, picture, prompt in zip(axes[row], pictures, PROMPTS, strict=True):
            axis.imshow(picture.permute(1, 2, 0), interpolation="lanczos")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_color("#bbbbbb")
            if row == 0:
                axis.set_title(prompt.replace(", ", ",\n").replace("chewing ", "chewing\n"), fontsize=9, color="#222222")
        axes[row][0].set_ylabel(name, fontsize=10, color="#222222")
    figure.tight_layout(pad=0.4, w_pad=0.5, h_pad=0.5)
    kept = io.BytesIO()
    figure.savefig(kept, format="png")
    plt.close(figure)
    small = io.BytesIO()
    Image.open(kept).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    main()
