"""Where patches are cut, what is in them, the blind band of side-scan sonar, and how predictions are blended."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from bgcs.data.files import ImageSetError
from bgcs.data.patches import (Side, blending_window, cut_patches, random_places, sliding_places, sonar_sides, window_share,
                               _blind_band, _box_raster, _choose_places, _median_mask)
from reference import lay_back, masks_of_images


def speckle(shape, mean, seed=0, looks=4):
    "An 8-bit image of gamma speckle, as sonar has; `mean` broadcasts."
    noise = np.random.default_rng(seed).gamma(looks, 1 / looks, shape)
    return np.clip(noise * mean, 0, 255).astype(np.uint8)


def sonar(width=300, height=400, band=(130, 170), sea=140, dark=15, seed=0):
    "A speckled sonar image with a blind band."
    means = np.full(width, float(sea))
    means[band[0]:band[1]] = dark
    return speckle((height, width), means, seed)


def near(found, band, slack=4): return found is not None and max(abs(found[0] - band[0]), abs(found[1] - band[1])) <= slack


# places

def test_sliding_covers():
    rng = np.random.default_rng(1)
    for _ in range(200):
        size = int(rng.integers(1, 30))
        height, width, stride = int(rng.integers(size, 100)), int(rng.integers(size, 100)), int(rng.integers(1, size + 1))
        places, seen = sliding_places(height, width, size, stride), np.zeros((height, width), bool)
        assert places.dtype == np.int64 and len(np.unique(places, axis=0)) == len(places)
        for top, left in places:
            assert 0 <= top <= height - size and 0 <= left <= width - size
            seen[top:top + size, left:left + size] = True
        assert seen.all()
        for axis, length in enumerate((height, width)):
            starts = np.unique(places[:, axis])
            assert len(starts) == -(-(length - size) // stride) + 1 and (np.diff(starts)[:-1] == stride).all()


def test_sliding_known(): assert sliding_places(5, 4, 4, 3).tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("args, says", [((9, 20, 10, 5), "9 x 20"), ((20, 9, 10, 5), "20 x 9"), ((20, 20, 10, 11), "gaps"), ((20, 20, 10, 0), "stride"), ((20, 20, 0, 1), "size"),
                                        ((20, 20, 2.5, 1), "size")])
def test_sliding_errors(args, says):
    with pytest.raises(ValueError, match=says): sliding_places(*args)


def test_random_places():
    places = random_places(12, 11, 10, 2000, np.random.default_rng(0))
    assert places.shape == (2000, 2) and places.dtype == np.int64
    found, counts = np.unique(places, axis=0, return_counts=True)
    assert found.tolist() == [[top, left] for top in range(3) for left in range(2)] and counts.min() > 250
    assert (places == random_places(12, 11, 10, 2000, 0)).all() and random_places(12, 11, 10, 0, 0).shape == (0, 2)
    with pytest.raises(ValueError, match="smaller"): random_places(9, 20, 10, 1, 0)
    with pytest.raises(ValueError, match="n=-1"): random_places(20, 20, 10, -1, 0)


# masks and shares

def test_box_raster():
    rng = np.random.default_rng(2)
    for _ in range(50):
        tops, lefts = rng.integers(-3, 20, 5), rng.integers(-3, 30, 5)
        boxes = np.stack([tops, lefts, tops + rng.integers(4, 15, 5), lefts + rng.integers(4, 15, 5)], 1)
        rows, columns = np.mgrid[:20, :30]
        expected = np.any([(rows >= t) & (rows < b) & (columns >= l) & (columns < r) for t, l, b, r in boxes], 0)
        mask = _box_raster(boxes, (20, 30))
        assert mask.dtype == bool and (mask == expected).all() and (_box_raster(boxes.astype(float), (20, 30)) == expected).all()
    assert not _box_raster([], (4, 5)).any() and _box_raster(np.zeros((0, 4)), (4, 5)).shape == (4, 5)


@pytest.mark.parametrize("boxes, says", [([[5, 5, 5, 8]], "unordered"), ([[8, 5, 5, 8]], "unordered"), ([[20, 0, 25, 5]], "outside"), ([[-5, 0, 0, 5]], "outside"),
                                         ([[0, 0, 1.5, 5]], "whole"), ([[0, 0, np.nan, 5]], "finite"), ([0, 0, 5, 5], "shape"), ([[0, 0, 5]], "shape")])
def test_box_errors(boxes, says):
    with pytest.raises(ValueError, match=says): _box_raster(boxes, (20, 30))


def test_window_share_brute_force():
    rng = np.random.default_rng(3)
    for _ in range(50):
        size = int(rng.integers(1, 20))
        shape = tuple(int(n) for n in rng.integers(size, 60, 2))
        mask, places = rng.random(shape) < rng.random(), random_places(*shape, size, 100, rng)
        share = window_share(mask, places, size)
        assert share.dtype == np.float64 and (share == [mask[t:t + size, l:l + size].sum() / size**2 for t, l in places]).all()
    assert window_share(mask, np.zeros((0, 2)), 1).shape == (0,)


@pytest.mark.parametrize("mask, places, says", [(np.zeros((9, 9)), [[0, 0]], "bool"), (np.zeros((9, 9), bool), [[0, 7]], "leave"), (np.zeros((9, 9), bool), [[-1, 0]], "leave"),
                                                (np.zeros((9, 9), bool), [[0.5, 0]], "whole"), (np.zeros((9, 9), bool), [0, 0], "shape")])
def test_window_share_errors(mask, places, says):
    with pytest.raises(ValueError, match=says): window_share(mask, places, 3)


def test_choose_places():
    share, invalid = np.array([0, 0, .01, .05, .5, .6, .5]), np.array([0, .1, 0, 0, 0, 0, .1])
    objects, background = _choose_places(np.zeros((7, 2), int), share, invalid, (.05, .5))
    assert objects.tolist() == [False, False, False, True, True, False, False] and background.tolist() == [True] + [False] * 6
    objects, background = _choose_places(np.zeros((7, 2), int), share, invalid, max_invalid=.1)
    assert objects.tolist() == [False] * 3 + [True] * 4 and background.tolist() == [True, True] + [False] * 5


@pytest.mark.parametrize("share, options, says", [([.5], dict(object_share=(0, 1)), "object_share"), ([.5], dict(object_share=(.5, .2)), "object_share"), ([.5], dict(object_share=(.5, 1.1)), "object_share"),
                                                  ([.5], dict(max_invalid=-.1), "max_invalid"), ([1.5], {}, "outside"), ([np.nan], {}, "NaN"), ([.5, .5], {}, "one for each")])
def test_choose_errors(share, options, says):
    with pytest.raises(ValueError, match=says): _choose_places([[0, 0]], share, [0.] * len(share), **options)


# blind band

@pytest.mark.parametrize("window", [1, 3, 5, 9])
def test_median_mask_is_the_median(window):
    for seed in range(5):
        image = speckle((40, 53), 140, seed)
        assert (_median_mask(image >= 150, window) == (ndimage.median_filter(image, window, mode="nearest") >= 150)).all()


def test_band_clean():
    image = np.full((60, 100), 200, np.uint8)
    image[:, 40:55] = 20
    assert _blind_band(image) == (40, 55) and all(type(n) is int for n in _blind_band(image))
    assert _blind_band(image, min_width=15) == (40, 55) and _blind_band(image, min_width=16) is None
    assert _blind_band((image * .3).astype(np.uint8)) is None and _blind_band((image * .3).astype(np.uint8), threshold=45) == (40, 55)
    assert _blind_band(image / 255, threshold=.5) == (40, 55) and _blind_band(image * 100., threshold=15000) == (40, 55)
    assert _blind_band(image.astype(np.int16) - 300, threshold=-150) == (40, 55)  # decibels are below 0


def test_band_in_speckle():
    for seed in range(30): assert near(_blind_band(sonar(seed=seed)), (130, 170)), seed


def test_band_in_dimmer_speckle():
    for seed in range(10): assert near(_blind_band(sonar(sea=50, dark=5, seed=seed), threshold=52), (130, 170)), seed


def test_band_beside_fading_far_range():
    "A far range darker and wider than the band is not taken."
    means = np.full(500, 140.)
    means[:150], means[-120:], means[230:260] = 8, 8, 8
    for seed in range(10):
        image = speckle((400, 500), means, seed)
        assert near(_blind_band(image), (230, 260)), seed
        image[100:110, 20:30] = 255  # an echo in the dark far range makes an inner run out of it
        assert near(_blind_band(image), (230, 260)), seed
        assert near(_blind_band(image, max_ratio=np.inf), (30, 150)), seed


def test_no_band_in_speckle():
    "Thin speckle has columns without bright pixels by chance, and the plain rule takes them for a band."
    images = [speckle((150, 300), 105, seed) for seed in range(30)]
    assert all(_blind_band(image) is None for image in images)
    assert sum(_blind_band(image, max_ratio=np.inf) is not None for image in images) > 20


def test_no_band_between_bright_objects():
    image = speckle((200, 300), 50)
    image[50:70, 30:50] = image[120:140, 220:240] = 230
    assert _blind_band(image) is None and near(_blind_band(image, max_ratio=np.inf), (50, 220))


@pytest.mark.parametrize("image", [np.zeros((50, 80), np.uint8), np.full((50, 80), 255, np.uint8), speckle((50, 80), 20), np.full((50, 80), np.nan), np.zeros((50, 80)), np.zeros((1, 1), np.uint8)])
def test_no_band_in_dark_or_bright(image): assert _blind_band(image) is None


@pytest.mark.parametrize("band", [(0, 40), (260, 300)])
def test_no_band_at_an_edge(band):
    image = sonar(band=band)
    assert _blind_band(image) is None and [side.name for side in sonar_sides(image)] == ["whole"]
    image[:, 100:120] = speckle((400, 20), 15)
    assert near(_blind_band(image), (100, 120))  # narrower, but between two sides


def test_two_dark_runs():
    image = np.full((60, 300), 200, np.uint8)
    image[:, 50:60] = image[:, 140:170] = 10
    assert _blind_band(image) == (140, 170)
    image[:, 30:60] = 10
    assert _blind_band(image) == (140, 170)  # as wide, but nearer to the middle


def test_echo_in_band():
    image = sonar()
    image[100:110, 148:153] = 255
    assert _blind_band(image)[1] - _blind_band(image)[0] < 25
    assert near(_blind_band(image, max_bright=.05), (130, 170))


def test_band_without_data():
    image = sonar().astype(np.float32)
    image[:, 130:170], image[5, 5] = np.nan, np.inf
    assert near(_blind_band(image), (130, 170))


@pytest.mark.parametrize("image, options, says", [(np.zeros((5, 5, 3), np.uint8), {}, "grey"), (np.zeros((5, 5), bool), {}, "grey"), (np.zeros((0, 5), np.uint8), {}, "grey"),
                                                  (np.full((5, 5), .5), {}, "units"), (np.zeros((5, 5), np.uint8), dict(window=4), "odd"), (np.zeros((5, 5), np.uint8), dict(min_width=0), "min_width"),
                                                  (np.zeros((5, 5), np.uint8), dict(max_bright=1), "max_bright"), (np.zeros((5, 5), np.uint8), dict(max_ratio=0), "max_ratio")])
def test_band_errors(image, options, says):
    with pytest.raises(ValueError, match=says): _blind_band(image, **options)


# sides

def test_sides_round_trip():
    image = sonar(band=(120, 160))
    first, after = _blind_band(image)
    port, starboard = sonar_sides(image)
    assert port == Side("port", (0, first), False) and starboard == Side("starboard", (after, 300), True)
    assert (port.take(image) == image[:, :first]).all() and (starboard.take(image) == image[:, :after - 1:-1]).all()
    canvas = np.zeros_like(image)
    canvas[:, first:after] = image[:, first:after]
    for side in (port, starboard): assert side.put(side.take(image), canvas) is canvas
    assert (canvas == image).all()
    colour, back = np.stack([image] * 3, -1), np.zeros((*image.shape, 3), np.uint8)
    for side in (port, starboard): side.put(side.take(colour), back)
    back[:, first:after] = colour[:, first:after]
    assert (back == colour).all()


def test_nadir_at_right_edge():
    image = np.full((20, 90), 200, np.uint8)
    image[:, 40:50] = 0
    image[:, [39, 50]], image[:, [0, 89]] = 190, 210
    for side in sonar_sides(image): assert (side.take(image)[:, -1] == 190).all() and (side.take(image)[:, 0] == 210).all()


def test_whole_and_dropped_sides():
    image = np.full((20, 90), 200, np.uint8)
    whole, = sonar_sides(image)
    assert whole == Side("whole", (0, 90), False) and (whole.put(whole.take(image), np.zeros_like(image)) == image).all()
    assert sonar_sides(image, min_width=91) == []
    image[:, 20:30] = 0
    assert [side.name for side in sonar_sides(image)] == ["port", "starboard"]
    assert [side.name for side in sonar_sides(image, min_width=21)] == ["starboard"]
    assert [side.name for side in sonar_sides(image, min_band=11)] == ["whole"] == [side.name for side in sonar_sides(image, threshold=250)]


def test_take_is_a_copy():
    image = np.full((5, 9), 3)
    taken = sonar_sides(image)[0].take(image)
    taken[:] = 0
    assert (image == 3).all()


def test_side_errors():
    side = Side("starboard", (5, 9), True)
    with pytest.raises(ValueError, match="columns 5 to 9"): side.take(np.zeros((3, 8)))
    with pytest.raises(ValueError, match="values has shape"): side.put(np.zeros((3, 5)), np.zeros((3, 9)))
    with pytest.raises(ValueError, match="do not fit"): side.put(np.zeros((3, 4)), np.zeros((3, 9), np.uint8))


# blending and laying back

def test_blending_window():
    "Hann's window without the zeros at its ends, so that every pixel counts."
    for size in (1, 2, 3, 16, 63):
        expected = np.sin(np.pi * np.arange(1, size + 1) / (size + 1)) ** 2
        window = blending_window(size)
        assert window.shape == (size,) and window.dtype == np.float64 and np.allclose(window, expected) and (window > 0).all()
        assert (blending_window(size, "mean") == 1).all()


@pytest.mark.parametrize("size, blend, says", [(0, "hann", "size=0"), (2.5, "mean", "size=2.5"), (4, "hanning", "did you mean 'hann'"), (4, None, "blend=None")])
def test_blending_errors(size, blend, says):
    with pytest.raises(ValueError, match=re.escape(says)): blending_window(size, blend)


@pytest.mark.parametrize("blend", ["mean", "hann"])
def test_windows_of_an_image_blend_to_that_image(blend):
    rng = np.random.default_rng(4)
    for _ in range(20):
        height, width, stride = (int(n) for n in rng.integers((16, 16, 1), (80, 80, 17)))
        image, places = rng.normal(0, 100, (height, width)).astype(np.float32), sliding_places(height, width, 16, stride)
        back = lay_back(np.stack([image[t:t + 16, l:l + 16] for t, l in places]), places, image.shape, blend)
        assert back.dtype == np.float32 and (back == image).all()


def test_hann_hides_seams():
    "Patches of differing brightness leave smaller steps with the window."
    places, rng = sliding_places(96, 96, 32, 16), np.random.default_rng(5)
    patches = np.ones((len(places), 32, 32)) * rng.random((len(places), 1, 1))
    plain, smooth = (np.abs(np.diff(lay_back(patches, places, (96, 96), blend), axis=1)).max() for blend in ("mean", "hann"))
    assert smooth < .5 * plain


def test_patches_lie_where_they_were_cut():
    "Patches of a mirrored side, too, laid back at their places, are the image again; so are their masks."
    image, marked = sonar(height=200, band=(130, 165)), np.zeros((200, 300), np.uint8)
    marked[60:90, 40:70] = 1
    data = cut_patches([image], 48, labels=[marked], stride=12, regions=sonar_sides, object_share=(0.01, 1), progress=False)
    whole = masks_of_images(data.images[:], data, image.shape)["image 0"]
    seen = ~np.isnan(whole)
    assert 0.8 < seen.mean() < 0.95 and np.allclose(whole[seen], image[seen] / 255, atol=1e-6)
    back = masks_of_images(data.masks[:], data, image.shape)["image 0"]
    assert (back[60:90, 40:70] == 1).all() and np.nansum(back) == 900
    assert {tuple(p[2:4]) for p in data.places.tolist()} == {(48, 48)} and 0 < data.places[:, 4].mean() < 1


def test_many_windows_of_a_large_mask():
    "A million windows, of which some are counted one by one."
    rng = np.random.default_rng(6)
    mask, places = rng.random((2048, 2048)) < .1, random_places(2048, 2048, 128, 1_000_000, rng)
    share = window_share(mask, places, 128)
    for k in range(0, len(places), 20_000):
        top, left = places[k]
        assert share[k] == mask[top:top + 128, left:left + 128].mean()


# sets of patches

@pytest.fixture
def surveys(tmp_path):
    "Three images, their label rasters, and settings: 3 is the object, and 11 a wall that no patch may show."
    image, labels = sonar(height=200, band=(130, 165)), np.zeros((200, 300), np.uint8)
    labels[60:90, 40:70], labels[150:, 200:] = 3, 11
    for k in range(3):
        Image.fromarray(np.roll(image, k, 0)).save(tmp_path / f"s{k}.png")
        Image.fromarray(np.roll(labels, k, 0)).save(tmp_path / f"l{k}.png")
    return dict(images=[tmp_path / f"s{k}.png" for k in range(3)], labels=[tmp_path / f"l{k}.png" for k in range(3)], size=40, label_values=[3],
                exclude_values=[11], n_objects=4, n_backgrounds=9, object_share=(0.2, 1), resize=20, progress=False)


def test_draws_repeat_and_may_be_read_later(surveys, tmp_path):
    some, again, lazy = (cut_patches(**surveys, lazy=lazy) for lazy in (None, None, True))
    assert some.shape == (1, 20, 20) and int(some.presence.sum()) == 12 and len(some) == 39 and len(set(some.source)) == 3
    assert torch.equal(some.images, again.images) and not torch.equal(some.images, cut_patches(**surveys, random_state=1).images)
    for other in (lazy, lazy.packed(tmp_path / "cache")):
        assert torch.equal(other.images[:], some.images) and torch.equal(other.masks[:], some.masks)


def test_patches_show_what_they_should(surveys):
    data = cut_patches(**surveys)
    assert data.objects.masks.any((1, 2, 3)).all() and not data.backgrounds.masks.any()
    for (top, left, *_), name in zip(data.places, data.source):
        labels = np.asarray(Image.open(Path(name).with_name(f"l{Path(name).stem[1:]}.png")))
        assert not (labels[top:top + 40, left:left + 40] == 11).any()


def test_no_patch_where_nothing_was_measured():
    image, labels = sonar(height=200, band=(130, 165)), np.zeros((200, 300), np.uint8)
    image[:, :100], labels[60:90, 190:220] = 0, 3
    data = cut_patches([image], 40, labels=[labels], n_backgrounds=50, n_objects=5, invalid="zero", max_invalid=0.0, progress=False)
    assert (data.places[:, 1] >= 98).all()


@pytest.mark.parametrize("options, error, says", [
    (dict(labels=[np.zeros((200, 300))], n_backgrounds=20, n_objects=1), ImageSetError, "No object patch of 40×40"),
    (dict(labels=[np.ones((200, 300))], n_backgrounds=20, n_objects=1), ImageSetError, "No background-only patch of 40×40"),
    (dict(labels=[np.zeros((10, 10))], stride=20), ImageSetError, "labels 10×10"),
    (dict(labels=[], stride=20), ImageSetError, "1 images and 0 entries of labels or boxes"),
    (dict(boxes=[[]], stride=20, source=["a", "b"]), ImageSetError, "2 entries of source"),
    (dict(stride=20), ValueError, "either labels or boxes"),
    (dict(boxes=[[]]), ValueError, "either stride"),
    (dict(boxes=[[]], stride=20, invalid="none"), ValueError, "invalid='none'"),
    (dict(boxes=[[]], stride=20, invalid=lambda image: image), ValueError, "the function for invalid areas gave"),
])
def test_cutting_errors(options, error, says):
    with pytest.raises(error, match=re.escape(says)): cut_patches([sonar(height=200)], 40, progress=False, **options)


def test_an_unreadable_image_is_refused_or_left_out(surveys):
    surveys["images"][1].write_bytes(b"no")
    with pytest.raises(ImageSetError, match="1 of 3 images cannot be cut"): cut_patches(**surveys)
    with pytest.warns(UserWarning, match="left out"): data = cut_patches(**surveys, on_bad="skip")
    assert len(data.skipped) == 1
