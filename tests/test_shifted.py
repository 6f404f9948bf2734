"""Shifted systems against NumPy, by both ways, at sizes that do not fit the blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tsprobe.probes import shifted

SHIFTS = torch.tensor([[1e-3, 1.0, 50.0, 1e4], [1e-2, 2.0, 60.0, 1e3]], dtype=torch.float64)


def system(size: int, targets: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices of rank below their size, with rows and columns of zeros, as constant features leave them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    x[:, :, 3] = 0
    x[1, : size // 2] = 0
    return x.mT @ x, torch.randn(2, size, targets, generator=generator, dtype=torch.float64)


# 16: one block of the last width; 50: three blocks and a rest; 64: whole blocks; 7: less than one block
@pytest.mark.parametrize("size", [7, 16, 50, 64])
@pytest.mark.parametrize("rows", [None, 3, 40])  # 40 > 4 shifts x 2 targets: solutions are reflected, not rows
@pytest.mark.parametrize("way", ["band", "cholesky"])
def test_solutions_are_those_of_numpy(size, rows, way, monkeypatch):
    matrix, right = system(size, 2)
    left = None if rows is None else torch.randn(2, rows, size, dtype=torch.float64)
    ran = []
    for name in ("_by_band", "_by_cholesky"):
        function = getattr(shifted, name)
        monkeypatch.setattr(shifted, name, lambda *a, f=function, name=name: (ran.append(name), f(*a))[1])
    monkeypatch.setattr(shifted, "_WIDTHS", (16,))
    monkeypatch.setattr(shifted, "_BAND_SIZE", 0 if way == "band" else 10**9)
    monkeypatch.setattr(shifted, "_CACHE", 3 * 8 * size**2)  # three matrices at a time, which splits the four shifts
    eye = np.eye(size)
    inverse = np.linalg.inv(matrix.numpy()[:, None] + SHIFTS.numpy()[..., None, None] * eye)
    want = inverse @ right.numpy()[:, None]
    if left is not None:
        want = left.numpy()[:, None] @ want
    got = shifted.solve(matrix.clone(), right.clone(), SHIFTS, None if left is None else left.clone())
    assert ran == [f"_by_{way}"]
    # At the smallest shift the condition number is about 1e6: NumPy's own inverse is good to 1e-10.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max())


def test_a_matrix_of_zeros_leaves_the_shift(monkeypatch):
    monkeypatch.setattr(shifted, "_BAND_SIZE", 0)
    monkeypatch.setattr(shifted, "_WIDTHS", (16,))
    right = system(50, 3)[1]
    got = shifted.solve(torch.zeros(2, 50, 50, dtype=torch.float64), right.clone(), SHIFTS)
    torch.testing.assert_close(got, right[:, None] / SHIFTS[..., None, None], rtol=1e-14, atol=0)


def test_right_sides_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(shifted, "_WIDTHS", (16,))
    for size in (0, 10**9):
        monkeypatch.setattr(shifted, "_BAND_SIZE", size)
        matrix, right = system(64, 2)
        before = right.clone()
        shifted.solve(matrix, right, SHIFTS)
        assert torch.equal(right, before)


def test_bands_are_taken_for_large_matrices_and_many_shifts_on_a_cpu(monkeypatch):
    ran = []
    monkeypatch.setattr(shifted, "_by_band", lambda *a: ran.append("band"))
    monkeypatch.setattr(shifted, "_by_cholesky", lambda *a: ran.append("cholesky"))
    for size, shifts in ((300, 9), (300, 1), (100, 9)):
        shifted.solve(torch.empty(1, size, size), torch.empty(1, size, 1), torch.empty(1, shifts))
    assert ran == ["band", "cholesky", "cholesky"]
