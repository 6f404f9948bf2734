"""What is declared about the models of timm, by the names of their architecture and of their weights."""

from __future__ import annotations

import re

CONTRASTIVE = "contrastive"

# The first pattern found in `architecture.tag` decides. Sources: the papers, and the tags of timm's own registry.
_OBJECTIVES = (
    (r"_ft_in\d|\.augreg2?_in|\.deit|\.fb_in", "supervised"),
    (r"^vit_pe_core", CONTRASTIVE),
    (r"^vit_pe_lang", "language alignment"),
    (r"^vit_pe_spatial", "spatial alignment"),
    (r"dinov[23]|\.dino\b|\.(fb_)?dino", "self-distillation"),
    (r"^aimv2", "autoregressive"),
    (r"clip|siglip", CONTRASTIVE),
    (r"\.mae\b|^beit|\.ijepa|_ijepa", "reconstruction"),
)
_PRETRAINED_ON = (
    (r"^vit_pe_lang", "PE core's data, then 70M images, documents and videos with text (arXiv 2504.13181 §4)"),
    (r"^vit_pe_spatial", "PE core's data, then 300M samples of it under masks (arXiv 2504.13181 §5)"),
    (r"^vit_pe_core", "5.4B image-text pairs (MetaCLIP), 22M recaptioned videos (arXiv 2504.13181 §2)"),
    (r"\.lvd142m", "LVD-142M (DINOv2)"),
    (r"\.lvd1689m", "LVD-1689M (DINOv3)"),
    (r"\.(v2_)?webli", "WebLI"),
    (r"\.openai", "WIT, 400M image-text pairs (OpenAI)"),
    (r"\.laion2b", "LAION-2B"),
)


def objective(model: str) -> str:
    """The pretraining objective of `architecture.tag`, or "unknown"."""
    return _first(_OBJECTIVES, model, "unknown")


def pretrained_on(model: str) -> str:
    return _first(_PRETRAINED_ON, model, "not declared")


def _first(table: tuple[tuple[str, str], ...], model: str, otherwise: str) -> str:
    return next((what for pattern, what in table if re.search(pattern, model)), otherwise)
