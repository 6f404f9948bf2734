"""Scores that papers report, of the best layer and of the last, with how far ours may be off.

Layers are counted from 1, as the papers do; `None` where it is not reported. The same protocol should be
within a point; ours squashes pictures, and on ADE20k trains for fewer steps: two points on DAVIS, three on ADE20k.

Sources: PE table 13 (arXiv 2504.13181v2, also as table 13 of the NeurIPS version), and table 37 there for the distilled
models.
"""

from tsprobe.anchors import Anchor

_DAVIS, _ADE = ("davis", "J&F", 2.0), ("ade20k", "mIoU", 3.0)
_T13, _T37 = "PE (arXiv 2504.13181), table 13", "PE, NeurIPS version, table 37"


def _pair(
    encoder: str, pattern: str, layers: int, source: str, davis: tuple[float, float, int], ade: tuple[float, float, int]
) -> list[Anchor]:
    return [
        Anchor(encoder, pattern, data, metric, best, last, layer, layers, tolerance, source)
        for (data, metric, tolerance), (best, last, layer) in ((_DAVIS, davis), (_ADE, ade))
    ]


ANCHORS: tuple[Anchor, ...] = (
    *_pair("PE spatial T/16", r"pe[-_]spatial[-_](t16|tiny)", 12, _T37, (55.0, 54.6, 11), (27.6, 27.6, 12)),
    *_pair("PE spatial S/16", r"pe[-_]spatial[-_](s16|small)", 12, _T37, (57.5, 57.5, 12), (37.5, 37.5, 12)),
    *_pair("PE spatial B/16", r"pe[-_]spatial[-_](b16|base)", 12, _T37, (58.9, 58.4, 11), (44.4, 44.4, 12)),
    *_pair("PE spatial L/14", r"pe[-_]spatial[-_](l14|large)", 24, _T37, (60.6, 60.1, 23), (48.1, 48.1, 24)),
    *_pair("PE spatial G/14", r"pe[-_]spatial[-_](g14|gigantic)", 50, _T13, (61.5, 61.5, 50), (49.3, 48.9, 49)),
    *_pair("PE core G/14", r"pe[-_]core[-_](g14|gigantic)", 50, _T13, (56.8, 42.8, 32), (41.5, 38.6, 44)),
    *_pair("DINOv2 L/14", r"vit_large_patch14(_reg4)?_dinov2", 24, _T13, (58.7, 58.2, 23), (47.3, 47.3, 24)),
    *_pair("DINOv2 g/14", r"vit_giant_patch14(_reg4)?_dinov2", 40, _T13, (58.5, 58.5, 40), (48.7, 48.4, 37)),
    *_pair("OpenAI CLIP L/14", r"vit_large_patch14_clip.*openai", 24, _T13, (39.4, 37.1, 17), (39.4, 38.3, 19)),
    *_pair("AIMv2 3B", r"aimv2_3b", 24, _T13, (54.7, 29.3, 13), (41.6, 31.9, 20)),
    *_pair("SigLIP so400m", r"vit_so400m.*siglip(?!.*v2)", 27, _T13, (48.7, 36.3, 16), (40.1, 38.3, 22)),
    *_pair("SigLIP 2 so400m", r"vit_so400m.*siglip.*v2", 27, _T13, (51.4, 45.3, 15), (44.0, 42.9, 24)),
    *_pair("SigLIP 2 g", r"vit_giantopt.*siglip.*v2", 40, _T13, (43.5, 38.8, 32), (42.1, 41.3, 34)),
)
