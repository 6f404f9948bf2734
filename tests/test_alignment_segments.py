"""Segments that nobody labelled, and series of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignable import planted, spec

from tsprobe.alignment.segmenter import by_ruptures, segmenter_of
from tsprobe.alignment.series import HELD_OUT, lessons_of
from tsprobe.errors import MissingPackageError, UnknownNameError
from tsprobe.tasks import load_task


def test_borders_of_level_and_of_spread_are_found():
    rng = np.random.default_rng(0)
    level = np.repeat([0.0, 3.0], 100) + 0.3 * rng.standard_normal(200)
    spread = np.repeat([0.2, 2.0], [60, 140]) * rng.standard_normal(200)
    found = by_ruptures(torch.from_numpy(np.stack([level, spread, np.ones(200), rng.standard_normal(200)]))[:, None])
    for row, border in zip(found[:2], (100, 60), strict=True):
        assert row.unique().tolist() == [0, 1]
        assert abs(int(row.argmax()) - border) <= 8
    assert (found[2:] == 0).all()  # constant, and noise
    assert (by_ruptures(torch.randn(2, 1, 20)) == 0).all()


def test_series_of_tasks_are_learnt_on_with_found_segments():
    encoder, task = planted(), load_task("ucr/GunPoint")
    own = lessons_of(encoder, [task.train], spec(locality_from="ruptures"), segments=True)
    lesson = own.lesson(0, 8)
    assert lesson.segments.shape == (8, 150)
    assert torch.equal(lesson.segments, by_ruptures(lesson.batch.values))
    learnt = {row for n in range(20) for row in own.lesson(n, 8).rows.tolist()}
    assert not learnt & {row for n in range(20) for row in own.lesson(HELD_OUT + n, 8).rows.tolist()}


def test_generated_series_are_segmented_too():
    pair = [lessons_of(planted(), [], spec(locality_from=name), segments=True) for name in ("", "ruptures")]
    assert pair[0].lesson(0, 4).segments is None
    assert pair[1].lesson(0, 4).segments is not None
    assert torch.equal(pair[0].lesson(1, 4).segments, pair[1].lesson(1, 4).segments)  # these are known


def test_what_is_no_segmenter_is_refused(monkeypatch):
    with pytest.raises(UnknownNameError, match="ruptures"):
        segmenter_of("rupture")
    monkeypatch.setitem(__import__("sys").modules, "ruptures", None)
    with pytest.raises(MissingPackageError, match="ruptures"):
        segmenter_of("ruptures")
