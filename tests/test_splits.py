"""Splits of sets with many duplicates and few sources, and files that hold no split of the set."""
import numpy as np
import pytest
import torch

from bgcs.data.files import ImageSetError
from bgcs.data.images import from_arrays
from bgcs.data.splits import PARTS, Splits, held_out_images, split

NOISE = np.random.default_rng(0).random((120, 8, 8), np.float32)
SOURCE = np.arange(60) // 4


@pytest.fixture
def data(): return from_arrays(NOISE[:60], NOISE[60:], object_source=SOURCE, background_source=SOURCE)


def test_the_seed_counts(data):
    parts = split(data)
    assert len(parts.train) + len(parts.val) + len(parts.test) == 120 and parts.part.shape == (120,)
    assert any(split(data, random_state=seed).part.tolist() != parts.part.tolist() for seed in (1, 2))
    aside = held_out_images(data, 0.2)
    assert not torch.equal(aside, held_out_images(data, 0.2, random_state=1)) and 0 < aside.float().mean() < 0.5


def test_copies_land_together():
    "Half of all images are copies of others."
    rng = np.random.default_rng(0)
    many = rng.random((300, 8, 8), np.float32)
    many[150:] = many[rng.integers(0, 150, 150)]
    dealt = split(from_arrays(many[::2], many[1::2]), val=0.3, test=0.3)
    train, val, test = ({image.numpy().tobytes() for image in getattr(dealt, name).images} for name in PARTS)
    assert train and val and test and not (train & val or train & test or val & test)


def test_sources_of_one_kind_each():
    nine = NOISE[:18]
    sources = {"object_source": np.repeat(["a", "b", "c"], 3), "background_source": np.repeat(["d", "e", "f"], 3)}
    apart = split(from_arrays(nine[:9], nine[9:], **sources))
    assert all(0 < int(getattr(apart, name).presence.sum()) < len(getattr(apart, name)) for name in PARTS)


def test_too_few_sources():
    nine = from_arrays(NOISE[:9], NOISE[9:18], object_source=["a"] * 9, background_source=["a"] * 9)
    with pytest.raises(ImageSetError, match=r"too few sources to split \(1 with both kinds"): split(nine)


@pytest.mark.parametrize("shares", [{"val": 0.}, {"test": 1}, {"val": 0.5, "test": 0.5}], ids=str)
def test_shares_that_leave_nothing(shares, data):
    with pytest.raises(ValueError, match="must be above 0 and leave something to train on"): split(data, **shares)


def test_another_set(data, tmp_path):
    path = split(data).save(tmp_path / "splits.json")
    with pytest.raises(ImageSetError, match="splits 120 images, and this set has 60"): Splits.load(path, data.objects)
    with pytest.raises(ImageSetError, match="120 of 120 images have other names"): Splits.load(path, data[torch.arange(119, -1, -1)])


@pytest.mark.parametrize("text, says", [("[]", "holds no splits"), ('{"format": "other/1"}', "holds no splits"), ("{", "is not JSON")])
def test_other_files(text, says, data, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=says): Splits.load(tmp_path / "other.json", data)
