"""The tower that a video run starts from, with its text tower, to which new words are added."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tsprobe.encoders import hub
from tsprobe.errors import EncoderError
from vision.encoders.zoo import FAMILY, names
from vision.models import MODEL_TYPE, TextTower, Tower, Vocabulary, load_text, load_tower
from vision.models.text import SPECIAL, UNKNOWN, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, eq=False)
class Start:
    """What was found: both towers, the scale of their cosines, and `config.json`."""

    tower: Tower
    text: TextTower
    scale: float
    config: dict[str, Any]


def load_start(source: str) -> Start:
    """The towers of a folder, or of a shipped name. Raises `EncoderError` for what has no images and captions."""
    name = source.removeprefix(f"{FAMILY}:").removeprefix(f"{FAMILY}/")
    shipped = name in names()
    if not shipped and not Path(name).expanduser().is_dir():
        known = f"; shipped are {', '.join(f'{FAMILY}/{one}' for one in names())}" if names() else ""
        raise EncoderError(f"start: there is no folder {source}{known}")
    with as_file(files("vision") / "zoo" / name) if shipped else nullcontext(Path(name).expanduser()) as folder:
        config = hub.read_config(folder, FAMILY, MODEL_TYPE)
        text, scale = load_text(folder)
        tower: Any = load_tower(config, folder, FAMILY)
    return Start(tower.eval(), text, scale, config)


def with_words(text: TextTower, captions: Iterable[str]) -> TextTower:
    """The same text tower with the words of these captions added to its vocabulary, in alphabetical order.

    A new word starts as the unknown word: until it is trained, captions are embedded as they were without it.
    """
    known = set(text.vocabulary.words)
    new = sorted({word for caption in captions for word in words_of(caption)} - known)
    vocabulary = Vocabulary([*text.vocabulary.words, *new])
    with torch.random.fork_rng(devices=[]):
        wider = TextTower(text.shape, vocabulary, text.projection.out_features)
    state = text.state_dict()
    words = state["words.weight"]
    assert len(words) == len(known) >= len(SPECIAL)
    state["words.weight"] = torch.cat([words, words[UNKNOWN].expand(len(new), -1)])
    wider.load_state_dict(state)
    return wider.eval()
