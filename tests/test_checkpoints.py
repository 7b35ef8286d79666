"""Checkpoints: written whole or not at all, read back as they were, anything else refused."""
import errno
import math
import os

import pytest
import torch

from bgcs.training.checkpoints import (
    _Checkpoints, check_weights, read_checkpoint, read_saved, replace_file, settings_fit, write_checkpoint,
)

WEIGHTS = {"weight": torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)), "bias": torch.zeros(4)}


def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("content", [
    {"~x": 1},
    {"a/b": torch.ones(2), "a": {"b": torch.zeros(2)}},
    {"same": [WEIGHTS["bias"], WEIGHTS["bias"]]},
    {"empty": [torch.empty(0, 3), b"", {}, (), []]},
    {"half": torch.ones(2, dtype=torch.bfloat16), "on": torch.tensor(True)},
    {"part": torch.arange(9)[2:5], "whole": torch.arange(9)},
    {"rates": (0.1, math.inf), "steps": {0: "first", 1: None}, "picture": b"\x89PNG"},
])
def test_what_is_read_is_what_was_written(content, tmp_path):
    back = read_checkpoint(write_checkpoint(tmp_path / "made" / "odd.safetensors", content))
    assert same(content, back), back


def test_a_parameter_comes_back_as_a_tensor(tmp_path):
    net = torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
    back = read_checkpoint(write_checkpoint(tmp_path / "x.safetensors", {"both": [net.weight, net.weight]}))["both"]
    for tensor in back: assert torch.equal(tensor, net.weight) and tensor.stride() == net.weight.stride() and not tensor.requires_grad


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(TypeError, match="/made/0 is a builtins.set"): write_checkpoint(tmp_path / "x", {"made": [{1, 2}]})
    with pytest.raises(TypeError, match="a checkpoint is a builtins.object"): write_checkpoint(tmp_path / "x", object())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    replace_file(path, b"first")
    def full(*args): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full: note.txt needs 2.0 MB.*before is intact") as error:
        replace_file(path, bytes(2_000_000))
    assert error.value.errno == errno.ENOSPC and os.listdir(tmp_path) == ["note.txt"] and path.read_bytes() == b"first"
    with pytest.raises(OSError, match="MB are free. Make room"): replace_file(tmp_path / "new.txt", b"x")


def test_others_may_read_it_as_any_file(tmp_path):
    replace_file(tmp_path / "note.txt", b"first")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "note.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_any_changed_byte_is_found(tmp_path):
    whole = write_checkpoint(tmp_path / "x.safetensors", {"weights": WEIGHTS, "step": 12}).read_bytes()
    for place in range(0, len(whole), 37):
        (tmp_path / "x.safetensors").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        with pytest.raises(ValueError): read_checkpoint(tmp_path / "x.safetensors")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"): read_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no saved pen: none.safetensors missing"): read_saved(tmp_path / "none.safetensors", "pen", "Pen/1")


def test_a_saved_thing_of_another_kind(tmp_path):
    path = write_checkpoint(tmp_path / "x.safetensors", {"pencil": "Pencil/1"})
    with pytest.raises(ValueError, match="describes no pen of format 'Pen/1', but None"): read_saved(path, "pen", "Pen/1")


@pytest.mark.parametrize("error", [TypeError("odd"), KeyError("odd"), AttributeError("odd"), RuntimeError("odd")])
def test_errors_of_settings_name_the_file(error):
    with pytest.raises(ValueError, match="^here holds settings that this pen doesn't have, or lacks something: .?odd"), settings_fit("here", "pen"): raise error


def test_errors_of_settings_that_are_errors_only_where_asked():
    with pytest.raises(ValueError, match="^odd$"), settings_fit("here", "pen"): raise ValueError("odd")
    with pytest.raises(ValueError, match="^here holds settings"), settings_fit("here", "pen", ValueError): raise ValueError("odd")
    with pytest.raises(KeyboardInterrupt), settings_fit("here", "pen"): raise KeyboardInterrupt


@pytest.mark.parametrize("says, weights", [
    ("1 of 2 tensors are missing, superfluous.*such as more", WEIGHTS | {"more": torch.zeros(1)}),
    ("such as weight", {"bias": torch.zeros(4)}),
    ("such as bias", WEIGHTS | {"bias": torch.zeros(5)}),
    ("such as bias", WEIGHTS | {"bias": torch.zeros(4).double()}),
    ("NaN or infinity in bias", WEIGHTS | {"bias": torch.tensor([0, 1, math.nan, 2])}),
    ("no weights", WEIGHTS | {"bias": 3}),
    ("no weights", None),
])
def test_weights_that_do_not_fit(says, weights):
    with pytest.raises(ValueError, match=f"^here .*{says}"): check_weights("here", weights, WEIGHTS)


def test_a_folder_of_checkpoints(tmp_path):
    found = _Checkpoints(tmp_path)
    assert found.latest() is None
    for step in (10, 20): write_checkpoint(found.path(step), {"identity": {"seed": 0}, "step": step})
    assert found.latest({"seed": 0}) == found.path(20) == found.paths[0]
    with pytest.raises(ValueError, match="seed: 0 there, 1 now; steps: None there, 9 now"): found.latest({"seed": 1, "steps": 9})
    with pytest.raises(ValueError, match="keep=0"): found.rotate(0)
    found.path(20).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged.*the one before is taken"): assert found.latest() == found.path(10)
    found.path(10).write_bytes(b"damaged too")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="none of the 2 checkpoints"): found.latest()
