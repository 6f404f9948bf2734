"""A second writing of PE's vision tower (arXiv 2504.13181 §2.1, table 17), under Meta's names of weights.

Rotations are complex numbers here, the attention is spelled out, and nothing is shared with timm or with vision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Shape:
    width: int = 32
    depth: int = 3
    heads: int = 2
    hidden: int = 128
    patch: int = 16
    grid: int = 4
    cls: bool = True
    norm: bool = True
    pool: bool = True
    project: int | None = 24
    scale: bool = False

    @property
    def size(self):
        return self.patch * self.grid


def random_weights(shape, seed=0):
    """A state dict in Meta's names, with no weight that is zero or one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, about=0.0, spread=0.2):
        return about + spread * torch.randn(*size, generator=generator)

    def norm(name):
        return {f"{name}.weight": draw(d, about=1.0), f"{name}.bias": draw(d)}

    def mlp(name, hidden):
        return {
            f"{name}.c_fc.weight": draw(hidden, d),
            f"{name}.c_fc.bias": draw(hidden),
            f"{name}.c_proj.weight": draw(d, hidden, spread=0.1),
            f"{name}.c_proj.bias": draw(d),
        }

    def attention(name):
        return {
            f"{name}.in_proj_weight": draw(3 * d, d),
            f"{name}.in_proj_bias": draw(3 * d),
            f"{name}.out_proj.weight": draw(d, d),
            f"{name}.out_proj.bias": draw(d),
        }

    d = shape.width
    state = {"conv1.weight": draw(d, 3, shape.patch, shape.patch, spread=0.05)}
    state["positional_embedding"] = draw(shape.cls + shape.grid**2, d, spread=0.5)
    if shape.cls:
        state["class_embedding"] = draw(d)
    state |= norm("ln_pre")
    for i in range(shape.depth):
        at = f"transformer.resblocks.{i}"
        state |= norm(f"{at}.ln_1") | attention(f"{at}.attn") | norm(f"{at}.ln_2") | mlp(f"{at}.mlp", shape.hidden)
        if shape.scale:
            state |= {f"{at}.ls_{j}.gamma": draw(d, about=0.5) for j in (1, 2)}
    if shape.norm:
        state |= norm("ln_post")
    if shape.pool:
        state |= {"attn_pool.probe": draw(1, 1, d, spread=1.0)} | attention("attn_pool.attn")
        state |= norm("attn_pool.layernorm") | mlp("attn_pool.mlp", 4 * d)
    if shape.project:
        state["proj"] = draw(d, shape.project)
    return state


def layers(state, pixels, shape):
    """Every layer of normalised pixels `[B, 3, H, W]`, in float64."""
    w = {name: tensor.double() for name, tensor in state.items()}
    x = F.conv2d(pixels.double(), w["conv1.weight"], stride=shape.patch)  # [B, D, rows, columns]
    rows, columns = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    if shape.cls:
        x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1)
    x = x + _positions(w["positional_embedding"], rows, columns, shape)
    x = _norm(x, w, "ln_pre")
    turn = _turn(rows, columns, shape)
    found = {"embedding": x}
    for i in range(shape.depth):
        at = f"transformer.resblocks.{i}"
        inner = _norm(x, w, f"{at}.ln_1")
        x = x + w.get(f"{at}.ls_1.gamma", 1) * _attend(inner, inner, w, f"{at}.attn", shape.heads, turn)
        x = x + w.get(f"{at}.ls_2.gamma", 1) * _mlp(_norm(x, w, f"{at}.ln_2"), w, f"{at}.mlp")
        found[f"block.{i}"] = x
    if shape.norm:
        found["norm"] = x = _norm(x, w, "ln_post")
    if shape.pool:
        pooled = _attend(w["attn_pool.probe"].expand(len(x), -1, -1), x, w, "attn_pool.attn", 8, None)
        found["pool"] = x = pooled + _mlp(_norm(pooled, w, "attn_pool.layernorm"), w, "attn_pool.mlp")
    if shape.project:
        found["projection"] = x @ w["proj"]
    return found


def _positions(table, rows, columns, shape):
    special, grid = table[: int(shape.cls)], table[int(shape.cls) :]
    if (rows, columns) != (shape.grid, shape.grid):
        grid = _resize(_resize(grid.reshape(shape.grid, shape.grid, -1), rows).transpose(0, 1), columns)
        grid = grid.transpose(0, 1).flatten(0, 1)
    return torch.cat([special, grid])


def _resize(lines, count):
    """Linear interpolation along the first axis, between centres, flat beyond them."""
    at = ((torch.arange(count, dtype=torch.float64) + 0.5) * len(lines) / count - 0.5).clamp(0, len(lines) - 1)
    below = at.floor().long()
    above, part = (below + 1).clamp(max=len(lines) - 1), (at - below)[:, None, None]
    return lines[below] * (1 - part) + lines[above] * part


def _turn(rows, columns, shape):
    """A unit complex number for each token and each pair of features: the column's angles first, then the row's."""
    quarter = shape.width // shape.heads // 4
    turns = [torch.ones(2 * quarter, dtype=torch.complex128)] if shape.cls else []
    for row in range(rows):
        for column in range(columns):
            places = [p + int(shape.cls) for p in (column, row)]
            angles = [p * 10_000.0 ** (-2 * k / (2 * quarter)) for p in places for k in range(quarter)]
            turns.append(
                torch.polar(torch.ones(2 * quarter, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
            )
    return torch.stack(turns)


def _attend(q, x, w, at, heads, turn):
    parts = zip(w[f"{at}.in_proj_weight"].chunk(3), w[f"{at}.in_proj_bias"].chunk(3), (q, x, x), strict=True)
    q, k, v = ((y @ a.T + b).unflatten(-1, (heads, -1)).transpose(1, 2) for a, b, y in parts)
    if turn is not None:
        q, k = (torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * turn).flatten(-2) for y in (q, k))
    mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ w[f"{at}.out_proj.weight"].T + w[f"{at}.out_proj.bias"]


def _norm(x, w, at):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{at}.weight"] + w[f"{at}.bias"]


def _mlp(x, w, at):
    h = x @ w[f"{at}.c_fc.weight"].T + w[f"{at}.c_fc.bias"]
    h = h * (1 + torch.erf(h / 2**0.5)) / 2
    return h @ w[f"{at}.c_proj.weight"].T + w[f"{at}.c_proj.bias"]
