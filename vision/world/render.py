"""Pictures of plans: floor, wall and shadows, objects from the far to the near one, light, and the camera's faults.

An object is a flat outline with a rounded border, lit as a surface of that relief would be (Lambert); its depth is that
of its plane. Fog and perspective tell the depth of the floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vision.world import patterns, shapes
from vision.world.plan import MOST, Plan

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

_FOG = 0.06  # share of grey haze that is added for each unit of depth
_BEVEL = 0.5  # width of an object's rounded border, in units of its radius
_FLOOR_TONES = ((0.62, 0.42, 0.24), (0.30, 0.52, 0.18), (0.82, 0.72, 0.50), (0.58, 0.60, 0.66), (0.5, 0.5, 0.5))


def render(
    plan: Plan, size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "N 3 H W"], UInt8[np.ndarray, "N H W"], Float32[np.ndarray, "N H W"]]:
    """Pictures of `size` pixels a side, which object is seen at each pixel (k + 1, 0 for none), and depth.

    `rng` makes the noise of the camera.
    """
    across, down = _points(plan, size)
    colour, depth = _background(plan, across, down)
    instance = np.zeros(across.shape, np.uint8)
    order = np.argsort(-plan.z, axis=1, kind="stable")
    for rank in range(MOST):
        _paint(plan, order[:, rank], across, down, size, colour, depth, instance)
    picture = _camera(plan, colour, size, rng)
    shape = (plan.n, size, size)
    return picture.reshape(plan.n, 3, size, size), instance.reshape(shape), depth.reshape(shape)


def _points(plan: Plan, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels lie in the image before it is rolled: right and down, each `[N, H*W]`."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = (a.reshape(1, -1) for a in np.meshgrid(grid, grid))
    sin, cos = np.sin(plan.roll)[:, None], np.cos(plan.roll)[:, None]
    return 0.5 + cos * x + sin * y, 0.5 + cos * y - sin * x


def _background(plan: Plan, across: np.ndarray, down: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Three channels `[N, p]` each, and depth."""
    camera = plan.camera_x[:, None]
    z = plan.ground[:, None] / np.maximum(down - plan.horizon[:, None], 1e-3)
    is_floor = z < plan.wall_z[:, None]
    z = np.minimum(z, plan.wall_z[:, None])
    x = (across - 0.5) * z + camera  # in the world, on floor and wall alike
    height = (plan.horizon[:, None] - down) * z + plan.ground[:, None]  # above the floor, zero on it
    tint, accent = np.ones_like(z), np.zeros_like(z)
    for kind in range(len(_FLOOR_TONES)):
        rows = np.flatnonzero(plan.floor == kind)
        if len(rows):
            tint[rows], accent[rows] = _floor(kind, x[rows], z[rows], plan.phase[rows, :1])
        rows = np.flatnonzero(plan.wall == kind)
        if len(rows):
            bright, other = _wall(kind, x[rows], height[rows], plan.phase[rows, 1:])
            tint[rows] = np.where(is_floor[rows], tint[rows], bright)
            accent[rows] = np.where(is_floor[rows], accent[rows], other)
    tint = tint * _shadows(plan, x, z, is_floor)
    tones = np.array(_FLOOR_TONES, np.float32)[plan.floor] * plan.ground_tone
    lit = (plan.ambient + (1 - plan.ambient) * np.maximum(plan.light[:, 1] + 0.3, 0.25))[:, None]
    channels = []
    for c in range(3):
        base = np.where(is_floor, tones[:, c, None] * (0.55 + 0.45 * lit), plan.wall_tone[:, c, None])
        base = base * tint
        base += accent * (plan.wall_tone[:, (c + 1) % 3, None] - 0.4)
        channels.append(_foggy(base, z))
    return channels, z


def _foggy(colour: np.ndarray, z: np.ndarray) -> np.ndarray:
    share = np.minimum(_FOG * (z - 1), 0.5)
    return colour + share * (0.7 - colour)


def _floor(kind: int, x: np.ndarray, z: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness, and share of another colour, on floors."""
    fine = np.clip(2.2 / z - 0.3, 0.1, 1)  # far patterns fade before they are finer than pixels
    a, b = x + phase, z + phase
    none = np.zeros_like(x)
    if kind == 0:  # planks that lead away
        planks = patterns.cells(3 * a, none) - 0.5
        seam = np.abs(3 * a - np.round(3 * a)) < 0.06
        grain = np.sin(40 * a + 2 * np.sin(3 * b))
        return 1 + fine * (0.35 * planks - 0.4 * seam + 0.06 * grain), none
    if kind == 1:
        blades = patterns.cells(26 * a, 14 * b) - 0.5
        return 0.95 + 0.3 * (patterns.blotches(2 * a, 2 * b, phase) - 0.5) + fine * 0.5 * blades, none
    if kind == 2:
        return 1 + fine * (
            0.25 * (patterns.blotches(4 * a, 5 * b, phase) - 0.5) + 0.14 * patterns.cells(30 * a, 18 * b)
        ), none
    if kind == 3:
        return 0.85 + fine * 0.45 * (patterns.checks(1.2 * a, 1.2 * b, 6.0) - 0.5), none
    return 0.6 + 0.9 * patterns.cells(5 * a, 4 * b), 1.6 * (patterns.cells(5 * a + 0.5, 4 * b) - 0.5)


def _wall(kind: int, x: np.ndarray, height: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same on walls."""
    a, b = x + phase, height + phase
    none = np.zeros_like(x)
    if kind == 0:
        return 1 - 0.12 * height, none
    if kind == 1:
        return 0.8 + 0.3 * patterns.waves(0.8 * a), none
    if kind == 2:
        row = np.floor(3 * b)
        seam = (np.abs(3 * b - np.round(3 * b)) < 0.12) | (
            np.abs(1.5 * a + 0.5 * row - np.round(1.5 * a + 0.5 * row)) < 0.08
        )
        return 1 + 0.25 * (patterns.cells(1.5 * a + 0.5 * row + 0.5, 3 * b) - 0.5) - 0.35 * seam, none
    if kind == 3:
        return 1 + 0.45 * (patterns.blotches(0.8 * a, 1.6 * b, phase) - 0.5), none
    return 0.6 + 0.9 * patterns.cells(2 * a, 2 * b), 1.6 * (patterns.cells(2 * a + 0.5, 2 * b) - 0.5)


def _shadows(plan: Plan, x: np.ndarray, z: np.ndarray, is_floor: np.ndarray) -> np.ndarray:
    """Brightness that shadows leave: an ellipse at each object's foot that leans away from the light."""
    left = np.ones_like(z)
    lean = -0.9 * plan.light[:, 0] / np.maximum(np.hypot(plan.light[:, 0], plan.light[:, 1]), 0.2)
    for k in range(MOST):
        radius = plan.radius[:, k, None]
        off = (z - plan.z[:, k, None]) / (0.6 * radius)
        aside = (x - plan.x[:, k, None] - lean[:, None] * radius) / (1.2 * radius)
        share = np.clip(1.6 * (1 - off * off - aside * aside), 0, 1) * (is_floor & (plan.shape[:, k, None] >= 0))
        left *= 1 - 0.9 * (1 - plan.ambient[:, None]) * share
    return left


def _paint(
    plan: Plan,
    slot: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    size: int,
    colour: list[np.ndarray],
    depth: np.ndarray,
    instance: np.ndarray,
) -> None:
    """One object of each scene that has it, over what is there."""
    for k in range(MOST):
        rows = np.flatnonzero((slot == k) & (plan.shape[:, k] >= 0))
        if not len(rows):
            continue
        part = plan.take(rows)
        u, v = part.local(k, across[rows], down[rows])
        outside = shapes.distance(part.shape[:, k], u, v)
        radius = (part.radius / part.z)[:, k, None]
        cover = np.clip(0.5 - outside * radius * size, 0, 1)
        shade = _lit(part, outside, radius, size)
        mix = _texture(part, k, u * radius, v * radius)
        z = part.z[:, k, None]
        for c in range(3):
            tone = part.tone[:, k, c, None] + mix * (part.second - part.tone)[:, k, c, None]
            seen = _foggy(tone * shade, z)
            colour[c][rows] += cover * (seen - colour[c][rows])
        solid = cover >= 0.5
        depth[rows] = np.where(solid, z, depth[rows])
        instance[rows] = np.where(solid, k + 1, instance[rows])


def _texture(plan: Plan, k: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    periods, angle, p, q = (plan.pattern[:, k, i, None] for i in range(4))
    sin, cos = np.sin(angle), np.cos(angle)
    return patterns.texture(plan.texture[:, k], periods * (cos * u + sin * v) + p, periods * (cos * v - sin * u) + q)


def _lit(plan: Plan, outside: np.ndarray, radius: np.ndarray, size: int) -> np.ndarray:
    """Brightness of a relief that is flat inside and falls off like a quarter circle at the border."""
    rise = np.clip(-outside / _BEVEL, 0, 1)
    height = (_BEVEL * np.sqrt(rise * (2 - rise))).reshape(-1, size, size)
    step = 1 / (radius[:, :, None] * size)  # of a pixel, in units of the radius
    right, low = np.zeros_like(height), np.zeros_like(height)
    right[:, :, 1:-1] = (height[:, :, 2:] - height[:, :, :-2]) / (2 * step)
    low[:, 1:-1] = (height[:, 2:] - height[:, :-2]) / (2 * step)
    light = plan.light[:, :, None, None]
    toward = (light[:, 2] - light[:, 0] * right + light[:, 1] * low) / np.sqrt(1 + right * right + low * low)
    ambient = plan.ambient[:, None, None]
    return (ambient + 1.25 * (1 - ambient) * np.maximum(toward, 0)).reshape(outside.shape)


def _camera(plan: Plan, colour: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """Colour gains, darker corners, blur, noise; 8 bits."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    corner = (grid[:, None] ** 2 + grid**2).reshape(1, -1) * 2
    dark = 1 - plan.vignette[:, None] * corner
    out = np.stack([c * dark * plan.gains[:, i, None] for i, c in enumerate(colour)], 1)
    if plan.blur.any():
        from scipy.ndimage import gaussian_filter

        for row, sigma in zip(out.reshape(-1, 3, size, size), plan.blur * size, strict=True):
            row[:] = gaussian_filter(row, (0, sigma, sigma))
    out += plan.noise[:, None, None] * rng.standard_normal(out.shape, np.float32)
    return (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8)
