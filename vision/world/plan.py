"""What a scene holds, before it is drawn: objects on a floor in front of a wall, light, and camera.

Lengths are shares of the image's side unless they are in the world: there the floor is a plane, the camera looks along
it, and depth z is counted from the camera in units of the distance at which the floor enters the image from below. A
point of the floor at z appears at the height `horizon + ground / z` from the top; an object of radius r at the depth z
has the radius `r * z` in the world, faces the camera, and stands on the floor.

| part | values |
|---|---|
| objects | 1 to 4, equally often; shape, colour, texture and size (small [0.10, 0.135], large [0.19, 0.25]) any |
| depth | objects log-uniform in [1, 3.6], neighbours in depth at least 8 % apart; wall [4.5, 7] |
| places | uniform where the object is in the image and about 35 % of it or more is not hidden by others |
| surface | hue off by up to ±0.04, second tone lighter or darker, 9 to 16 periods of the pattern to a side, any phase |
| light | from the left or the right, 15° to 65° above the horizontal of the image, ambient share [0.3, 0.55] |
| camera | horizon [0.15, 0.4], roll ±5°, colour gains [0.85, 1.15], exposure [0.75, 1.2], noise up to 0.03 |
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vision.world import shapes
from vision.world.patterns import TEXTURES
from vision.world.shapes import SHAPES

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float32, Int64

Shift = Literal["texture", "light", "palette", "blur", "background"]
SHIFTS: tuple[Shift, ...] = ("texture", "light", "palette", "blur", "background")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.95, 0.48, 0.06),
    "yellow": (0.94, 0.86, 0.12),
    "green": (0.14, 0.62, 0.18),
    "cyan": (0.10, 0.74, 0.80),
    "blue": (0.12, 0.24, 0.86),
    "purple": (0.50, 0.14, 0.72),
    "pink": (0.96, 0.52, 0.72),
}
SIZES = ("small", "large")
FLOORS = ("wooden", "grassy", "sandy", "tiled")  # one more, of coloured cells, for shifted backgrounds alone
WALLS = ("plain", "striped", "brick", "cloudy")  # likewise
MOST = 4  # objects
_RADII = ((0.10, 0.135), (0.19, 0.25))
_NEAR, _FAR = 1.0, 3.6
_GRID = 32  # pixels a side, for what is hidden
VISIBLE = 0.35  # share of an object that others leave free


@dataclass(frozen=True, eq=False)
class Plan:
    """N scenes of at most K = 4 objects; an object that is not there has shape -1.

    Attributes are numbers of `SHAPES`, `COLOURS`, `TEXTURES`, `SIZES`, `FLOORS` and `WALLS`.
    """

    shape: Int64[np.ndarray, "N K"]
    colour: Int64[np.ndarray, "N K"]
    texture: Int64[np.ndarray, "N K"]
    size: Int64[np.ndarray, "N K"]
    radius: Float32[np.ndarray, "N K"]  # in the world
    x: Float32[np.ndarray, "N K"]  # in the world, from the camera's axis at its first place
    z: Float32[np.ndarray, "N K"]
    turn: Float32[np.ndarray, "N K"]  # radians, of the shape
    stretch: Float32[np.ndarray, "N K"]  # width over height
    tone: Float32[np.ndarray, "N K 3"]
    second: Float32[np.ndarray, "N K 3"]
    pattern: Float32[np.ndarray, "N K 4"]  # periods to an image's side, angle, two phases
    floor: Int64[np.ndarray, " N"]
    wall: Int64[np.ndarray, " N"]
    ground_tone: Float32[np.ndarray, "N 3"]
    wall_tone: Float32[np.ndarray, "N 3"]
    phase: Float32[np.ndarray, "N 2"]  # of floor and wall
    horizon: Float32[np.ndarray, " N"]
    ground: Float32[np.ndarray, " N"]
    wall_z: Float32[np.ndarray, " N"]
    roll: Float32[np.ndarray, " N"]
    camera_x: Float32[np.ndarray, " N"]
    light: Float32[np.ndarray, "N 3"]  # unit vector to the light: right, up, to the viewer
    ambient: Float32[np.ndarray, " N"]
    gains: Float32[np.ndarray, "N 3"]
    noise: Float32[np.ndarray, " N"]
    vignette: Float32[np.ndarray, " N"]
    blur: Float32[np.ndarray, " N"]  # standard deviation, a share of the side

    def take(self, rows: np.ndarray) -> Self:
        """The scenes of these rows; a row may be taken more than once."""
        return dataclasses.replace(self, **{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    @property
    def n(self) -> int:
        return len(self.floor)

    def screen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre (right, down) and radius of each object in the image before it is rolled, each `[N, K]`."""
        radius = self.radius / self.z
        across = 0.5 + (self.x - self.camera_x[:, None]) / self.z
        down = self.horizon[:, None] + self.ground[:, None] / self.z - 0.88 * radius
        return across, down, radius

    def local(self, k: int, across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points `[N, p]` of the unrolled image as seen from object k: u to its right, v up, in units of its radius."""
        cx, cy, radius = (a[:, k : k + 1] for a in self.screen())
        u, v = (across - cx) / radius, (cy - down) / radius
        sin, cos, stretch = (a[:, k : k + 1] for a in (np.sin(self.turn), np.cos(self.turn), np.sqrt(self.stretch)))
        return (cos * u + sin * v) / stretch, (cos * v - sin * u) * stretch


def draw(n: int, rng: np.random.Generator, objects: tuple[int, int], shift: Shift | None) -> Plan:
    """n scenes with a number of objects in this range, both ends included."""
    plan = _drawn(n, rng, objects, shift)
    while len(bad := np.flatnonzero(_crowded(plan))):
        again = _drawn(len(bad), rng, objects, shift)
        # the same number of objects as before: crowded scenes must not become rare
        count = (plan.shape[bad] >= 0).sum(1)
        again = dataclasses.replace(again, **_placed(again, count, rng))
        for field in dataclasses.fields(plan):
            getattr(plan, field.name)[bad] = getattr(again, field.name)
    return plan


def _drawn(n: int, rng: np.random.Generator, objects: tuple[int, int], shift: Shift | None) -> Plan:
    def uniform(low: float, high: float, *size: int) -> np.ndarray:
        return rng.uniform(low, high, (n, *size)).astype(np.float32)

    colour = rng.integers(len(COLOURS), size=(n, MOST))
    tone = np.clip(np.array(list(COLOURS.values()), np.float32)[colour] + uniform(-0.04, 0.04, MOST, 3), 0, 1)
    lighter = rng.random((n, MOST, 1)) < 0.5
    second = np.where(lighter, 0.35 * tone + 0.65, 0.3 * tone).astype(np.float32)
    periods = uniform(9, 16, MOST)
    if shift == "texture":  # coarser or finer, and of two colours
        periods = np.where(rng.random((n, MOST)) < 0.5, uniform(5, 7, MOST), uniform(18, 22, MOST)).astype(np.float32)
        second = (0.5 * tone[..., ::-1] + 0.5 * uniform(0, 1, MOST, 3)).astype(np.float32)
    horizon, noise, gains = uniform(0.15, 0.4), uniform(0, 0.03), uniform(0.85, 1.15, 3) * uniform(0.75, 1.2, 1)
    side = np.where(rng.random(n) < 0.5, -1, 1)
    up, out, ambient = uniform(15, 65), uniform(35, 65), uniform(0.3, 0.55)
    vignette, blur = uniform(0, 0.3), np.zeros(n, np.float32)
    floor, wall = rng.integers(len(FLOORS), size=n), rng.integers(len(WALLS), size=n)
    ground_tone, wall_tone = uniform(0.85, 1.15, 3), uniform(0.35, 0.9, 3)
    if shift == "light":  # from below, hard and dim
        up, out, ambient, vignette = -uniform(20, 70), uniform(15, 30), uniform(0.12, 0.25), uniform(0.5, 0.8)
    elif shift == "palette":
        gains = np.exp(uniform(-0.6, 0.45, 3)).astype(np.float32)
    elif shift == "blur":
        blur, noise = uniform(0.012, 0.028), uniform(0.04, 0.09)
    elif shift == "background":
        floor, wall = np.full(n, len(FLOORS)), np.full(n, len(WALLS))
    up, out = np.radians(up), np.radians(out)
    light = np.stack([side * np.cos(up) * np.cos(out), np.sin(up) * np.cos(out), np.sin(out)], 1).astype(np.float32)
    blank = np.zeros((n, MOST), np.float32)
    plan = Plan(
        shape=rng.integers(len(SHAPES), size=(n, MOST)),
        colour=colour,
        texture=rng.integers(len(TEXTURES), size=(n, MOST)),
        size=rng.integers(2, size=(n, MOST)),
        radius=blank,
        x=blank,
        z=blank,
        turn=np.radians(uniform(-12, 12, MOST)),
        stretch=np.exp(uniform(-0.14, 0.14, MOST)),
        tone=tone,
        second=second,
        pattern=np.stack([periods, uniform(0, 2 * np.pi, MOST), uniform(0, 1, MOST), uniform(0, 1, MOST)], 2),
        floor=floor,
        wall=wall,
        ground_tone=ground_tone,
        wall_tone=wall_tone,
        phase=uniform(0, 10, 2),
        horizon=horizon,
        ground=uniform(0.9, 1.0) - horizon,
        wall_z=uniform(4.5, 7),
        roll=np.radians(uniform(-5, 5)),
        camera_x=np.zeros(n, np.float32),
        light=light,
        ambient=ambient,
        gains=gains,
        noise=noise,
        vignette=vignette,
        blur=blur,
    )
    return dataclasses.replace(plan, **_placed(plan, rng.integers(objects[0], objects[1] + 1, size=n), rng))


_TRIES = 24


def _placed(plan: Plan, count: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Shapes, radii and places of so many objects a scene: each at the first of some tries that keeps clear of others.

    Where none does, the last one is taken; `_crowded` finds such scenes.
    """
    n = plan.n
    shape = np.where(np.arange(MOST) < count[:, None], rng.integers(len(SHAPES), size=(n, MOST)), -1)
    low, high = np.array(_RADII, np.float32)[plan.size].transpose(2, 0, 1)
    radius = low + (high - low) * rng.random((n, MOST), np.float32)
    z, cx, cy = (np.zeros((n, MOST), np.float32) for _ in range(3))
    for k in range(MOST):
        r = radius[:, k, None]
        tried_z = np.exp(rng.uniform(np.log(_NEAR), np.log(_FAR), (n, _TRIES)))
        across = rng.uniform(0.8 * r + 0.02, 0.98 - 0.8 * r, (n, _TRIES))
        down = plan.horizon[:, None] + plan.ground[:, None] / tried_z - 0.88 * r
        fine = down > 0.8 * r
        for j in range(k):
            front = np.where(tried_z < z[:, j, None], r, radius[:, j, None])
            apart = np.hypot(across - cx[:, j, None], down - cy[:, j, None])
            back = r + radius[:, j, None] - front
            clear = (apart > 0.9 * front + 0.15 * back) & (np.abs(np.log(tried_z / z[:, j, None])) > 0.08)
            fine &= clear | (shape[:, j, None] < 0)
        at = np.where(fine.any(1), fine.argmax(1), _TRIES - 1)[:, None]
        cx[:, k], cy[:, k], z[:, k] = (np.take_along_axis(a, at, 1)[:, 0] for a in (across, down, tried_z))
    return {"shape": shape, "radius": radius * z, "x": ((cx - 0.5) * z).astype(np.float32), "z": z}


def _crowded(plan: Plan) -> np.ndarray:
    """Scenes where objects hide too much of another, stand too near another in depth, or leave the image: [N] bool."""
    there = plan.shape >= 0
    grid = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID
    across, down = (a.reshape(1, -1) for a in np.meshgrid(grid, grid))
    covers = np.zeros((plan.n, MOST, _GRID**2), bool)
    for k in range(MOST):
        covers[:, k] = shapes.distance(plan.shape[:, k], *plan.local(k, across, down)) < 0
    nearer = plan.z[:, :, None] > plan.z[:, None, :]  # [N, k, j]: j is in front of k
    hidden = np.einsum("nkj,njp->nkp", nearer.astype(np.float32), covers.astype(np.float32)) > 0
    seen = (covers & ~hidden).sum(2) / np.maximum(covers.sum(2), 1)
    _, cy, radius = plan.screen()
    gap = np.abs(np.log(np.where(there, plan.z, 1)[:, :, None] / np.where(there, plan.z, 1)[:, None, :]))
    gap += np.where(there[:, :, None] & there[:, None, :] & ~np.eye(MOST, dtype=bool), 0, 9)
    return ((there & ((seen < VISIBLE) | (cy < 0.8 * radius))).any(1)) | (gap < 0.08).any((1, 2))
