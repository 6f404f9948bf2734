"""What a video run leaves: the tuned towers, `captions.jsonl` with every source, `run.json`, and a table to read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.files import replace_text
from tsprobe.pretraining.record import write_run
from vision.engine.quality import PARTS, quality
from vision.models import MODEL_TYPE
from vision.pretraining.train import PACKAGES, write_half
from vision.pretraining.video.spec import MERGED

if TYPE_CHECKING:
    from vision.pretraining.video.run import VideoRun

CAPTIONS = "captions.jsonl"
NOTE = (
    "The embedding of a clip is the mean of those of its frames: frames in any order give the same one, so a clip and "
    "the same clip backwards, whose captions say opposite motions, cannot be told apart. direction_* is the share of "
    "clips that lie nearer to their caption than to the one with every motion turned round: 0.5 is a guess. What is "
    "above it does not come from the order of frames."
)


def write_weights(run: VideoRun, folder: Path) -> None:
    """Half precision on disk; the towers themselves take the rounded weights."""
    tuned = run.tuned
    write_half(tuned.tower, folder / "model.safetensors")
    write_half(tuned.text, folder / "text.safetensors", {"scale": tuned.log_scale.detach().exp().cpu()})
    clips = f"{run.spec.clips.unlabelled} generated clips with captions of the video engine"
    config = {
        **run.start.config, "model_type": MODEL_TYPE, "objective": "contrastive",
        "tower": asdict(tuned.tower.shape), "text": asdict(tuned.text.shape),
        "vocabulary": tuned.text.vocabulary.words,
        "pretrained_on": f"{run.start.config.get('pretrained_on', 'not declared')}; then {clips}",
    }  # fmt: skip
    replace_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def qualities(run: VideoRun) -> dict[str, dict[str, float]]:
    """How true each source is of the unlabelled clips; empty until all of them are described."""
    clips = run.material.unlabelled
    if len(run.written["clip"]) < clips.n:
        return {}
    return {source: quality(said, clips.truth) for source, said in run.sources().items()}


def describe(run: VideoRun, folder: Path) -> dict[str, Any]:
    """Write `run.json`, and `captions.jsonl` when there are captions, and give what `run.json` says."""
    found = qualities(run)
    if found:
        replace_text(folder / CAPTIONS, _captions(run))
    return write_run(run, folder, PACKAGES, {
        "objective": "contrastive",
        "images": run.record.series,
        "parameters": sum(p.numel() for p in run.tuned.tower.parameters()),
        "parameters_captioner": sum(p.numel() for p in run.captioner.parameters()),
        "scenes": run.material.pool.mark,
        "mark": run.mark,
        "retrieval": run.measured,
        "captions": found,
        "note": NOTE,
    })  # fmt: skip


def _captions(run: VideoRun) -> str:
    sources = run.sources()
    rows = [
        {
            "clip": i, "captioner": sources["clip"][i], "frames": run.written["frames"][i],
            "title": sources["metadata"][i], "merged": sources[MERGED][i], "exact": sources["exact"][i],
        }
        for i in range(run.material.unlabelled.n)
    ]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def report(run: VideoRun) -> str:
    """Retrieval of each tower, and how true each source of captions is, as lines of text."""
    held = len(run.looks.captions), run.material.held.n
    names = ("pictures_captions", "pictures_seen", "clips_captions", "clips_seen")
    heads = ("picture to text", "text to picture", "clip to text", "text to clip")
    lines = [f"Retrieval among {held[0]} held-out pictures and {held[1]} clips, R@1 / R@5 in percent"]
    lines.append(f"{'':10}" + "".join(f"{head:>17}" for head in heads) + "   direction sideways, in depth")
    for when, found in run.measured.items():
        cells = "".join(f"{100 * found[f'{n}_r1']:>10.1f} / {100 * found[f'{n}_r5']:4.1f}" for n in names)
        told = ", ".join(f"{100 * value:.0f}" for name, value in found.items() if name.startswith("direction"))
        lines.append(f"{when:10}{cells}   {told}")
    lines.append(f"Captions of {run.material.unlabelled.n} clips: percent that say it rightly")
    lines.append(f"{'':10}" + "".join(f"{part:>10}" for part in (*PARTS, "all", "said")))
    for source, found in qualities(run).items():
        lines.append(f"{source:10}" + "".join(f"{100 * found[part]:>10.1f}" for part in (*PARTS, "all", "said")))
    return "\n".join(lines)
