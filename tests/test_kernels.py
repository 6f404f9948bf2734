"""The Triton kernels against the definition in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from pooling_cases import ALL, CASES, TOLERANCE, Case, borders, draw, ragged, referee
from pooling_cases import GPU as DEVICE
from pooling_cases import on_gpu as on_device

from tsprobe.errors import SpecError
from tsprobe.pooling import Norm, Slots, kernels, launch, ops, path_used, pool, reference
from tsprobe.types import TokenMap

# A mean of NaN or infinities is worked out in numpy by the interpreter, which says so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered", "ignore:overflow encountered", "ignore:divide by zero encountered"
)
LONG = Case("long enough to be split over four programs", 2, 2300, 33)


def splits(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    monkeypatch.setattr(launch, "_programs", lambda device, registers: programs)


@pytest.mark.parametrize(
    ("case", "dtype", "kind"),
    [(case, torch.float32, kind) for case in CASES for kind in ("all", "padded", "scattered")]
    + [(case, dtype, "padded") for case in (CASES[1], CASES[4]) for dtype in (torch.bfloat16, torch.float16)],
)
def test_equals_the_definition(case: Case, dtype: torch.dtype, kind: str) -> None:
    x = draw(case, dtype)
    tokens, spans = ragged(*x.shape[:2], kind), borders(*x.shape[:2])
    right, right_weight = referee(x, tokens, ALL, spans)
    pooled, weight = pool(*on_device(x, tokens, spans)[:2], Slots.parse(ALL), spans.to(DEVICE), "triton")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.cpu().double(), right, **TOLERANCE)
    torch.testing.assert_close(weight.cpu().double(), right_weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["all", "padded", "scattered"])
def test_tokens_split_over_programs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts without a real token, and rows that are all in one part, among them."""
    splits(monkeypatch, 16)
    x = draw(Case("", 4, *LONG[2:4]), torch.float32)
    assert launch.plan(x).splits > 1
    tokens, spans = ragged(4, LONG.tokens, kind), borders(4, LONG.tokens)
    right, _ = referee(x, tokens, ALL, spans)
    pooled, _ = pool(*on_device(x, tokens, spans)[:2], Slots.parse(ALL), spans.to(DEVICE), "triton")
    # sums of 2,300 numbers: a few roundings more than the short ones
    torch.testing.assert_close(pooled.cpu().double(), right, rtol=1e-5, atol=1e-5)
    again, _ = pool(*on_device(x, tokens, spans)[:2], Slots.parse(ALL), spans.to(DEVICE), "triton")
    assert torch.equal(pooled, again)


@pytest.mark.parametrize(
    ("work", "programs", "most", "splits"),
    [
        (512, 528, 4, 1),  # nearly a wave
        (192, 528, 32, 5),  # 960 of two waves of 528; three parts, one wave and a tenth of another, take as long as two
        (6, 528, 390, 80),
        (64, 528, 4, 4),  # too few tokens to fill it
        (10_000, 528, 16, 1),
        (1, 1, 16, 1),  # interpreted
        (3, 528, 0, 1),
    ],
)
def test_parts_fill_whole_waves(work: int, programs: int, most: int, splits: int) -> None:
    assert launch._splits(work, programs, most) == splits


@pytest.mark.parametrize("width", [257, 1100])  # past two blocks, and past eight; the last one nearly empty
def test_width_past_a_block(width: int) -> None:
    x = draw(Case("", 1, 5, width), torch.bfloat16)
    tokens, spans = ragged(1, 5, "all"), borders(1, 5)
    right, _ = referee(x, tokens, ALL, spans)
    pooled, _ = pool(*on_device(x, tokens, spans)[:2], Slots.parse(ALL), spans.to(DEVICE), "triton")
    torch.testing.assert_close(pooled.cpu().double(), right, **TOLERANCE)


@pytest.mark.parametrize("names", [("mean",), ("max",), ("std",), ("last",), ("cls",), ("segments3",), ("segments11",)])
def test_each_statistic_alone(names: tuple[str, ...]) -> None:
    """Eleven segments are more than one read gives."""
    x = draw(CASES[1], torch.float32)
    tokens = ragged(5, 63, "scattered", cls=2)
    spans = borders(5, 63, 11 if "11" in names[0] else 3)
    right, _ = referee(x, tokens, names, spans)
    pooled, _ = pool(*on_device(x, tokens, spans)[:2], Slots.parse(names), spans.to(DEVICE), "triton")
    torch.testing.assert_close(pooled.cpu().double(), right, **TOLERANCE)


@pytest.mark.parametrize("programs", [1, 16])
def test_what_is_not_finite_goes_where_the_definition_says(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    splits(monkeypatch, programs)
    x = draw(Case("", 4, LONG.tokens, 9), torch.float32).clone()
    tokens, spans = ragged(4, LONG.tokens, "padded"), borders(4, LONG.tokens)
    x[~tokens.mask] = float("nan")  # a masked token may hold anything
    x[2, 0, 3:6] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    x[3, 0, 4], x[3, 1, 4] = float("inf"), float("-inf")
    names = ALL[:-2] + ALL[-1:]
    right, _ = reference.pool(x, tokens, Slots.parse(names), spans)
    pooled, _ = pool(*on_device(x, tokens, spans)[:2], Slots.parse(names), spans.to(DEVICE), "triton")
    torch.testing.assert_close(pooled.cpu(), right, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert pooled[:2].isfinite().all()


@pytest.mark.parametrize("first", [0.0, 1e4])
def test_std_keeps_its_digits_far_from_zero_and_beside_an_outlier(first: float) -> None:
    x = torch.randn(1, 4096, 9, generator=torch.Generator().manual_seed(1)) + 1000
    x[:, 0] += first
    tokens, spans = ragged(1, 4096, "all"), borders(1, 4096)
    right, _ = referee(x, tokens, ("mean", "std"), None)
    pooled, _ = pool(*on_device(x, tokens, spans)[:2], Slots.parse(["mean", "std"]), path="triton")
    # float32 sums near 1000: the mean errs by its rounding, 6e-8, a few times; E[x²]-E[x]² would lose the std wholly
    torch.testing.assert_close(pooled[:, 0].cpu().double(), right[:, 0], rtol=3e-7, atol=0)
    torch.testing.assert_close(pooled[:, 1].cpu().double(), right[:, 1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("programs", [1, 16])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_and_attention_in_the_same_read(kind: str, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    splits(monkeypatch, programs)
    generator = torch.Generator().manual_seed(2)
    x = draw(Case("", 4, 130, 33), torch.bfloat16)
    tokens, spans = ragged(4, 130, "padded"), borders(4, 130)
    x[~tokens.mask] = float("nan")
    x[:, 0] = torch.where(x[:, 0].isnan(), 0.0, x[:, 0])  # the class token is read though it is no real one
    weight, bias, query = torch.randn(3, 33, generator=generator)
    norm = Norm(kind, weight, bias, 1e-6)
    moved = on_device(x, tokens, spans)
    norm_moved = Norm(kind, weight.to(DEVICE), bias.to(DEVICE), 1e-6)
    slots = Slots.parse(ALL)
    pooled, mass = pool(*moved[:2], slots, moved[2], "triton", norm=norm_moved, query=query.to(DEVICE))
    right, right_mass = pool(x.double(), tokens, slots, spans.double(), norm=norm, query=query)
    assert pooled.shape == (4, len(slots) + 1, 33)
    # tokens of size 1 after the norm; the exponential of scores of size 10 multiplies their rounding by as much
    torch.testing.assert_close(pooled.cpu().double(), right, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(mass.cpu().double(), right_mass, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", [None, Norm("layer"), Norm("rms", eps=0.0)])
def test_norm_without_weights_and_attention_alone(norm: Norm | None) -> None:
    x = draw(Case("", 2, 9, 20), torch.float32)
    tokens, spans = ragged(2, 9, "all"), borders(2, 9)
    moved, slots = on_device(x, tokens, spans), Slots.parse(["mean", "max"])
    query = torch.linspace(-1, 1, 20)
    pooled, _ = pool(*moved[:2], slots, path="triton", norm=norm, query=query.to(DEVICE))
    right, _ = pool(x.double(), tokens, slots, norm=norm, query=query)
    torch.testing.assert_close(pooled.cpu().double(), right, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("programs", [1, 16])
@pytest.mark.parametrize("kind", ["all", "padded", "scattered"])
@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[9], LONG], ids=["odd", "strided", "expanded", "long"])
def test_gradient_equals_that_of_the_definition(
    case: Case, kind: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits(monkeypatch, programs)
    x = draw(case, torch.float32)
    x = torch.where(x > 7, torch.tensor(7.0), x)  # ties at the maximum
    tokens, spans = ragged(*x.shape[:2], kind), borders(*x.shape[:2])
    leaf = x.detach().double().requires_grad_()
    right, _ = referee(leaf, tokens, ALL, spans)
    std_is_zero = right[:, 3:4] == 0  # there the definition's own gradient is NaN, and this one 0
    toward = torch.randn(right.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    toward = torch.where(std_is_zero & (torch.arange(len(ALL) + 2)[:, None] == 3), 0.0, toward)
    (wanted,) = torch.autograd.grad(right, leaf, toward)
    moved = on_device(x, tokens, spans)
    leaf = moved[0].detach().requires_grad_()
    pooled, _ = pool(leaf, moved[1], Slots.parse(ALL), moved[2], "triton")
    (found,) = torch.autograd.grad(pooled, leaf, toward.float().to(DEVICE))
    rows = ~std_is_zero.any(2).any(1)
    torch.testing.assert_close(found.cpu().double()[rows], wanted[rows], rtol=1e-5, atol=1e-6)
    assert found.isfinite().all()


def test_gradient_keeps_the_type_of_the_tokens() -> None:
    x, tokens, _ = on_device(draw(CASES[1], torch.bfloat16), ragged(5, 63, "all"), borders(5, 63))
    leaf = x.requires_grad_()
    pooled, _ = pool(leaf, tokens, Slots.parse(["mean"]), path="triton")
    pooled.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    torch.testing.assert_close(leaf.grad.float(), torch.full_like(leaf.grad.float(), 1 / 63), rtol=4e-3, atol=0)


def test_the_kernel_runs_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    kept = launch._read
    monkeypatch.setattr(launch, "_read", lambda *args: (ran.append("triton"), kept(*args)))
    x, tokens, _ = on_device(torch.ones(2, 3, 4), ragged(2, 3, "all"), borders(2, 3))
    pool(x, tokens, Slots.parse(["mean"]), path="blocked torch")
    assert ran == []
    pool(x, tokens, Slots.parse(["mean"]), path="triton")
    assert ran == ["triton"]
    assert path_used(x) == ("triton" if DEVICE == "cuda" else path_used(torch.ones(2, 3, 4)))


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels are compiled here")
def test_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SpecError, match="'triton' does not serve"):
        pool(torch.ones(2, 3, 4), ragged(2, 3, "all"), Slots.parse(["mean"]), path="triton")


@pytest.mark.parametrize("path", ["auto", "triton"])
def test_offsets_past_two_to_the_31(path: str) -> None:
    """Two rows that lie 2^31 elements apart in memory that is reserved and never touched between them."""
    far = 2**31 + 16
    try:
        memory = torch.empty(far + 64, dtype=torch.float16, device=DEVICE)
    except RuntimeError:
        pytest.skip("4 GB of address space are not to be had")
    x = memory.as_strided((2, 4, 8), (far, 8, 1))
    x.copy_(torch.arange(64).view(2, 4, 8))
    tokens, spans = ragged(2, 4, "all"), borders(2, 4)
    moved = TokenMap(*(t.to(DEVICE) for t in (tokens.mask, tokens.start, tokens.stop)))
    pooled, _ = pool(x, moved, Slots.parse(["mean", "last"]), path=path)
    right, _ = referee(torch.arange(64.0).view(2, 4, 8), tokens, ("mean", "last"), spans)
    torch.testing.assert_close(pooled.cpu().double(), right, rtol=0, atol=0)


def test_the_kernels_file_alone_imports_triton() -> None:
    assert kernels._pool.__class__.__module__.startswith("triton")
    for module in (launch, ops, reference):
        assert "triton" not in vars(module)
        assert "tl" not in vars(module)
