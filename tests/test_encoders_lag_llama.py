"""Lag-Llama against a loop over its blocks, and from a checkpoint that its own Lightning module wrote."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from official import CLOSE, batch_of, channels_of, read, series

from tsprobe.encoders import load_encoder
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

pytest.importorskip("lightning", reason="needs the package lightning, which gluonts.torch imports")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

LAGS, CONTEXT, DEPTH = [0, 1, 2, 7], 64, 3  # the package counts a lag of one step as 0
CASES = {"equal": series(40, 40), "ragged": series(61, 24, 17), "short": series(3, 2)}


def settings(**changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gluonts.torch.distributions import StudentTOutput
    return {
        "input_size": 1,
        "context_length": 8,
        "max_context_length": CONTEXT,
        "lags_seq": LAGS,
        "n_layer": DEPTH,
        "n_embd_per_head": 8,
        "n_head": 2,
        "scaling": "robust",
        "distr_output": StudentTOutput(),
        "num_parallel_samples": 2,
        "rope_scaling": None,
        "time_feat": True,
        "dropout": 0.0,
        **changes,
    }


def save(folder, drop=(), **changes):
    """The checkpoint of a training run: weights, and settings with the head and the loss as objects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sktime.libs.lag_llama.gluon.gluonts_torch_modules_loss_shim import NegativeLogLikelihood
        from sktime.libs.lag_llama.model.module import LagLlamaModel

    given = settings(**changes)
    model = LagLlamaModel(**given).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    state = {f"model.{name}": x for name, x in model.state_dict().items() if name not in drop}
    loss = NegativeLogLikelihood()
    torch.save(
        {"state_dict": state, "hyper_parameters": {"model_kwargs": given, "loss": loss}}, folder / "lag-llama.ckpt"
    )
    return model


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lag-llama")
    model = save(folder)
    return SimpleNamespace(folder=folder, model=model, encoder=load_encoder(f"lag-llama:{folder}"))


@pytest.mark.parametrize("case", CASES)
def test_layers_are_those_of_a_loop_over_the_blocks(zoo, case):
    many, model = CASES[case], zoo.model
    inputs, layers = read(zoo.encoder, batch_of(many))
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(DEPTH)), "norm"]
    for row, channel in enumerate(channels_of(many)):
        past = torch.cat([torch.zeros(max(LAGS)), channel])[None]
        observed = torch.cat([torch.zeros(max(LAGS)), torch.ones_like(channel)])[None]
        with torch.no_grad():
            calendar = torch.zeros(1, past.shape[1], 6)
            entering, _, _ = model.prepare_input(past, observed, calendar, calendar[:, :1])
            x = model.transformer.wte(entering)
            states = [x]
            for block in model.transformer.h:
                x = block(x, False)
                states.append(x)
            states.append(model.transformer.ln_f(x))
            head = model(past, observed, calendar, calendar[:, :1])[0]
            found = model.param_proj(layers["norm"][row : row + 1])
        mask = inputs.tokens.mask[row]
        assert inputs.tokens.start[row][mask].tolist() == list(range(len(channel)))
        for name, expected in zip(layers, states, strict=True):
            torch.testing.assert_close(layers[name][row][mask], expected[0], **CLOSE)
        torch.testing.assert_close(found[0][0][mask], head[0][0], **CLOSE)


def test_a_step_reads_itself_and_its_lags(zoo):
    """Scaling aside: the peak and the dip change places, and the quartiles stay."""
    (one,) = series(40, channels=1)
    one[0, 10], one[0, 20] = 60, -60
    swapped = one.copy()
    swapped[0, [10, 20]] = one[0, [20, 10]]
    _, before = read(zoo.encoder, batch_of([one]))
    _, after = read(zoo.encoder, batch_of([swapped]))
    moved = (after["embedding"] - before["embedding"]).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == sorted({step + lag for step in (10, 20) for lag in LAGS})


@pytest.mark.parametrize("scaling", ["robust", "std", "mean"])
def test_lag_llama_keeps_the_promises(tmp_path, scaling):
    torch.manual_seed(1)
    save(tmp_path, scaling=scaling, time_feat=scaling != "mean")
    encoder = load_encoder(f"lag-llama:{tmp_path}")
    check_encoder(encoder, channels=2, causal=False if scaling == "mean" else "scaled")
    check_encoder(encoder, length=5, untrained=False)


def test_what_it_cannot_take_is_refused(zoo):
    with pytest.raises(EncoderError, match="reads at most 64 steps and this window has 65"):
        zoo.encoder.prepare(batch_of(series(CONTEXT + 1)))
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        zoo.encoder.prepare(batch_of(series(40, missing=[5])))


def test_tokens_that_do_not_read_their_own_step_are_refused(tmp_path):
    save(tmp_path, lags_seq=[1, 2])
    with pytest.raises(EncoderError, match="begin at 1: no token reads its own step"):
        load_encoder(f"lag-llama:{tmp_path}")


def test_checkpoints_are_read_whole_or_not_at_all(zoo, tmp_path):
    save(tmp_path, drop=["transformer.ln_f.scale"])
    with pytest.raises(EncoderError, match=r"missing transformer\.ln_f\.scale"):
        load_encoder(f"lag-llama:{tmp_path}")
    torch.save({"state_dict": {}}, tmp_path / "lag-llama.ckpt")
    with pytest.raises(EncoderError, match="it is no Lag-Llama"):
        load_encoder(f"lag-llama:{tmp_path}")


def test_nothing_in_a_checkpoint_is_called(tmp_path):
    """Stand-ins take the place of the objects of gluonts; any other is refused."""
    trace = tmp_path / "called"

    class Call:
        def __reduce__(self):
            import functools

            return functools.partial(open, str(trace), "w"), ()

    torch.save({"hyper_parameters": Call()}, tmp_path / "lag-llama.ckpt")
    with pytest.raises(EncoderError, match="holds more than tensors"):
        load_encoder(f"lag-llama:{tmp_path}")
    assert not trace.exists()


def test_untrained_twin_is_the_modules_own_initialisation(zoo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sktime.libs.lag_llama.model.module import LagLlamaModel
    twin = zoo.encoder.untrained(seed=3)
    torch.manual_seed(3)
    expected = LagLlamaModel(**settings()).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in twin.module.state_dict().items())
