"""Small official architectures with random weights, and how a test reads an encoder.

Real checkpoints need a network; the architectures, their configs and their own `save_pretrained` do not.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from tsprobe.capture import read_layers
from tsprobe.types import Batch

CONTEXT, PATCH, WIDTH, DEPTH = 64, 8, 16, 3
T5 = {"d_model": WIDTH, "d_kv": 4, "d_ff": 32, "num_layers": DEPTH, "num_heads": 2, "initializer_factor": 0.5}
T5_IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
PATCHES = {
    "context_length": CONTEXT,
    "input_patch_size": PATCH,
    "input_patch_stride": PATCH,
    "quantiles": [0.1, 0.5, 0.9],
    "use_reg_token": True,
}
FAMILIES = ["chronos-t5", "chronos-bolt", "chronos-2", "patchtst"]
# float32 sums over other paddings and batch sizes: about 1e-6 of states of size 1 to 10
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def chronos_t5():
    from transformers import T5Config, T5ForConditionalGeneration

    chronos_config = {
        "tokenizer_class": "MeanScaleUniformBins",
        "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
        "context_length": CONTEXT,
        "prediction_length": 8,
        "n_tokens": 512,
        "n_special_tokens": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "use_eos_token": True,
        "model_type": "seq2seq",
        "num_samples": 2,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    return T5ForConditionalGeneration(T5Config(**T5, **T5_IDS, vocab_size=512, chronos_config=chronos_config))


def chronos_bolt():
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    chronos_config = {**PATCHES, "prediction_length": 8}
    return ChronosBoltModelForForecasting(T5Config(**T5, **T5_IDS, chronos_config=chronos_config))


def chronos_2():
    from chronos.chronos2 import Chronos2Model
    from chronos.chronos2.config import Chronos2CoreConfig

    chronos_config = {**PATCHES, "output_patch_size": PATCH, "use_arcsinh": True}
    return Chronos2Model(Chronos2CoreConfig(**T5, chronos_config=chronos_config))


def patchtst(**changes):
    from transformers import PatchTSTConfig, PatchTSTForPretraining

    config = PatchTSTConfig(
        **{
            "context_length": CONTEXT,
            "patch_length": PATCH,
            "patch_stride": PATCH,
            "d_model": WIDTH,
            "ffn_dim": 32,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 2,
            "num_input_channels": 7,
            **changes,
        }
    )
    return PatchTSTForPretraining(config)


def save(model, folder):
    """Save with weights away from their initial values: a fresh norm of ones and a loaded one must not look alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.eval().save_pretrained(folder)
    return model


def save_all(folder_of):
    """The official models, saved by their own means into `folder_of(family)`: `.models[family]`, `.folders[family]`."""
    torch.manual_seed(0)
    build = {"chronos-t5": chronos_t5, "chronos-bolt": chronos_bolt, "chronos-2": chronos_2, "patchtst": patchtst}
    folders = {family: folder_of(family) for family in FAMILIES}
    return SimpleNamespace(folders=folders, models={f: save(build[f](), folders[f]) for f in FAMILIES})


def series(*lengths, channels=2, missing=()):
    """Noise with drift, `[C, S]` each, at a level far from 0; NaN at the steps in `missing` of the first channel."""
    random = np.random.default_rng(1)
    out = []
    for length in lengths:
        x = random.normal(size=(channels, length)).cumsum(1) / 2 + random.normal(size=(channels, length)) + 10
        x[0, [step for step in missing if step < length]] = np.nan
        out.append(x.astype(np.float32))
    return out


def batch_of(many, width=None):
    width = width or max(s.shape[1] for s in many)
    values = np.zeros((len(many), len(many[0]), width), np.float32)
    observed = np.zeros(values.shape, bool)
    for i, s in enumerate(many):
        observed[i, :, : s.shape[1]] = np.isfinite(s)
        values[i, :, : s.shape[1]] = np.nan_to_num(s)
    lengths = torch.tensor([s.shape[1] for s in many])
    return Batch(torch.from_numpy(values), torch.from_numpy(observed), lengths)


def read(encoder, batch):
    layers = {}
    with torch.inference_mode():
        inputs = encoder.prepare(batch)
        read_layers(encoder, inputs, encoder.taps, lambda name, x: layers.__setitem__(name, x.clone()))
    return inputs, layers


def channels_of(many):
    """Each channel of each series as a tensor of its own."""
    return [torch.from_numpy(channel) for s in many for channel in s]
