"""What a description of a set says, of any number of channels, and of copies of every kind."""
import numpy as np
import pytest
import torch

from bgcs.data.describe import _near_duplicates, describe
from bgcs.data.images import from_arrays


def some(n, seed=0, channels=1): return torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_near_duplicates_are_found_across_blocks():
    "Pairs are looked for in blocks of 1,024 images."
    few = some(49)
    many = torch.cat([few] * 45)[:2100]
    assert len(_near_duplicates(many)) == sum(n * (n - 1) // 2 for n in np.bincount(np.arange(2100) % 49))


def test_the_same_image_in_both_classes_is_said():
    objects, backgrounds = some(33), some(40, 1)
    said = str(describe(from_arrays(objects, torch.cat([backgrounds, objects[:1]]))))
    assert "as object image and as background-only image: image 0 and image 73" in said and "None" not in said


def test_what_is_alike_is_not_complained_of():
    said = str(describe(from_arrays(some(20), some(20, 1))))
    assert "!" not in said and said.startswith("20 object images, 20 background-only images of 16×16, 1 channel;")


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_any_channels_are_drawn(channels):
    found = describe(from_arrays(some(4, 0, channels), some(4, 1, channels)))
    assert len(found.plot(4).axes) >= 10 and f"{channels} channel" in str(found)


def test_many_sources_are_drawn_without_names():
    data = from_arrays(some(40), some(40, 1), object_source=np.arange(40), background_source=np.arange(40))
    assert any("the 30 largest of 40" in ax.get_xlabel() for ax in describe(data).plot(4).axes)


def test_fewer_images_are_looked_at_by_a_draw_that_repeats():
    data = from_arrays(some(40), some(40, 1))
    first, again, other = (describe(data, most=20, random_state=seed) for seed in (0, 0, 1))
    assert str(first) == str(again) and not np.array_equal(first.histograms["object"], other.histograms["object"])
    assert first.counts == {"object": 40, "background-only": 40}
