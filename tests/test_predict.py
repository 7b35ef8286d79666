"""Tiles are laid back exactly; surveys of any files are predicted, resumed, and never written over; what cannot be done is said, with the remedy."""
import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from filelock import FileLock
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

import bgcs.masks.predict
from bgcs.data.files import ImageSetError, image_info
from bgcs.data.images import from_arrays, from_folders
from bgcs.data.intensity import Normalization
from bgcs.data.patches import cut_patches, sonar_sides
from bgcs.masks.objects import find_objects
from bgcs.masks.predict import (_axis_weights, _epsg, _map_coordinates, _overlay, _presence_score, _stems, predict_files,
                                predict_large)
from bgcs.masks.segment import Segmenter
from reference import lay_back


def same(images): return images


def model(channels=1, seed=0, normalization=Normalization()):
    "A segmenter with weights drawn, not learned: its masks are as good as any for moving files about."
    segmenter = Segmenter(channels, base_width=4, depth=1, random_state=seed).eval()
    segmenter.normalization_ = normalization
    net = segmenter.averaged.module
    with torch.no_grad():
        net.head.weight.mul_(500)
        net.head.bias.sub_(net(torch.rand(8, channels, 32, 32, generator=torch.Generator().manual_seed(0))).median())  # half of a mask is object
    return segmenter


def noise(h, w, seed=0, channels=None): return np.random.default_rng(seed).integers(0, 256, (h, w) if channels is None else (h, w, channels)).astype(np.uint8)


@pytest.fixture
def survey(tmp_path):
    "Six images in two folders, of several sizes."
    for i in range(6):
        path = tmp_path / "survey" / f"dive{i % 2}" / f"line{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40 + 8 * i, 60, i)).save(path)
    return tmp_path / "survey"


predict = partial(predict_files, tile=32, progress=False)


def snapshot(folder): return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def contents(folder): return {name: content for name, (content, _) in snapshot(folder).items()}


# ---- tiles

@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 90), w=st.integers(1, 90), tile=st.none() | st.integers(4, 70), overlap=st.floats(0, 0.9), blend=st.sampled_from(["hann", "mean"]), batch_size=st.integers(1, 40), channels=st.integers(1, 3))
def test_what_is_cut_is_laid_back(h, w, tile, overlap, blend, batch_size, channels):
    image = np.random.default_rng(h * w).random((channels, h, w), np.float32)
    first = lambda images: images[:, :1]
    back = predict_large(first, image, channel_axis=0, tile=tile, overlap=overlap, blend=blend, batch_size=batch_size)
    assert back.shape == (h, w) and back.dtype == np.float32 and np.abs(back - image[0]).max() <= 1e-6


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 300), side=st.integers(1, 80), overlap=st.floats(0, 0.95), blend=st.sampled_from(["hann", "mean"]))
def test_weights_sum_to_one(length, side, overlap, blend):
    length = max(length, side)
    starts, weights = _axis_weights(length, side, overlap, blend)
    total = np.zeros(length)
    for start, own in zip(starts, weights): total[start:start + side] += own
    assert np.abs(total - 1).max() < 1e-5 and (weights > 0).all()


def test_blending_is_that_of_lay_back():
    image, tile = noise(70, 100), 24
    windowed = lambda images: images * torch.linspace(0.5, 1, tile)[:, None]  # predictions that depend on the place in the tile
    places = np.array([(t, l) for t in (0, 12, 24, 36, 46) for l in (0, 12, 24, 36, 48, 60, 72, 76)])
    patches = np.stack([image[t:t + tile, l:l + tile] for t, l in places]) / 255 * np.linspace(0.5, 1, tile)[:, None]
    for blend in ("hann", "mean"):
        assert np.abs(predict_large(windowed, image, tile=tile, blend=blend) - lay_back(patches, places, (70, 100), blend)).max() < 1e-6


@pytest.mark.parametrize("normalization", [Normalization(), Normalization("mean-clip"), Normalization("zscore"), Normalization("percentile"), Normalization("range", 20, 200)], ids=str)
def test_tiles_look_as_patches_did_in_training(normalization):
    "Each tile is resized and normalised as `cut_patches` does it, but for the edges, where resizing a patch sees less."
    sonar = gaussian_filter(noise(96, 128, 3).astype(np.float32), 2)
    sonar = (255 * (sonar - sonar.min()) / np.ptp(sonar)).astype(np.uint8)
    marked = np.zeros_like(sonar)
    marked[-32:, -32:] = 1  # the last patch in the order of places, so that objects come after all others
    data = cut_patches([sonar], 32, labels=[marked], stride=16, resize=16, object_share=(1e-6, 1), normalization=normalization, progress=False)
    order = np.lexsort(data.places[:, 1::-1].T)
    trained = data.images[:].numpy()[order]
    seen = []
    class Watch:
        def predict(self, images): seen.append(images.numpy().copy()); return images
    watch = Watch()
    watch.normalization_ = normalization
    predict_large(watch, sonar, tile=32, resize=16)
    tiles = np.concatenate(seen)
    assert tiles.shape == trained.shape
    assert np.abs(tiles - trained)[:, :, 1:-1, 1:-1].max() < 0.03 and np.abs(tiles - trained).mean() < 0.01


def test_batches_are_shared_by_images_and_bounded(survey, tmp_path, monkeypatch):
    sizes = []
    def counted(model, images, batch_size): sizes.append(len(images)); return original(model, images, batch_size)
    original = bgcs.masks.predict.predict_masks
    monkeypatch.setattr(bgcs.masks.predict, "predict_masks", counted)
    predict(model(), survey, tmp_path / "out", batch_size=16, overlap=0)
    tiles = sum((-(-(40 + 8 * i) // 32)) * 2 for i in range(6))
    assert sum(sizes) == tiles and max(sizes) == 16 and len(sizes) == -(-tiles // 16)


@pytest.mark.linux
def test_memory_is_that_of_a_few_images():
    code = """
import numpy as np
from bgcs.masks.predict import predict_large
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
image = np.zeros((6000, 6000), np.uint8)
predict_large(lambda images: images, image[:600, :600], tile=64)
before = peak()
predict_large(lambda images: images, image, tile=64, overlap=0.5, batch_size=256, progress=False)
print((peak() - before) / image.size)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 16, out.stdout  # bytes a pixel: two float32, a few uint8 and bool, and the tiles' list


def test_sides_of_sonar_and_blind_band():
    sonar = (noise(60, 150, 1) // 8 + 150).astype(np.uint8)
    sonar[:, 70:90] = 10
    left = torch.linspace(1, 0, 32)
    ramp = lambda images: images * 0 + left  # a "network" that is sure at the left of each tile: mirrored on starboard
    found = predict_large(ramp, sonar, tile=32, overlap=0, regions=sonar_sides)
    band = sonar_sides(sonar)
    assert [side.name for side in band] == ["port", "starboard"] and np.isnan(found[:, band[0].columns[1]:band[1].columns[0]]).all()
    assert found[0, 0] > found[0, 20] and found[0, -1] > found[0, -21]
    assert np.isfinite(predict_large(same, sonar[:, :60], tile=32, regions=sonar_sides)).all()  # no band, one region


def test_pixels_without_data():
    image = noise(80, 90).astype(np.float32) / 255
    image[20:70, 10:60] = np.nan
    seen = []
    back = predict_large(lambda images: (seen.append(images), images)[1], image, tile=16)
    assert np.array_equal(np.isnan(back), np.isnan(image)) and np.nanmax(np.abs(back - image)) < 1e-6
    assert all(bool(batch.isfinite().all()) for batch in seen)
    zero = (np.nan_to_num(image) * 255).astype(np.uint16)
    image[0, 0] = np.inf
    assert np.isnan(predict_large(same, image, tile=16)[0, 0])
    zero[:30] = 7
    assert np.isnan(predict_large(same, zero, tile=16, invalid=7)[:30]).all() and np.isnan(predict_large(same, zero, tile=16, invalid=lambda i: i > 9)[40, 80])
    with pytest.raises(ImageSetError, match="shows nothing"): predict_large(same, image * np.nan)


def test_sixteen_bits_fill_their_range():
    image = np.random.default_rng(0).integers(0, 2 ** 16, (50, 60)).astype(np.uint16)
    assert np.abs(predict_large(same, image, tile=32) - image / 65535).max() < 1e-6


@pytest.mark.parametrize("wrong, text", [
    (dict(tile=2), "tile=2; expected a whole number of pixels, at least"),
    (dict(tile="32"), "tile='32'; expected a whole number of pixels"),
    (dict(tile=2.5), "tile=2.5"),
    (dict(tile=True), "tile=True"),
    (dict(tile=32, overlap=1), "overlap=1; expected a share"),
    (dict(tile=32, overlap=-0.1), "overlap=-0.1"),
    (dict(tile=32, resize=(16, 8)), "square"),
    (dict(resize=(16, 8, 3)), "expected a number of pixels, or"),
    (dict(tile=32, resize=2.5), "resize=2.5"),
    (dict(tile=64, resize=0), "resize=0"),
    (dict(tile=32, blend="max"), "blend='max' is not known; expected one of 'hann', 'mean'"),
    (dict(batch_size=0), "batch_size=0; expected a whole number, at least 1"),
    (dict(flip="both"), "is for segmenters, and function has no .predict"),
])
def test_wrong_tilings(wrong, text):
    with pytest.raises(ValueError, match=text): predict_large(same, noise(40, 50), **wrong)


def test_wrong_images_and_models():
    with pytest.raises(ImageSetError, match="has 3 channels, and the segmenter takes 1"): predict_large(model(), noise(40, 50, channels=3), tile=32)
    with pytest.raises(ImageSetError, match="real numbers"): predict_large(same, np.ones((9, 9), complex))
    with pytest.raises(ImageSetError, match=r"expected \(h, w\)"): predict_large(same, np.ones((2, 3, 9, 9)))
    with pytest.raises(ImageSetError, match="0×5 pixels"): predict_large(same, np.ones((0, 5)))
    with pytest.raises(ImageSetError, match="type int32"): predict_large(same, np.ones((9, 9), np.int32))
    with pytest.raises(ImageSetError, match="one piece. Say tile="): predict_large(same, np.zeros((3000, 3000), np.uint8))
    with pytest.raises(ImageSetError, match="floats from 0 to 7"): predict_large(same, np.arange(8.0)[:, None].repeat(9, 1))
    with pytest.raises(ImageSetError, match="found none"): predict_large(same, np.zeros((9, 9)), regions=lambda image: [])
    with pytest.raises(ValueError, match="NaN in the masks"): predict_large(lambda images: images * np.nan, noise(40, 50), tile=32)
    with pytest.raises(ValueError, match="not been fitted"): predict_files(Segmenter(), ["a.png"], "out")
    with pytest.raises(ValueError, match="take their sigmoid"): predict_large(lambda images: images * 9, noise(40, 50), tile=32)
    with pytest.raises(ValueError, match="of shape"): predict_large(lambda images: images[..., :-1], noise(40, 50), tile=32)
    with pytest.raises(ValueError, match="expected a function from images to masks"): predict_large("model", noise(40, 50), tile=32)


# ---- what was found

def test_presence_sees_one_small_object_in_a_large_image():
    mask = np.full((900, 1200), 0.02, np.float32)
    before = _presence_score(mask, 64)
    mask[700:716, 300:320] = 0.95
    assert before == pytest.approx(0.02) and _presence_score(mask, 64) > 0.9 > 0.1 > _presence_score(mask)
    assert _presence_score(np.full((50, 60), np.nan), 32) == 0


def test_objects_against_a_slow_count():
    mask = np.random.default_rng(4).random((40, 50)).astype(np.float32)
    labels, table = find_objects(mask, 0.7)
    for row in table.itertuples():
        where = labels == row.object
        ys, xs = where.nonzero()
        assert row.area == where.sum() and row.row == pytest.approx(ys.mean()) and row.column == pytest.approx(xs.mean())
        assert (row.top, row.left, row.bottom, row.right) == (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1)
        assert row.mean_probability == pytest.approx(mask[where].mean()) and row.max_probability == mask[where].max()
    assert np.array_equal(labels > 0, mask >= 0.7)


def test_presence_of_windows_larger_than_the_image():
    spot = np.zeros((100, 200), np.float32)
    spot[50:60, 80:90] = 0.8
    assert _presence_score(np.where(spot > 0, spot, np.nan), 40) == pytest.approx(0.8)
    assert _presence_score(spot[:20, :7], 40) == 0 and 0 < _presence_score(spot[50:, 80:], 400) <= 0.8
    with pytest.raises(ValueError, match="share=0"): _presence_score(spot, 40, 0)


def test_no_object_gives_an_empty_table_of_the_same_columns():
    pieces, table = find_objects(np.full((20, 30), np.nan), 0.0)
    assert not pieces.any() and len(table) == 0 and list(table) == list(find_objects(np.eye(3))[1])
    with pytest.raises(ValueError, match="threshold=50"): find_objects(np.eye(3), 50)


def test_what_geotiffs_leave_unsaid():
    assert _map_coordinates(0, 0, {}) is None and _epsg({}) is None
    assert _epsg({"ProjectedCSTypeGeoKey": 32633}) == 32633 and _epsg({"GeographicTypeGeoKey": 4326}) == 4326
    assert _epsg({"ProjectedCSTypeGeoKey": 32767}) is None  # one of the file's own


def test_overlays_of_images_without_contrast():
    empty = np.zeros((9, 9), bool)
    assert not _overlay(np.full((3, 9, 9), np.nan), empty).any() and not _overlay(np.full((1, 9, 9), 7), empty).any()
    with pytest.raises(ValueError, match="the mask has shape"): _overlay(np.zeros((1, 9, 9)), empty[:5])


def test_names_of_masks_by_case():
    assert _stems(["a.png", "A.PNG"]) == {"a.png": "a", "A.PNG": "A.PNG"}
    assert list(_stems(["x.png", "X.png", "x.PNG", "x.Png"]).values()) == ["x", "X.png", "x.PNG_2", "x.Png_3"]


# ---- files

def test_files_are_what_predict_large_gives(survey, tmp_path):
    segmenter = model()
    before = snapshot(survey)
    found = predict(segmenter, survey, tmp_path / "out", threshold=0.55, min_area=4)
    assert snapshot(survey) == before and len(found.images) == 6 and not found.skipped
    for row in found.images.itertuples():
        expected = predict_large(segmenter, np.asarray(Image.open(survey / row.file)), tile=32)
        soft, mask, drawn = (np.asarray(Image.open(tmp_path / "out" / kind / row.file)) for kind in ("soft", "masks", "overlays"))
        assert soft.dtype == np.uint16 and np.abs(soft / 65535 - expected).max() < 1e-4 and mask.dtype == np.uint8 and drawn.shape == (*mask.shape, 3)
        labels, table = find_objects(expected, 0.55, 4)
        assert np.array_equal(mask, (labels > 0) * np.uint8(255)) and row.objects == len(table) == (found.objects.file == row.file).sum()
        assert row.presence == pytest.approx(_presence_score(expected, 32), abs=1e-6) and row.area_share == pytest.approx((labels > 0).mean()) and row.unseen_share == 0
    written = pd.read_csv(tmp_path / "out" / "images.csv", keep_default_na=False)
    assert written.file.tolist() == found.images.file.tolist() and written["mask"].tolist() == [f"masks/{file}" for file in written.file] and set(written.problem) == {""}
    assert len(pd.read_csv(tmp_path / "out" / "table.csv")) == len(found.objects) > 0
    assert "6 images" in str(found) and len(found.plot(3).axes) == 4


def test_no_objects_leave_empty_tables(survey, tmp_path):
    found = predict(model(), survey, tmp_path / "out", threshold=1.0, soft=False, overlays=False)
    assert len(found.objects) == 0 and "area" in pd.read_csv(tmp_path / "out" / "table.csv") and not (tmp_path / "out" / "soft").exists()
    with pytest.raises(ValueError, match="overlays=False"): found.plot()


def test_lists_sets_and_out_within_the_images(survey, tmp_path):
    segmenter, paths = model(), sorted(survey.rglob("*.png"))
    listed = predict(segmenter, [str(p) for p in paths[:3]] + [paths[0]], tmp_path / "listed")
    assert listed.images.file.tolist() == ["line0.png", "line2.png", "line4.png"]
    data = from_folders(survey / "dive0", survey / "dive1", resize=(32, 32), progress=False)
    assert len(predict(segmenter, data, tmp_path / "set").images) == 6
    inside = predict(segmenter, survey, survey / "found")
    assert len(inside.images) == 6 and len(predict(segmenter, survey, survey / "found").images) == 6  # its own masks are no images
    assert len(predict(segmenter, survey, tmp_path / "some", pattern="dive1/*").images) == 3
    other = from_folders(survey / "dive0", survey / "dive1", resize=(32, 32), normalization="zscore", progress=False)
    with pytest.raises(ValueError, match=r"normalised by zscore\(4\), and the segmenter was trained on unit"): predict(segmenter, other, tmp_path / "other")
    with pytest.raises(ValueError, match="not read from files"): predict(segmenter, from_arrays(noise(16, 16)[None], noise(16, 16, 1)[None]), tmp_path / "arrays")
    with pytest.raises(ValueError, match="pattern= is for a folder"): predict(segmenter, paths, tmp_path / "x", pattern="*")
    with pytest.raises(ImageSetError, match="no files"): predict(segmenter, [], tmp_path / "x")


def test_names_never_clash(tmp_path):
    survey, segmenter = tmp_path / "survey", model()
    survey.mkdir()
    for i, name in enumerate(("a.png", "a.tif", "A.PNG", "a.npy", "b.jpg")):
        if name.endswith("npy"): np.save(survey / name, noise(40, 44, i))
        else: Image.fromarray(noise(40, 44, i)).save(survey / name)
    found = predict(segmenter, survey, tmp_path / "out")
    assert found.images["mask"].str.lower().nunique() == 5
    Image.fromarray(noise(40, 44, 9)).save(survey / "b.bmp")  # comes before b.jpg, whose name stays
    again = predict(segmenter, survey, tmp_path / "out").images.set_index("file")["mask"]
    assert again["b.jpg"] == "masks/b.png" and again["b.bmp"] == "masks/b.bmp.png" and again.to_dict().items() >= found.images.set_index("file")["mask"].to_dict().items()


def test_resume_does_only_what_is_left(survey, tmp_path, monkeypatch):
    segmenter, out, done = model(), tmp_path / "out", []
    original = bgcs.masks.predict.read_image
    monkeypatch.setattr(bgcs.masks.predict, "read_image", lambda path, *rest: (done.append(path.name), original(path, *rest))[1])
    whole = predict(segmenter, survey, out)
    first = snapshot(out)
    done.clear()
    predict(segmenter, survey, out)
    assert not done and contents(out) == {name: content for name, (content, _) in first.items()}
    (out / "masks" / "dive0" / "line2.png").unlink()
    Image.fromarray(noise(50, 60, 99)).save(survey / "dive1" / "line3.png")
    again = predict(segmenter, survey, out)
    assert sorted(done) == ["line2.png", "line3.png"] and again.images.set_index("file").height["dive1/line3.png"] == 50 and len(again.images) == len(whole.images)
    with pytest.raises(ValueError, match="resume=True"): predict(segmenter, survey, out, resume=False)


@pytest.mark.parametrize("change, text", [(dict(threshold=0.4), "threshold 0.5, now 0.4"), (dict(overlap=0.25), "overlap 0.5, now 0.25"), (dict(flip="both"), "flip 'none', now 'both'"), (dict(regions=partial(sonar_sides, threshold=90)), "regions None, now"), (dict(min_area=3), "min_area 1, now 3")])
def test_other_settings_are_refused(survey, tmp_path, change, text):
    predict(model(), survey, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    with pytest.raises(ValueError, match=text): predict(model(), survey, tmp_path / "out", **change)
    assert snapshot(tmp_path / "out") == before


def test_another_model_or_other_images_are_refused(survey, tmp_path):
    predict(model(), survey, tmp_path / "out")
    for segmenter, text in ((model(seed=1), "model '"), (model(normalization=Normalization("zscore")), "normalization {")):
        with pytest.raises(ValueError, match=text): predict(segmenter, survey, tmp_path / "out")
    with pytest.raises(ValueError, match="images '"): predict(model(), survey / "dive0", tmp_path / "out")
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"): predict(model(), survey, tmp_path / "out")


def test_a_saved_model_is_the_same_model(survey, tmp_path):
    segmenter = model()
    predict(segmenter, survey, tmp_path / "out")
    before = contents(tmp_path / "out")
    predict(Segmenter.load(segmenter.save(tmp_path / "model")), survey, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_nothing_is_written_over(survey, tmp_path):
    before = snapshot(tmp_path)
    (survey / "file.txt").write_text("mine")
    for out, text in ((survey, "holds the images themselves"), (tmp_path, "holds the images themselves"), (survey / "dive0", "holds other things"), (survey / "file.txt", "is a file")):
        with pytest.raises(ValueError, match=text): predict(model(), survey, out)
    link = tmp_path / "link"
    link.symlink_to(survey)
    with pytest.raises(ValueError, match="holds the images themselves"): predict(model(), survey, link)
    link.unlink()
    (survey / "file.txt").unlink()
    assert snapshot(tmp_path) == before


def spoil(survey):
    "One of each kind of file that cannot be predicted; how each is complained about."
    Image.fromarray(noise(40, 40, channels=3)).save(survey / "colour.png")
    (survey / "empty.png").write_bytes(b"")
    (survey / "words.png").write_text("no image")
    np.save(survey / "objects.npy", np.array([{}], object), allow_pickle=True)
    tifffile.imwrite(survey / "pages.tif", noise(40, 40, channels=5).transpose(2, 0, 1), photometric="minisblack")
    return {"colour.png": "has 3 channels, and the segmenter takes 1", "empty.png": "is empty", "words.png": "is not an image", "objects.npy": "holds Python objects", "pages.tif": "has 5 pages"}


def test_what_headers_tell_is_said_before_anything_is_predicted(survey, tmp_path):
    complaints = spoil(survey)
    with pytest.raises(ImageSetError, match="5 of 11 images") as raised: predict(model(), survey, tmp_path / "out")
    for name, text in complaints.items(): assert f"{name} {text}" in str(raised.value)
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="5 images"): found = predict(model(), survey, tmp_path / "out", on_bad="skip")
    assert len(found.skipped) == 5 and len(found.images) == 11 and (found.images.problem != "").sum() == 5 and "5 could not be predicted" in str(found)
    assert pd.read_csv(tmp_path / "out" / "images.csv").set_index("file").problem["empty.png"].startswith("is empty")


def test_what_only_pixels_tell_is_said_at_the_end(survey, tmp_path):
    tifffile.imwrite(survey / "cut.tif", noise(40, 50))
    whole = (survey / "cut.tif").read_bytes()
    (survey / "cut.tif").write_bytes(whole[:len(whole) // 2])
    np.save(survey / "nothing.npy", np.full((40, 50), np.nan))
    np.save(survey / "loud.npy", np.full((40, 50), 7.0))
    with pytest.raises(ImageSetError, match="What could be predicted is in") as raised: predict(model(), survey, tmp_path / "out")
    for name, text in (("cut.tif", "cannot be decoded"), ("nothing.npy", "shows nothing"), ("loud.npy", "values are floats from 7 to 7")): assert f"{name} {text}" in str(raised.value)
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 6
    (survey / "cut.tif").write_bytes(whole)
    with pytest.warns(UserWarning, match="2 images"): found = predict(model(), survey, tmp_path / "out", on_bad="skip")
    assert found.images.set_index("file").problem["cut.tif"] == ""


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "survey").mkdir()
    with pytest.raises(ImageSetError, match="holds no image"): predict(model(), tmp_path / "survey", tmp_path / "out")
    with pytest.raises(ImageSetError, match="not a folder"): predict(model(), tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "survey" / "a.png").write_bytes(b"")
    with pytest.raises(ImageSetError, match="1 of 1"): predict(model(), tmp_path / "survey", tmp_path / "out", on_bad="skip")
    with pytest.raises(ImageSetError, match="is not there"): predict(model(), [tmp_path / "gone.png"], tmp_path / "out")


@pytest.mark.parametrize("wrong, text", [
    (dict(on_bad="ignore"), "on_bad='ignore' is not known; expected one of 'error', 'skip'"),
    (dict(threshold=50), "0 to 1"),
    (dict(batch_size=0), "batch_size=0"),
    (dict(threads=0), "threads=0"),
    (dict(min_area=0), "min_area=0; expected a whole number, at least 1"),
    (dict(overlap=1.0), "overlap=1.0"),
    (dict(flip="sideways"), "'both'"),
])
def test_wrong_settings(survey, tmp_path, wrong, text):
    with pytest.raises(ValueError, match=text): predict(model(), survey, tmp_path / "out", **wrong)


def test_colours_sixteen_bits_and_pages(tmp_path):
    survey = tmp_path / "survey"
    survey.mkdir()
    Image.fromarray(noise(40, 50, channels=3)).save(survey / "rgb.png")
    Image.fromarray(noise(40, 50, channels=4)).save(survey / "rgba.png")
    tifffile.imwrite(survey / "deep.tif", noise(40, 50, channels=3).astype(np.uint16) * 257, photometric="rgb")
    found = predict(model(3), survey, tmp_path / "rgb", color="rgb")
    assert len(found.images) == 3 and len(predict(model(), survey, tmp_path / "grey", color="gray").images) == 3
    soft = [np.asarray(Image.open(tmp_path / "rgb" / "soft" / name)).astype(float) for name in ("rgb.png", "deep.png")]
    assert np.abs(soft[0] - soft[1]).max() <= 2  # the same picture in 8 and in 16 bits
    tifffile.imwrite(tmp_path / "bands.tif", noise(40, 50, channels=5).transpose(2, 0, 1), photometric="minisblack")
    assert len(predict(model(5), [tmp_path / "bands.tif"], tmp_path / "bands", page="channels").images) == 1
    assert len(predict(model(), [tmp_path / "bands.tif"], tmp_path / "band", page=2).images) == 1


def test_a_geotiff_stays_on_the_map(tmp_path):
    tags = [(33550, "d", 3, (2.0, 2.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 500000.0, 4000000.0, 0), True), (34735, "H", 20, (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633, 1026, 34737, 6, 0), True), (34737, "s", 7, "a map|", True)]
    tifffile.imwrite(tmp_path / "map.tif", noise(60, 80).astype(np.float32) / 255, extratags=tags, metadata=None)
    found = predict(model(), [tmp_path / "map.tif"], tmp_path / "out", threshold=0.5)
    mask = tmp_path / "out" / "masks" / "map.tif"
    assert image_info(mask).georeference == image_info(tmp_path / "map.tif").georeference and image_info(mask).dtype == "uint8"
    assert (found.objects.epsg == 32633).all() and np.allclose(found.objects.x, 500000 + 2 * (found.objects.column + 0.5)) and np.allclose(found.objects.y, 4000000 - 2 * (found.objects.row + 0.5))
    assert (tmp_path / "out" / "soft" / "map.png").is_file() and list(pd.read_csv(tmp_path / "out" / "table.csv"))[-3:] == ["x", "y", "epsg"]


# ---- interruptions

def test_a_full_disk_is_named_and_what_is_done_stays(survey, tmp_path, monkeypatch):
    out, real, calls = tmp_path / "out", os.fsync, []
    def full(fd):
        calls.append(fd)
        if len(calls) > 14: raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full") as raised: predict(model(), survey, out)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    entries = [json.loads(line) for line in (out / "done.jsonl").read_text().splitlines()]
    assert 0 < len(entries) < 6 and not list(out.rglob("*.part"))
    assert predict(model(), survey, out).images.equals(predict(model(), survey, tmp_path / "straight").images)


def test_interrupted_by_a_person(survey, tmp_path, monkeypatch):
    "What is done is in the tables when Ctrl-C ends it, and the rest follows."
    original, calls = bgcs.masks.predict.predict_masks, []
    def stopped(*args):
        calls.append(args)
        if len(calls) == 4: raise KeyboardInterrupt
        return original(*args)
    monkeypatch.setattr(bgcs.masks.predict, "predict_masks", stopped)
    with pytest.raises(KeyboardInterrupt): predict(model(), survey, tmp_path / "out", batch_size=8, threads=1)
    done = pd.read_csv(tmp_path / "out" / "images.csv")
    monkeypatch.undo()
    assert len(done) < 6
    assert contents_of_pictures(predict(model(), survey, tmp_path / "out")) == contents_of_pictures(predict(model(), survey, tmp_path / "straight"))


def contents_of_pictures(found): return {p.relative_to(found.folder).as_posix(): p.read_bytes() for p in found.folder.rglob("*") if p.suffix in (".png", ".csv")}


KILLED = """
import sys, bgcs.masks.predict
sys.path.insert(0, {tests!r})
from test_predict import model
bgcs.masks.predict.predict_files(model(), {survey!r}, {out!r}, tile=32, progress=False)
"""


@pytest.mark.posix
def test_killed_at_any_moment(survey, tmp_path):
    "SIGKILL, over and over, at random moments; in the end all is as if nothing had happened."
    for i in range(6, 40): Image.fromarray(noise(80, 90, i)).save(survey / f"more{i}.png")
    out, rng = tmp_path / "out", np.random.default_rng(0)
    code = KILLED.format(tests=os.path.dirname(__file__), survey=str(survey), out=str(out))
    grown = [0]
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        target = grown[-1] + int(rng.integers(1, 8))
        while child.poll() is None and len(list((out / "masks").rglob("*.png"))) < target: time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        grown.append(len(list((out / "masks").rglob("*.png"))))
    with open(out / "done.jsonl", "a") as file: file.write('{"file": "half a li')
    (out / "masks" / ".x.png.abc.part").write_bytes(b"half")
    assert grown[-1] > 0
    assert contents_of_pictures(predict(model(), survey, out)) == contents_of_pictures(predict(model(), survey, tmp_path / "straight")) and not list(out.rglob("*.part"))


def test_two_at_once_are_refused(survey, tmp_path):
    predict(model(), survey, tmp_path / "out")
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="another process is writing"):
        predict(model(), survey, tmp_path / "out")


def test_the_same_with_any_number_of_threads_and_any_batch(survey, tmp_path):
    found = [predict(model(), survey, tmp_path / f"out{k}", threads=threads, batch_size=size) for k, (threads, size) in enumerate(((1, 64), (4, 5)))]
    for a, b in zip(*(sorted((f.folder / "soft").rglob("*.png")) for f in found)):
        assert np.abs(np.asarray(Image.open(a)).astype(int) - np.asarray(Image.open(b))).max() <= 2


def test_regions_that_fail_name_the_image(tmp_path):
    (tmp_path / "survey").mkdir()
    np.save(tmp_path / "survey" / "a.npy", np.random.default_rng(0).random((40, 50)).astype(np.float32).round(1))
    with pytest.raises(ImageSetError, match="a.npy cannot be divided into regions: threshold is 150"): predict(model(), tmp_path / "survey", tmp_path / "out", regions=sonar_sides)
