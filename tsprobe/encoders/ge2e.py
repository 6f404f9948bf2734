"""GE2E: a speaker encoder, three LSTM layers over mel frames, trained to tell voices apart (Wan et al. 2018).

The weights come with the package `resemblyzer`, whose own steps are repeated here without its dependencies: the volume
is raised to -30 dBFS, 40 mel bands are taken every 160 steps, and the frames are cut into overlapping partial
utterances of 160 frames, each of which starts anew and ends in one embedding. Long silences are not cut out: the
package does so in `preprocess_wav`, before its encoder, with a voice detector.

Each series is read as sound of 16,000 steps a second with values in [-1, 1]. Frames that two partials share count
once, where the earlier partial has them, which knows more of what came before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsprobe.encoders import pickles
from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import token_map
from tsprobe.errors import EncoderError, MissingPackageError
from tsprobe.files import package_folder
from tsprobe.types import Batch, Inputs, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

FAMILY = "ge2e"
PACKAGE = "resemblyzer"
INSTALL = "pip install --no-deps resemblyzer==0.1.4"
RATE = 16_000  # steps a second
HOP, WINDOW, BANDS = 160, 400, 40  # steps, steps, mel bands
FRAMES, STRIDE = 160, 77  # frames of a partial utterance, and from one to the next: 1.3 a second
COVERED = 0.75  # a last partial with less sound than that is left out
LOUDNESS = 10 ** (-30 / 20)  # root mean square of a signal at -30 dBFS
WIDTH, DEPTH = 256, 3


class SpeakerEncoder(nn.Module):
    """Partial utterances `[R, W * 160, 40]` to one embedding each, `[R, W, 256]`."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = nn.Identity()
        self.layers = nn.ModuleList(_Recurrent(BANDS if i == 0 else WIDTH) for i in range(DEPTH))
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.unit = _Unit()

    def forward(self, frames: Float[Tensor, "R T 40"]) -> Float[Tensor, "R W 256"]:
        x = self.mel(frames)
        for layer in self.layers:
            x = layer(x)
        return self.unit(self.linear(x[:, FRAMES - 1 :: FRAMES]))  # the state after the last frame of each partial


class _Recurrent(nn.Module):
    """One LSTM layer, which forgets everything where a partial utterance begins."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, WIDTH, batch_first=True)

    def forward(self, x: Float[Tensor, "R T D"]) -> Float[Tensor, "R T 256"]:
        states, _ = self.lstm(x.reshape(-1, FRAMES, x.shape[-1]))
        return states.reshape(len(x), -1, WIDTH)


class _Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x / x.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class _PlainCard(Card):
    @property
    def install(self) -> str:
        return INSTALL  # only its folder is read: what the package depends on is not needed


class GE2E(Encoder):
    """The speaker encoder of Resemblyzer, one channel a row.

    Layers: `embedding` (mel frames), `block.0` to `block.2` (LSTM states, a token a frame), `linear` and `output` (a
    token a partial utterance). The mean of `output` over tokens is `VoiceEncoder.embed_utterance()` up to its length.
    """

    card: ClassVar[Card] = _PlainCard(
        pattern=FAMILY,
        objective="contrastive",
        package=PACKAGE,
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        final_is="VoiceEncoder.embed_utterance(): the unit-length embeddings of the partial utterances, averaged",
        sizes=(Size("", 3, 256, 1_423_616),),
    )

    @classmethod
    def load(cls, source: str | None) -> GE2E:
        """The weights of the installed package. Raises `MissingPackageError` and `EncoderError`."""
        if source is not None:
            raise EncoderError(f"{FAMILY}:{source}: there is one encoder of this family, {FAMILY}")
        package = package_folder(PACKAGE)
        if package is None:
            raise MissingPackageError(PACKAGE, f"the encoder {FAMILY}", install=INSTALL)
        return cls(load_weights(package / "pretrained.pt"))

    def __init__(self, module: SpeakerEncoder) -> None:
        facts = Facts(
            objective="contrastive",
            patch=HOP,
            pretrained_on="English speech of many speakers, at 16 kHz: LibriSpeech, VoxCeleb1 and VoxCeleb2",
            code_licence=self.card.code_licence,
            weights_licence=self.card.weights_licence,
            final_is=self.card.final_is,
        )
        taps = {"embedding": Tap("mel")}
        taps |= {f"block.{i}": Tap(f"layers.{i}") for i in range(DEPTH)}
        super().__init__(FAMILY, module, taps | {"linear": Tap("linear"), "output": Tap("unit")}, "output", facts)
        self._bands = mel_bands()

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of 160 frames for each partial utterance of the longest series."""
        lengths = batch.lengths
        counts = partials(lengths)  # [B]
        most = int(counts.max())
        sound = loud_enough(batch)  # [R, S]
        frames = (most - 1) * STRIDE + FRAMES
        sound = F.pad(sound, (0, max(0, frames * HOP - sound.shape[-1])))
        mel = mel_frames(sound, self._bands.to(sound.device))  # [R, M, 40]
        first = STRIDE * torch.arange(most, device=lengths.device)  # [W]
        index = (first[:, None] + torch.arange(FRAMES, device=lengths.device)).flatten()  # [T]
        real = torch.arange(most, device=lengths.device) < counts[:, None]  # [B, W]
        fresh = torch.ones(most, FRAMES, dtype=torch.bool, device=lengths.device)
        fresh[1:, : FRAMES - STRIDE] = False
        by_frame = _real(
            token_map(batch, (HOP * index).expand(len(lengths), -1), HOP),
            (real[:, :, None] & fresh).flatten(1),
            batch.values.shape[1],
        )
        by_partial = _real(
            token_map(batch, (HOP * first).expand(len(lengths), -1), HOP * FRAMES), real, batch.values.shape[1]
        )
        tokens = {name: by_partial if name in ("linear", "output") else by_frame for name in self.taps}
        return Inputs({"frames": mel[:, index].to(self.device, self.dtype)}, tokens, batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return SpeakerEncoder()


def load_weights(path: Path) -> SpeakerEncoder:
    """The encoder with exactly the weights of a checkpoint. Raises `EncoderError`."""
    stored = pickles.read_pickle(path, FAMILY).get("model_state")
    if not isinstance(stored, dict):
        raise EncoderError(f"{FAMILY}: {path} is no checkpoint of this model: it has no 'model_state'")
    # scale and offset of the loss, of which the encoder makes no use
    state = {
        _own(name): x
        for name, x in pickles.tensors_in(stored, path, FAMILY).items()
        if name not in ("similarity_weight", "similarity_bias")
    }
    module = SpeakerEncoder()
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise EncoderError(f"{FAMILY}: {path} does not hold the weights of this model: {reason}") from error
    return module


def _own(name: str) -> str:
    """`lstm.weight_ih_l2`, of one module with three layers, is our `layers.2.lstm.weight_ih_l0`."""
    part, _, layer = name.rpartition("_l")
    return f"layers.{layer}.{part}_l0" if part.startswith("lstm.") else name


def partials(lengths: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """How many partial utterances a series has, as `VoiceEncoder.compute_partial_slices` counts them at its defaults:
    at least one, the last only with sound in three quarters of it."""
    frames = -(-(lengths + 1) // HOP)
    steps = (frames - FRAMES + STRIDE + 1).clamp(min=1)
    count = -(-steps // STRIDE)
    covered = lengths - (count - 1) * STRIDE * HOP
    return count - ((count > 1) & (covered < COVERED * FRAMES * HOP)).long()


def loud_enough(batch: Batch) -> Float[Tensor, "R S"]:
    """Each row raised to -30 dBFS over its own steps, never lowered."""
    values = batch.values.flatten(0, 1).float()  # [R, S]
    steps = batch.lengths.repeat_interleave(batch.values.shape[1])
    power = values.square().sum(-1) / steps
    gain = torch.where(power > 0, LOUDNESS / power.sqrt(), 1).clamp(min=1)
    return values * gain[:, None]


def mel_bands() -> Float[Tensor, "40 201"]:
    """The filters of `librosa.feature.melspectrogram`: triangles on Slaney's scale, each of area one."""
    low, step = 200 / 3, math.log(6.4) / 27  # linear up to 1 kHz at 3 mel / 200 Hz, logarithmic from there
    top = 15 + math.log(RATE / 2 / 1000) / step
    mel = torch.linspace(0, top, BANDS + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * low, 1000 * torch.exp(step * (mel - 15)))  # [42], in hertz
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rise = (bins - edges[:-2, None]) / edges.diff()[:-1, None]
    fall = (edges[2:, None] - bins) / edges.diff()[1:, None]
    triangles = torch.minimum(rise, fall).clamp(min=0)
    return (triangles * 2 / (edges[2:] - edges[:-2])[:, None]).float()


def mel_frames(sound: Float[Tensor, "R S"], bands: Float[Tensor, "40 201"]) -> Float[Tensor, "R M 40"]:
    """Power in each band, not its logarithm; frame j is centred on step 160 j, with silence beyond the ends."""
    window = torch.hann_window(WINDOW, device=sound.device)
    spectrum = torch.stft(sound, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
    return (bands @ spectrum.abs().square()).transpose(1, 2)


def _real(tokens: TokenMap, real: Bool[Tensor, "B T"], rows: int) -> TokenMap:
    """The map with some more tokens masked, the same in all channels."""
    mask = tokens.mask & real.repeat_interleave(rows, 0)
    return TokenMap(mask, torch.where(mask, tokens.start, 0), torch.where(mask, tokens.stop, 0))
