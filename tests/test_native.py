"""The paths of pooling on a CPU, compiled loop and blocked torch, against the definition in float64."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pooling_cases import ALL, CASES, COMPILER, TOLERANCE, Case, borders, draw, needs_compiler, ragged, referee
from pooling_cases import ON_CPU as PATHS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tsprobe.errors import EncoderError, SpecError
from tsprobe.pooling import Slots, blocked, native, ops, path_used, pool, reference
from tsprobe.types import TokenMap


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["all", "padded", "scattered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=[case.why for case in CASES])
def test_equals_the_definition(
    case: Case, dtype: torch.dtype, kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "VALUES", 256)  # several parts a row
    x = draw(case, dtype)
    tokens, spans = ragged(*x.shape[:2], kind), borders(*x.shape[:2])
    pooled, weight = pool(x, tokens, Slots.parse(ALL), spans, path)
    right, right_weight = referee(x, tokens, ALL, spans)
    assert pooled.dtype == weight.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), right, **TOLERANCE)
    torch.testing.assert_close(weight.double(), right_weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", [1023, 1025, 2100])  # one short of, one past and more than two blocks of the loop
def test_width_past_a_block(width: int, path: str) -> None:
    x = draw(Case("", 2, 19, width), torch.float32)
    tokens, spans = ragged(2, 19, "all"), borders(2, 19)
    right, _ = referee(x, tokens, ALL, spans)
    torch.testing.assert_close(pool(x, tokens, Slots.parse(ALL), spans, path)[0].double(), right, **TOLERANCE)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "names", [("mean",), ("max",), ("std",), ("last",), ("cls",), ("segments3",), ("min", "first")]
)
def test_each_statistic_alone(names: tuple[str, ...], path: str) -> None:
    x = draw(CASES[1], torch.float32)
    tokens, spans = ragged(5, 63, "scattered", cls=2), borders(5, 63)
    right, _ = referee(x, tokens, names, spans)
    torch.testing.assert_close(pool(x, tokens, Slots.parse(names), spans, path)[0].double(), right, **TOLERANCE)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("first", [0.0, 1e4])
def test_std_keeps_its_digits_far_from_zero_and_beside_an_outlier(first: float, path: str) -> None:
    """The first token is an outlier in trained transformers: a shift by it would lose the digits of the rest."""
    x = torch.randn(2, 4096, 20, generator=torch.Generator().manual_seed(1)) + 1000
    x[:, 0] += first
    tokens = ragged(2, 4096, "all")
    pooled, _ = pool(x, tokens, Slots.parse(["mean", "std"]), path=path)
    right, _ = referee(x, tokens, ("mean", "std"), None)
    # the mean to a rounding of float32; the std to the rounding of tokens' deviations: 1e-5 where E[x²]-E[x]² has 1e-1
    torch.testing.assert_close(pooled[:, 0].double(), right[:, 0], rtol=2e-7, atol=0)
    torch.testing.assert_close(pooled[:, 1].double(), right[:, 1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_goes_where_the_definition_says(value: float, dtype: torch.dtype, path: str) -> None:
    x = draw(CASES[1], dtype).clone()
    tokens, spans = ragged(5, 63, "padded"), borders(5, 63)
    x[~tokens.mask] = float("nan")  # a masked token may hold anything
    x[3, 0, 4] = value
    x[4, 0, 5:7] = torch.tensor([float("inf"), float("-inf")], dtype=dtype)
    names = (*ALL[:-2], "segments3")
    right, _ = reference.pool(x.float(), tokens, Slots.parse(names), spans)
    pooled, _ = pool(x, tokens, Slots.parse(names), spans, path)
    torch.testing.assert_close(pooled, right, **TOLERANCE, equal_nan=True)
    assert pooled[:3].isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_float16_holds_subnormals_and_its_largest_values(path: str) -> None:
    x = torch.tensor([6e-8, -6.1e-5, 65504.0, -0.0, -65504.0], dtype=torch.float16)[None, None]
    pooled, _ = pool(x, ragged(1, 1, "all"), Slots.parse(["mean", "max", "first"]), path=path)
    assert pooled.eq(x.float()).all()


@needs_compiler
def test_threads_change_nothing() -> None:
    x = draw(Case("", 2, 70, 200), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 5):  # more threads than rows: blocks become smaller
            torch.set_num_threads(n)
            results.append(pool(x, ragged(2, 70, "all"), Slots.parse(ALL), borders(2, 70), "native")[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_path_is_chosen_by_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 3, 4)
    assert path_used(x) == ("native" if COMPILER else "blocked torch")
    assert path_used(x.double()) == path_used(x.int()) == path_used(x.to("meta")) == "reference"
    assert path_used(x.transpose(1, 2)) == "blocked torch"  # the last dimension is not contiguous
    with pytest.raises(SpecError, match="does not serve"):
        pool(x.double(), ragged(2, 3, "all"), Slots.parse(["mean"]), path="native")
    with pytest.raises(SpecError, match="must be one of"):
        pool(x, ragged(2, 3, "all"), Slots.parse(["mean"]), path="fast")
    monkeypatch.setattr(native, "state", lambda: native.Native(None, "none"))
    assert path_used(x) == "blocked torch"


@pytest.mark.parametrize("path", PATHS)
def test_the_path_that_is_named_runs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    native.state()  # which tries the loop before it is used
    for module, entry, name in ((native, "prepare", "native"), (blocked, "pool", "blocked torch")):
        kept = getattr(module, entry)
        monkeypatch.setattr(module, entry, lambda *a, kept=kept, name=name: (ran.append(name), kept(*a))[1])
    pool(torch.ones(2, 3, 4), ragged(2, 3, "all"), Slots.parse(["mean"]), path=path)
    assert ran == [path]


# ---- the short way past torch's dispatcher


@needs_compiler
def test_what_is_prepared_for_a_token_map_serves_its_other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[torch.Size] = []
    native.state()  # which tries the loop before it is used
    kept = native.prepare
    monkeypatch.setattr(native, "prepare", lambda *a: (prepared.append(a[0].shape), kept(*a))[1])
    tokens, spans = ragged(5, 63, "scattered"), borders(5, 63)
    slots = Slots.parse(ALL)

    def right(x: torch.Tensor, slots: Slots = slots, spans: torch.Tensor = spans) -> bool:
        found, wanted = pool(x, tokens, slots, spans), referee(x, tokens, slots.names, spans)
        return all(torch.allclose(a.double(), b, **TOLERANCE) for a, b in zip(found, wanted, strict=True))

    x = draw(CASES[1], torch.float32)
    assert right(x)
    assert right(x * 2)
    assert len(prepared) == 1
    others = [x.bfloat16(), x[:, :, :20], x[:, :, :20].contiguous()]
    assert all(right(other) for other in others * 2)
    assert right(x, Slots.parse(ALL[:3]))
    assert right(x, spans=spans + 5)
    assert len(prepared) == 6


@needs_compiler
def test_a_map_or_borders_changed_in_place_are_seen() -> None:
    x = draw(CASES[1], torch.float32)
    tokens, spans = ragged(5, 63, "scattered"), borders(5, 63).clone()
    for change in (lambda: None, lambda: tokens.mask.logical_not_(), lambda: spans.add_(9), lambda: spans.sub_(3)):
        change()
        for names in (ALL, ("mean", "first")):  # with segments and without
            pooled, weight = pool(x, tokens, Slots.parse(names), spans)
            right, right_weight = referee(x, tokens, names, spans)
            torch.testing.assert_close(pooled.double(), right, **TOLERANCE)
            torch.testing.assert_close(weight.double(), right_weight, rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("names", [ALL, ("std",)])
def test_the_short_way_and_the_operator_give_the_same(names: tuple[str, ...]) -> None:
    x, tokens, spans = draw(CASES[1], torch.bfloat16), ragged(5, 63, "padded"), borders(5, 63)
    short = pool(x, tokens, Slots.parse(names), spans)
    watched = pool(x.requires_grad_(), tokens, Slots.parse(names), spans)
    assert not short[0].requires_grad
    assert watched[0].requires_grad
    for a, b in zip(short, watched, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap calls the operator once for each
@pytest.mark.parametrize("known", [True, False], ids=["kept", "unknown"])
def test_whoever_watches_sees_the_operator(known: bool) -> None:
    x, tokens = draw(CASES[1], torch.float32), ragged(5, 63, "all")
    slots = Slots.parse(["mean", "max"])
    if known:
        pool(x, tokens, slots)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return pool(x, tokens, slots)[0][:, 0]

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(mean(x), FakeTensor)
    traced = make_fx(mean)(x)
    assert torch.ops.tsprobe.pool.default in [node.target for node in traced.graph.nodes]
    torch.testing.assert_close(traced(x * 2), mean(x) * 2)
    torch.testing.assert_close(torch.func.vmap(mean)(torch.stack([x, x * 2])), torch.stack([mean(x), mean(x) * 2]))
    torch.testing.assert_close(mean(torch._neg_view(x)), -mean(x))


def test_what_does_not_fit_is_refused() -> None:
    x, tokens = torch.zeros(2, 3, 4), ragged(2, 3, "all", cls=3)
    with pytest.raises(EncoderError, match="token 3 of 3"):
        pool(x, tokens, Slots.parse(["cls"]))
    with pytest.raises(EncoderError, match="do not fit"):
        pool(x[:, :2], tokens, Slots.parse(["mean"]))
    with pytest.raises(EncoderError, match="must be bool"):
        pool(x, TokenMap(tokens.mask.float(), tokens.start, tokens.stop), Slots.parse(["mean"]))
    with pytest.raises(ValueError, match="borders"):
        pool(x, tokens, Slots.parse(["segments2"]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["all", "padded", "scattered"])
@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[9]], ids=["odd", "strided", "expanded"])
def test_gradient_equals_that_of_the_definition(case: Case, kind: str, path: str) -> None:
    x = draw(case, torch.float32)
    x = torch.where(x > 7, torch.tensor(7.0), x).requires_grad_()  # ties at the maximum
    tokens, spans = ragged(*x.shape[:2], kind), borders(*x.shape[:2])
    pooled, _ = pool(x, tokens, Slots.parse(ALL), spans, path)
    right, _ = referee(x, tokens, ALL, spans)
    toward = torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    std_is_zero = right[:, 3:4] == 0  # there the definition's own gradient is NaN
    toward = torch.where(std_is_zero & (torch.arange(len(ALL) + 2)[:, None] == 3), 0.0, toward)
    (found,) = torch.autograd.grad(pooled, x, toward)
    (wanted,) = torch.autograd.grad(torch.where(std_is_zero, right.detach(), right), x, toward.double())
    assert found.dtype == torch.float32
    rows = ~std_is_zero.any(2).any(1)
    torch.testing.assert_close(found[rows], wanted[rows].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_gradient_is_zero_where_the_std_is(path: str) -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    tokens = ragged(2, 3, "padded")
    pooled, _ = pool(x, tokens, Slots.parse(["std"]), path=path)
    (found,) = torch.autograd.grad(pooled[:, 0].sum(), x)
    assert found.eq(0).all()


# opcheck itself reads .grad of a tensor that is no leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_operators_are_well_formed() -> None:
    x = torch.randn(2, 9, 5, requires_grad=True)
    tokens, spans = ragged(2, 9, "all"), borders(2, 9)
    slots = Slots.parse(ALL)
    args = (x, tokens.mask, ops._shares(tokens, spans), ops.codes(slots.kinds), 0, "auto")
    torch.library.opcheck(torch.ops.tsprobe.pool.default, args)
    normed = (*args[:6], "layer", torch.ones(5), None, 1e-5, torch.ones(5))
    torch.library.opcheck(
        torch.ops.tsprobe.pool_normed.default,
        (x.detach(), *normed[1:]),
    )


def both(x: torch.Tensor, mask: torch.Tensor, start: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    pooled, weight = pool(x * 2, TokenMap(mask, start, start + 4, 0), Slots.parse(ALL), spans)
    return pooled * weight[..., None]


def test_compilation_and_export_see_one_operator() -> None:
    tokens, spans = ragged(3, 9, "padded"), borders(3, 9).clone()
    x = torch.randn(3, 9, 5, requires_grad=True)
    args = (x, tokens.mask, tokens.start.clone(), spans)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), both(*args))
    (found,) = torch.autograd.grad(compiled(*args).sum(), x)
    (wanted,) = torch.autograd.grad(both(*args).sum(), x)
    torch.testing.assert_close(found, wanted)

    class Module(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            return both(*args)

    program = torch.export.export(Module(), (x.detach(), *args[1:]))
    assert [node.target for node in program.graph.nodes].count(torch.ops.tsprobe.pool.default) == 1
    torch.testing.assert_close(program.module()(x.detach(), *args[1:]), both(*args).detach())


def test_autocast_leaves_the_statistics_in_float32() -> None:
    x = torch.randn(2, 9, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled, _ = pool(x, ragged(2, 9, "all"), Slots.parse(["mean", "std"]))
    assert pooled.dtype == torch.float32


# ---- the compiled loop is there, or pooling goes on without it and says why


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., native.Native]:
    """The state that a new process would find, with an empty cache folder of its own."""

    def find(**environment: str) -> native.Native:
        with monkeypatch.context() as patch:
            patch.delenv("CC", raising=False)
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            for name, value in environment.items():
                patch.setenv(name, value)
            return native.state.__wrapped__()

    return find


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_the_library_is_kept_in_the_cache_folder_and_a_damaged_one_is_made_anew(
    tmp_path: Path, fresh: Callable[..., native.Native]
) -> None:
    folder = tmp_path / "cache" / "tsprobe" / "native"
    folder.mkdir(parents=True)
    damaged = [folder / f"pool-{native._key(COMPILER or '', flags)}.so" for flags in native.FLAGS]
    for path in damaged:
        path.write_bytes(b"half a library")
    assert fresh().function is not None
    library = next(path for path in damaged if path.stat().st_size > 1000)
    made = library.stat().st_mtime_ns
    assert fresh().function is not None
    assert library.stat().st_mtime_ns == made


def test_no_compiler(tmp_path: Path, fresh: Callable[..., native.Native], caplog: pytest.LogCaptureFixture) -> None:
    assert fresh(PATH=str(tmp_path)) == native.Native(None, "no C compiler (cc, gcc or clang) was found")
    assert "pooling on the CPU runs in torch" in caplog.text


def test_a_compiler_that_fails_or_lies(tmp_path: Path, fresh: Callable[..., native.Native]) -> None:
    failing = script(tmp_path / "failing", "echo 'no such header' >&2; exit 1")
    assert fresh(CC=failing) == native.Native(None, f"{failing}: no such header")
    found = fresh(CC=script(tmp_path / "lying", "exit 0"))
    assert found.function is None
    assert "cannot be loaded" in found.detail


@needs_compiler
def test_a_loop_that_computes_something_else_is_not_used(
    tmp_path: Path, fresh: Callable[..., native.Native], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text("int tsprobe_pool(const void *job) { return job == 0; }")
    monkeypatch.setattr(native, "SOURCE", wrong)
    assert "wrong results" in fresh().detail


@needs_compiler
def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, fresh: Callable[..., native.Native]) -> None:
    (tmp_path / "file").write_text("")
    assert fresh(XDG_CACHE_HOME=str(tmp_path / "file")).function is not None


def test_switched_off(fresh: Callable[..., native.Native]) -> None:
    assert fresh(TSPROBE_NATIVE="0") == native.Native(None, "switched off by TSPROBE_NATIVE=0")
