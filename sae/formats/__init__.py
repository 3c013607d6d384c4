"""SAEs on disk: our folder (which is sae-lens' folder with a manifest), and readers of the other common formats."""

from pathlib import Path

from ...base.errors import ArtefactError
from ...base.files import PICKLES
from ..sae import SAE


def load(path: Path) -> SAE:
    """Reads whatever `path` is; see `SAE.load`.

    Raises:
        ArtefactError: Nothing there that can be read, or a pickle.
    """
    if path.suffix in PICKLES:
        raise ArtefactError(f"{path}: pickled weights are refused; convert them to safetensors first")
    if path.suffix == ".npz" or (path / "params.npz").is_file():
        from .gemma_scope import read

        return read(path if path.suffix == ".npz" else path / "params.npz")
    if not path.is_dir():
        raise ArtefactError(f"{path} is no SAE folder; one holds cfg.json and sae_weights.safetensors")
    if (path / "efface.json").is_file():
        from .native import load as read

        return read(path)
    if (path / "sae.safetensors").is_file():
        from .sparsify import read

        return read(path)
    if (path / "cfg.json").is_file():
        from .saelens import read

        return read(path)
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
    if "ae.pt" in pickles:
        raise ArtefactError(
            f"{path} holds ae.pt, a pickle, which is not loaded directly; convert it once: "
            f"efface.sae.formats.dictionary_learning.read(folder).save(new_folder)"
        )
    found = f"only pickled weights ({', '.join(pickles)}), which are refused" if pickles else "neither efface.json nor cfg.json"
    raise ArtefactError(f"{path} holds {found}; an SAE folder holds cfg.json and sae_weights.safetensors")


__all__ = ["load"]
