"""A tuned encoder on the Hugging Face hub: weights, config, and the tables of what the tuning brought and cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tsprobe.alignment.families import FILE
from tsprobe.errors import EncoderError, MissingPackageError, SpecError, StorageError, first_line
from tsprobe.files import read_json, read_table

WEIGHTS = ("config.json", "model.safetensors")
_CHANGED = ["family", "task", "metric", "final_before", "hidden_before", "final_after", "lift", "lift_low", "lift_high"]


def check_repository(repository: str) -> None:
    """Raise `SpecError` for what is no name of a repository, so that hours of work do not end with that."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise SpecError(f"{repository!r} is no place on the hub; write USER/NAME")


def publish(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload what `tsprobe align` left in `folder` to `repository`, made where there is none, and give its address.

    `load_encoder("aligned:USER/NAME")` takes it from there. Whoever is logged in on this machine (`hf auth login`, or
    HF_TOKEN) uploads. Raises `EncoderError` where the folder has no encoder or the hub refuses, `StorageError` where
    it cannot be reached, `SpecError` for a name that is none, `MissingPackageError`.
    """
    check_repository(repository)
    missing = [name for name in WEIGHTS if not (folder / "encoder" / name).exists()]
    if missing:
        raise EncoderError(f"{folder} has no tuned encoder to upload ({', '.join(missing)} missing)")
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
    except ImportError as error:
        raise MissingPackageError("huggingface_hub", "uploading to the hub") from error
    files: dict[str, Path | bytes] = {name: folder / "encoder" / name for name in WEIGHTS}
    files |= {name: folder / name for name in ("lift.csv", FILE) if (folder / name).exists()}
    files["README.md"] = card(folder, repository).encode()
    adds = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    try:
        api = HfApi()
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, adds, commit_message="Encoder tuned with tsprobe align")
    except LocalTokenNotFoundError as error:
        raise EncoderError("nobody is logged in to the hub here; run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise EncoderError(f"the hub refuses {repository}: {first_line(error)}") from error
    except (OSError, HTTPError) as error:
        raise StorageError(f"the hub cannot be reached ({first_line(error)}); {folder / 'encoder'} is whole") from error
    return str(url)


def card(folder: Path, repository: str) -> str:
    """The page of a repository: how to load the encoder, what it was tuned from, and `lift.csv`."""
    config = read_json(folder / "encoder" / "config.json")
    base, recipe, learnt = (_plain(str(config[key])) for key in ("base", "recipe", "trained_on"))
    lines = [
        "---", "library_name: tsprobe", "tags: [time-series, tsprobe]", "---", f"# {_plain(repository)}", "",
        f"`{base}`, tuned by the recipe `{recipe}` of tsprobe so that its output carries what its hidden layers do. "
        f"Learnt from: {learnt}. The licence of the weights is that of the base encoder.", "",
        "```python", "import tsprobe as tp", "",
        f'encoder = tp.load_encoder("aligned:{_plain(repository)}")', "```", "",
    ]  # fmt: skip
    if (folder / "lift.csv").exists():
        table = read_table(folder / "lift.csv")
        own = table[table["control"].isna()]
        lines += [
            "Test scores of the final layer before and after, and of the best hidden layer before, which inner folds "
            "chose; lift is the share of the hidden gap that came to the output. `lift.csv` has the controls too.", "",
            f"| {' | '.join(_CHANGED)} |", f"|{'---|' * len(_CHANGED)}",
            *(f"| {' | '.join(_cell(row[name]) for name in _CHANGED)} |" for row in own.to_dict("records")), "",
        ]  # fmt: skip
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}"
    return _plain(str(value))


def _plain(text: str) -> str:
    """Without what Markdown, HTML or a table would take for its own."""
    return re.sub(r"[<>|`\[\]\n\r]", " ", text)
