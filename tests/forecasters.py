"""Small official architectures of the families that transformers, sktime and timesfm build, with random weights.

`build(family)` gives the model as published, with its heads; `save` writes it by its own `save_pretrained`.
"""

from __future__ import annotations

import json
import warnings

import torch
from official import DEPTH, PATCH, WIDTH

CONTEXT = 64
HEADED = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
PATCHES = {"context_length": CONTEXT, "patch_length": PATCH, "patch_stride": PATCH, "num_input_channels": 3}
T5 = {"d_model": WIDTH, "d_kv": 4, "d_ff": 32, "num_layers": DEPTH, "num_heads": 2, "vocab_size": 7}
FAMILIES = (
    "timesfm-2.0", "timesfm-2.5", "patchtsmixer", "moment", "moirai-2", "ttm", "sundial", "time-moe", "timer"
)  # fmt: skip


def build(family, **changes):
    """The published class of a family, at small size."""
    return globals()["_" + family.replace("-", "_").replace(".", "")](**changes)


def _timesfm_20(**changes):
    from transformers import TimesFmConfig, TimesFmModelForPrediction

    sizes = {**HEADED, "patch_length": PATCH, "context_length": CONTEXT, "horizon_length": 16, "head_dim": 8}
    return TimesFmModelForPrediction(TimesFmConfig(**{**sizes, **changes}))


def _timesfm_25(**changes):
    from transformers import TimesFm2_5Config, TimesFm2_5ModelForPrediction

    sizes = {**HEADED, "patch_length": PATCH, "context_length": CONTEXT, "horizon_length": 16, "head_dim": 8}
    more = {"num_key_value_heads": 2, "output_quantile_len": 32}
    return TimesFm2_5ModelForPrediction(TimesFm2_5Config(**{**sizes, **more, **changes}))


def _patchtsmixer(**changes):
    from transformers import PatchTSMixerConfig, PatchTSMixerForPretraining

    sizes = {**PATCHES, "d_model": WIDTH, "num_layers": DEPTH}
    return PatchTSMixerForPretraining(PatchTSMixerConfig(**{**sizes, **changes}))


def _moment(**changes):
    """momentfm 0.1.4 with the T5 of its config; sktime's fork would ask the hub for google/flan-t5."""
    from tsprobe.encoders.moment import Moment

    return Moment.build(moment_config() | changes)


def moment_config():
    return {
        "task_name": "reconstruction",
        "d_model": WIDTH,
        "seq_len": CONTEXT,
        "patch_len": PATCH,
        "patch_stride_len": PATCH,
        "transformer_type": "encoder_only",
        "transformer_backbone": "google/flan-t5-small",
        "t5_config": {**T5, "feed_forward_proj": "gated-gelu"},
    }


def _moirai_2(**changes):
    with warnings.catch_warnings():  # gluonts recommends another JSON library
        warnings.simplefilter("ignore")
        from sktime.libs.uni2ts.moirai2_module import Moirai2Module

    sizes = {"d_model": 64, "d_ff": 32, "num_layers": DEPTH, "patch_size": PATCH, "max_seq_len": CONTEXT // PATCH}
    more = {"attn_dropout_p": 0.0, "dropout_p": 0.0, "num_predict_token": 2}
    return Moirai2Module(**{**sizes, **more, **changes})


def _ttm(**changes):
    from sktime.libs.granite_ttm.configuration_tinytimemixer import TinyTimeMixerConfig
    from sktime.libs.granite_ttm.modeling_tinytimemixer import TinyTimeMixerForPrediction

    sizes = {**PATCHES, "d_model": 32, "num_layers": 2, "adaptive_patching_levels": DEPTH, "prediction_length": 16}
    more = {"decoder_num_layers": 2, "decoder_d_model": 8}
    return TinyTimeMixerForPrediction(TinyTimeMixerConfig(**{**sizes, **more, **changes}))


def _sundial(**changes):
    from sktime.libs.sundial.modeling_sundial import SundialConfig, SundialForPrediction

    sizes = {**HEADED, "input_token_len": PATCH, "output_token_lens": [16], "max_position_embeddings": 400}
    return SundialForPrediction(SundialConfig(**{**sizes, **changes}))


def _time_moe(**changes):
    from sktime.libs.timemoe.timemoe import TimeMoeForPrediction
    from sktime.libs.timemoe.timemoe_config import TimeMoeConfig

    sizes = {**HEADED, "num_experts": 4, "max_position_embeddings": CONTEXT, "horizon_lengths": [1, 8]}
    return TimeMoeForPrediction(TimeMoeConfig(**{**sizes, **changes}))


def _timer(**changes):
    from sktime.libs.timer.modeling_timer import TimerConfig, TimerForPrediction

    sizes = {**HEADED, "input_token_len": PATCH, "output_token_lens": [PATCH], "max_position_embeddings": 400}
    return TimerForPrediction(TimerConfig(**{**sizes, **changes}))


def _timesfm_3(**changes):
    from timesfm3 import ResidualBlockConfig, StackedTransformersConfig, TimesFM3Torch, TransformerConfig

    block = ResidualBlockConfig(hidden_dims=WIDTH, output_dims=WIDTH, use_bias=False, activation="relu")
    layer = TransformerConfig(
        model_dims=WIDTH, hidden_dims=32, num_heads=2, attention_norm="rms", feedforward_norm="rms", qk_norm="rms",
        use_bias=False, use_rope_seq=True, use_rope_var=False, ff_activation="relu", deterministic=True,
    )  # fmt: skip
    stack = StackedTransformersConfig(num_layers=DEPTH, transformer=layer)
    sizes = {"input_patch_len": PATCH, "output_patch_len": 2 * PATCH}
    return TimesFM3Torch(**{**sizes, "residual_block_config": block, "transformer_config": stack, **changes})


def save(model, folder):
    """Save by its own means, with weights away from their initial values: a fresh norm of ones and a loaded one must
    not look alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval().save_pretrained(folder)
    if not (folder / "config.json").exists():  # the hub mixin writes none for MOMENT's config, a namespace
        (folder / "config.json").write_text(json.dumps(moment_config()))
    return model
