"""Bad input, through Python and through the command line: one clear error, or a stated handling."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from planted import Planted, planted_encoder

import tsprobe as tp
from tsprobe.cli import main
from tsprobe.errors import MissingPackageError, TsprobeError

ENCODER = {"source": "python:planted:build", "name": "planted", "blocks": "blocks.*", "prepare": "bs", "tokens": 8}
QUICK = {"controls": (), "resamples": 100}


def good(n: int = 24, steps: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.standard_normal((n, 1, steps))
    x[:, 0, ::8] += 2 * y[:, None]
    return x, y


def write_ts(folder: Path, name: str, split: str, series: list[np.ndarray], labels: list[str]) -> None:
    """A `.ts` file as the archives write them; `?` is a missing value."""
    lines = [
        f"@problemName {name}",
        "@timeStamps false",
        "@missing true",
        f"@univariate {str(len(series[0]) == 1).lower()}",
    ]
    lines += ["@equalLength false", f"@classLabel true {' '.join(sorted(set(labels)))}", "@data"]
    for x, label in zip(series, labels, strict=True):
        channels = (",".join("?" if np.isnan(v) else f"{v:.6g}" for v in channel) for channel in x)
        lines.append(":".join([*channels, label]))
    (folder / f"{name}_{split}.ts").write_text("\n".join(lines) + "\n")


def spoil_nothing(x: list[np.ndarray], y: list[str]) -> None:
    pass


def one_class(x: list[np.ndarray], y: list[str]) -> None:
    y[:] = ["a"] * len(y)


def empty(x: list[np.ndarray], y: list[str]) -> None:
    del x[1:], y[1:]
    x[0] = x[0][:, :0]


def too_short(x: list[np.ndarray], y: list[str]) -> None:
    x[5] = x[5][:, :4]


def more_channels(x: list[np.ndarray], y: list[str]) -> None:
    x[3] = np.repeat(x[3], 2, axis=0)


REFUSED: dict[str, tuple[Callable[[list[np.ndarray], list[str]], None], str]] = {
    "one class": (one_class, "only one class"),
    "empty series": (empty, "line 8, channel 1: '' is not a number"),
    "channels differ": (more_channels, "channels|dimensions"),
}


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Write a data set whose training part a function has spoilt; gives the folder of its two files."""

    def write(spoil: Callable[[list[np.ndarray], list[str]], None]) -> Path:
        folder = tmp_path / "Mine"
        folder.mkdir()
        for seed, split in enumerate(("TRAIN", "TEST")):
            x, y = good(seed=seed)
            series, labels = list(x), ["b" if label else "a" for label in y]
            if split == "TRAIN":
                spoil(series, labels)
            write_ts(folder, "Mine", split, series, labels)
        return folder

    return write


def command(folder: Path, data: Path | str, *extra: str) -> tuple[int, Path]:
    """Run a study of the planted encoder on the data by the command line; its exit code and output folder."""
    config = folder / "config.yaml"
    settings = {
        "encoders": [ENCODER],
        "tasks": [str(data)],
        "tracking": {"enabled": False},
        "controls": [],
        "resamples": 100,
    }
    config.write_text(yaml.safe_dump(settings))
    sys.argv = ["tsprobe", "run", str(config), "--out", str(folder / "out"), *extra]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0), folder / "out"
    return 0, folder / "out"


def test_the_good_data_run_both_ways(files: Callable[..., Path], tmp_path: Path) -> None:
    folder = files(spoil_nothing)
    code, out = command(tmp_path, folder)
    assert code == 0
    by_command = pd.read_csv(out / "verdicts.csv")
    by_python = tp.probe(planted_encoder(2), tp.load_task(folder), **QUICK).verdicts
    assert by_command.chosen_score[0] == pytest.approx(by_python.chosen_score[0])
    assert by_command.chosen_score[0] > 0.8


@pytest.mark.parametrize("case", REFUSED)
def test_refused_data_are_one_line(
    case: str, files: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = REFUSED[case]
    folder = files(spoil)
    with pytest.raises(TsprobeError, match=message):
        tp.load_task(folder)
    code, _ = command(tmp_path, folder)
    error = capsys.readouterr().err
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


@pytest.mark.parametrize("damage", ["garbage", "cut off", "absent"])
def test_corrupt_files_are_named(
    damage: str, files: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files(spoil_nothing)
    path = folder / "Mine_TRAIN.ts"
    text = path.read_text()
    if damage == "garbage":
        path.write_bytes(text.encode().replace(b"@data\n", b"@data\n\xff\xfe\x00nonsense\n"))
    elif damage == "cut off":
        path.write_text(text[: text.index("@data")])
    else:
        path.unlink()
    with pytest.raises(TsprobeError, match="Mine"):
        tp.load_task(folder)
    code, _ = command(tmp_path, folder)
    error = capsys.readouterr().err
    assert code == 2
    assert "Mine" in error
    assert len(error.strip().splitlines()) == 1


def test_a_series_too_short_for_the_encoder_leaves_out_the_pair(
    files: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one pair of this study: nothing could be run, so the study is refused, with the reason."""
    folder = files(too_short)
    encoder = tp.load_encoder(Planted(2), blocks="blocks.*", prepare="bs", tokens=8, name="planted", min_length=8)
    with pytest.raises(TsprobeError, match="series 5 has 4 steps; planted needs at least 8"):
        tp.probe(encoder, tp.load_task(folder), **QUICK)
    code, _ = command(tmp_path, folder)
    assert code == 2
    assert "no encoder could be run on any task" in capsys.readouterr().err


def test_missing_values_are_handled_and_counted_or_refused(files: Callable[..., Path], tmp_path: Path) -> None:
    def holes(x: list[np.ndarray], y: list[str]) -> None:
        x[0][0, 3:5] = np.nan

    folder = files(holes)
    code, out = command(tmp_path, folder)
    assert code == 0
    assert '"missing_values": 2' in (out / "provenance.json").read_text()
    code, _ = command(tmp_path, folder, "--nan", "error")
    assert code == 2


@pytest.mark.parametrize("kind", ["constant", "ragged", "long", "huge"])
def test_odd_series_are_taken(kind: str) -> None:
    """Constant and huge values, ragged and long series give finite features of every layer."""
    x, y = good()
    series: list[np.ndarray] = list(x)
    if kind == "constant":
        series[0] = np.zeros_like(x[0])
        series[1] = np.full_like(x[1], 7.0)
    elif kind == "ragged":
        series = [s[:, : 16 + 8 * (i % 3)] for i, s in enumerate(series)]
    elif kind == "long":
        series = [np.tile(s, 80) for s in series]  # 2,560 steps: more than the context of fracast
    else:
        series[2] = series[2] * 1e30
    task = tp.Classification(kind, train=(series, y), test=(series, y))
    study = tp.probe("fracast", task, layers=("block.0",), **QUICK)
    assert not study.provenance["left_out"]
    assert study.scores.score.notna().all()
    assert set(study.scores.layer) == {"block.0", "norm"}


def test_a_missing_package_says_what_to_install(tmp_path: Path) -> None:
    """Chronos is hidden from a process of its own, as on a machine where the extra was not installed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    code = (
        "import sys; sys.modules['chronos'] = None; sys.argv = ['tsprobe', 'embed', 'chronos-bolt:./folder', 'x.npy', "
        "'--layer', 'norm', '--out', 'y.npy']; import numpy; numpy.save('x.npy', numpy.ones((2, 1, 32)));"
        "from tsprobe.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert 'pip install "tsprobe[models]"' in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert issubclass(MissingPackageError, ImportError)  # `except ImportError` works for those who write it


def test_unknown_names_suggest_near_ones() -> None:
    with pytest.raises(KeyError, match="did you mean 'fracast'"):
        tp.load_encoder("fracats")
    with pytest.raises(TsprobeError, match="did you mean 'ucr/GunPoint'"):
        tp.load_task("ucr/GunPiont")
