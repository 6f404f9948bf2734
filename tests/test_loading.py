"""Encoders by name, folder or hub id: what is loaded, and what is refused in one clear line."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys

import pytest
import torch
from official import (
    FAMILIES,
    WIDTH,
)
from safetensors.torch import load_file, save_file

from tsprobe.encoders import list_encoders, load_encoder, registry
from tsprobe.errors import EncoderError, MissingPackageError, TsprobeError


def copy_of(folder, tmp_path, change=None, config=None):
    """The folder with its weights changed in place by `change(state)`, and entries of its config replaced."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    if change is not None:
        state = load_file(target / "model.safetensors")
        change(state)
        save_file(state, target / "model.safetensors", {"format": "pt"})
    if config is not None:
        raw = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(raw | config))
    return target


def test_weights_are_all_loaded(zoo, encoders):
    for family in FAMILIES[:3]:
        saved, loaded = zoo.models[family].state_dict(), encoders[family].module.state_dict()
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(value, loaded[key]) for key, value in saved.items())


@pytest.mark.parametrize(
    ("family", "weight"),
    [
        ("chronos-t5", "encoder.block.1.layer.0.SelfAttention.q.weight"),
        ("chronos-bolt", "input_patch_embedding.hidden_layer.weight"),  # the package itself lets these be missing
        ("chronos-2", "encoder.final_layer_norm.weight"),
        ("patchtst", "model.encoder.layers.0.norm_sublayer1.batchnorm.running_mean"),
    ],
)
def test_missing_and_unexpected_weights_are_refused(zoo, tmp_path, family, weight):
    def rename(state):
        state["stranger.weight"] = state.pop(weight)

    folder = copy_of(zoo.folders[family], tmp_path, rename)
    missing = weight.removeprefix("model.")
    with pytest.raises(EncoderError, match=rf"missing {missing}; unexpected stranger.weight$"):
        load_encoder(f"{family}:{folder}")


def test_weights_of_another_shape_are_refused(zoo, tmp_path):
    folder = copy_of(zoo.folders["chronos-2"], tmp_path, lambda s: s.update({"shared.weight": torch.zeros(2, 8)}))
    with pytest.raises(EncoderError, match=r"shared.weight of shape \[2, 8\] where \[2, 16\] is expected"):
        load_encoder(f"chronos-2:{folder}")


def test_one_of_tied_weights_is_enough_and_untied_ones_stay_apart(zoo, tmp_path):
    """Checkpoints of older transformers may hold an output layer of their own, which must not become the embedding."""
    head = torch.randn(512, WIDTH)
    folder = copy_of(zoo.folders["chronos-t5"], tmp_path, lambda state: state.update({"lm_head.weight": head}))
    module = load_encoder(f"chronos-t5:{folder}").module
    assert torch.equal(module.encoder.embed_tokens.weight, zoo.models["chronos-t5"].shared.weight)
    assert torch.equal(module.lm_head.weight, head)


@pytest.mark.parametrize(("family", "other"), list(itertools.permutations(FAMILIES, 2)))
def test_a_checkpoint_of_another_family_is_refused(zoo, family, other):
    kinds = dict.fromkeys(FAMILIES, "t5") | {"patchtst": "patchtst"}
    reason = "does not hold the weights|does not describe"
    if kinds[family] != kinds[other]:
        reason = f"describes a model of type '{kinds[other]}', not '{kinds[family]}'"
    with pytest.raises(EncoderError, match=f"^{family}: .*({reason})"):
        load_encoder(f"{family}:{zoo.folders[other]}")


@pytest.mark.parametrize("family", [*FAMILIES, "fracast"])
def test_broken_folders_are_told_in_one_line(zoo, tmp_path, family):
    def refused(folder, reason):
        with pytest.raises(EncoderError, match=reason) as caught:
            load_encoder(f"{family}:{folder}")
        assert "\n" not in str(caught.value)

    source = zoo.folders.get(family)
    if source is None:
        import fracast

        source = tmp_path / "fracast"
        shutil.copytree(fracast.inference._PACKAGE_WEIGHTS_DIR, source)
    refused(tmp_path / "nowhere", "there is no folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "has no config.json")
    shutil.copy(source / "config.json", empty)
    refused(empty, "has no model.safetensors")
    (empty / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100])
    refused(empty, "is not a whole safetensors file")
    save_file({"weight": torch.zeros(3)}, empty / "model.safetensors")
    refused(empty, "missing .*; unexpected weight")
    refused(empty / "config.json", "is a file")
    (empty / "config.json").write_text("{")
    refused(empty, "cannot be read")


def test_a_config_that_no_model_can_be_built_from_is_refused(zoo, tmp_path):
    folder = copy_of(zoo.folders["chronos-bolt"], tmp_path, config={"chronos_config": {"context_length": 3}})
    with pytest.raises(EncoderError, match=r"does not describe such a model \(TypeError: .*prediction_length"):
        load_encoder(f"chronos-bolt:{folder}")


def test_overlapping_patches_are_refused(zoo, tmp_path):
    model = zoo.models["chronos-bolt"].config.chronos_config
    folder = copy_of(
        zoo.folders["chronos-bolt"], tmp_path, config={"chronos_config": model | {"input_patch_stride": 4}}
    )
    with pytest.raises(EncoderError, match="patches of 8 steps every 4"):
        load_encoder(f"chronos-bolt:{folder}")


def test_sharded_weights_are_read(zoo, tmp_path):
    zoo.models["chronos-2"].save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    encoder = load_encoder(f"chronos-2:{tmp_path}")
    assert encoder.fingerprint() == load_encoder(f"chronos-2:{zoo.folders['chronos-2']}").fingerprint()


def test_a_hub_id_without_network_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(**_):
        raise LocalEntryNotFoundError("Got: ConnectError: no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        EncoderError, match=r"hf download amazon/none-such --local-dir FOLDER.*chronos-2:FOLDER"
    ) as error:
        load_encoder("chronos-2:amazon/none-such")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chronos-blot:x", "unknown encoder 'chronos-blot'; did you mean 'chronos-bolt'"),
        ("fracats", "unknown encoder 'fracats'; did you mean 'fracast'"),
        ("chronos-bolt", "is a family of encoders: write chronos-bolt:ID_OR_FOLDER"),
        ("chronos-bolt:", "names no encoder: write chronos-bolt:ID_OR_FOLDER"),
        ("tests", "tests is a folder: say whose weights it holds, such as chronos-bolt:tests"),
        ("fracast/mini", "unknown encoder 'fracast/mini'; did you mean 'fracast'"),
    ],
)
def test_wrong_names_are_told(name, message, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TsprobeError, match=message):
        load_encoder(name)


def test_names_and_arguments_for_modules_do_not_mix():
    with pytest.raises(EncoderError, match="blocks, tokens: only for a module"):
        load_encoder("fracast", blocks="a.*", tokens=3)
    with pytest.raises(EncoderError, match="a Linear needs its blocks named"):
        load_encoder(torch.nn.Linear(2, 2))
    encoder = load_encoder("fracast")
    assert load_encoder(encoder) is encoder
    assert load_encoder("fracast", name="mine").name == "mine"


def test_list_encoders_imports_no_model_package():
    code = (
        "import sys; from tsprobe.encoders import list_encoders; rows = list_encoders(); "
        "models = {'chronos', 'transformers', 'fracast', 'huggingface_hub', 'sktime'}; "
        "print(sorted(models & set(sys.modules)), len(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")
    rows = {row["name"]: row for row in list_encoders()}
    assert rows["chronos-bolt:ID_OR_FOLDER"]["install"] == 'pip install "tsprobe[models]"'
    assert rows["fracast[:ID_OR_FOLDER]"]["installed"] is True
    assert all(row["final_is"] and row["code_licence"] for row in rows.values())


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Install a distribution that brings encoders: `plug_in("name = module:attr", ...)`."""

    def install(*points, code=""):
        info = tmp_path / "third_party-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tsprobe.encoders]\n" + "\n".join(points))
        (tmp_path / "third_party_encoders.py").write_text(code)
        monkeypatch.delitem(sys.modules, "third_party_encoders", raising=False)
        registry._targets.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    registry._targets.cache_clear()


THIRD_PARTY = """
from tsprobe.encoders import Card

class Zoo:
    card = Card("menagerie/NAME", "jepa", PACKAGE, "MIT", "MIT", "the last block")

    @staticmethod
    def load(source, **options):
        return source, options
"""


def test_entry_points_bring_families(plug_in):
    plug_in("menagerie = third_party_encoders:Zoo", code=THIRD_PARTY.replace("PACKAGE", "None"))
    assert load_encoder("menagerie/jepa", size=3) == ("jepa", {"size": 3})
    assert "menagerie/NAME" in [row["name"] for row in list_encoders()]


def test_a_family_without_its_package_says_what_to_install(plug_in):
    plug_in("menagerie = third_party_encoders:Zoo", code=THIRD_PARTY.replace("PACKAGE", "'no_such_package'"))
    with pytest.raises(
        MissingPackageError, match=r"menagerie/jepa needs the package 'no_such_package'.*pip install no_such"
    ):
        load_encoder("menagerie/jepa")


def test_a_name_claimed_twice_is_an_error(plug_in):
    plug_in("fracast = third_party_encoders:Zoo")
    with pytest.raises(EncoderError, match=r"'fracast' is claimed twice, by tsprobe.*uninstall one"):
        load_encoder("chronos-bolt:x")
