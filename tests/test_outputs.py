"""Objects, polygons and files for other programs: read by others, read back here, and refused where they would mislead."""
import json
import shutil
import warnings
from functools import lru_cache, partial
from pathlib import Path

import geopandas
import highdicom
import nibabel
import numpy as np
import pandas as pd
import pycocotools.coco
import pycocotools.mask
import pydicom
import pydicom.data
import pyogrio
import pytest
import rasterio
import tifffile
from PIL import Image
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.measure import label
from test_predict import model, noise

from bgcs.data.annotations import _of_brush, read_labels
from bgcs.data.files import ImageSetError
from bgcs.data.images import from_folders
from bgcs.data.intensity import Normalization
from bgcs.masks.objects import find_objects
from bgcs.masks.predict import predict_files
from bgcs.masks.survey import predict_survey
from bgcs.outputs.formats import (
    Masked, brush_rle, coco_rle, export_masks, read_predictions, to_coco, to_label_studio, write_dicom_seg, write_labels, write_nifti,
)
from bgcs.outputs.polygons import object_polygons, write_polygons

predict = partial(predict_files, tile=32, threshold=0.5, progress=False)
DISC = np.hypot(*np.mgrid[-10:11, -14:15]) <= 7


def speckled(seed=0, h=40, w=50, smooth=1.5):
    "A soft mask with objects of every size and shape, holes, and unseen pixels."
    rng = np.random.default_rng(seed)
    mask = gaussian_filter(rng.random((h, w)), smooth)
    mask = ((mask - mask.min()) / np.ptp(mask)).astype(np.float32)
    mask[5:9, 20:26] = np.nan
    return mask


# ---- objects

def test_without_options_objects_are_connected_pieces():
    for seed in range(5):
        mask = speckled(seed)
        pieces, table = find_objects(mask, 0.55, min_area=4)
        expected = label(mask >= 0.55, connectivity=2)
        for number in range(1, expected.max() + 1):
            own = expected == number
            assert (np.unique(pieces[own]).size, pieces[own][0] > 0) == (1, own.sum() >= 4)
        assert table.area.tolist() == np.bincount(pieces.ravel())[1:].tolist() and pieces.dtype == np.int32


@pytest.mark.parametrize("way", ["distance", "probability"])
def test_splitting_keeps_every_pixel_and_cuts_off_nothing_too_small(way):
    cut = 0
    for seed in range(6):
        mask = speckled(seed, 60, 80, 2)
        whole, parts = (find_objects(mask, 0.5, min_area=9, split=s, split_depth=s and 0.05)[0] for s in (None, way))
        assert ((whole > 0) == (parts > 0)).all()
        sizes = np.bincount(parts.ravel())[1:]
        assert sizes.min() >= 9
        for number in range(1, len(sizes) + 1): assert np.unique(whole[parts == number]).size == 1
        cut += parts.max() - whole.max()
    assert cut > 5


def test_two_discs_that_touch_and_one_that_is_cut_by_the_edge():
    mask = np.zeros((40, 60), np.float32)
    mask[:21, :29] = DISC
    mask[:21, 12:41] = np.maximum(mask[:21, 12:41], DISC)
    mask[30:, 40:] = 1
    pieces = find_objects(mask, split="distance")[0]
    assert pieces.max() == 3 and pieces[10, 12] != pieces[10, 28] and len(np.unique(pieces[30:, 40:])) == 1
    assert find_objects(mask, split="distance", split_depth=6)[0].max() == 2


def test_holes():
    ring = np.ones((9, 9), np.float32)
    ring[[0, -1]], ring[:, [0, -1]] = 0, 0
    ring[3:6, 3:6] = 0
    def area(mask, **options): return find_objects(mask, **options)[1].area.tolist()
    assert area(ring, fill_holes=8) == [40] and area(ring, fill_holes=9) == [49]
    unseen, island, at_edge = ring.copy(), ring.copy(), ring[:, 4:]
    unseen[4, 4], island[4, 4] = np.nan, 1
    assert area(unseen, fill_holes=99) == [40] and area(island, fill_holes=99) == [40, 1] and area(at_edge, fill_holes=99) == [28 - 6]
    assert area(island, fill_holes=8, min_area=2) == [40] and area(island, fill_holes=9, min_area=2) == [49]  # the speck goes first
    for seed in range(4):
        mask = np.nan_to_num(speckled(seed, 40, 40))
        largest = label(mask >= 0.4, connectivity=2)
        one = (largest == np.bincount(largest.ravel())[1:].argmax() + 1).astype(np.float32)
        assert (find_objects(one, fill_holes=1600)[0] > 0).sum() == binary_fill_holes(one).sum()


@pytest.mark.parametrize("options", [{}, {"fill_holes": 5}, {"split": "distance"}, {"split": "probability", "fill_holes": 3, "min_area": 2}])
def test_nothing_everything_and_single_pixels(options):
    for empty in (np.zeros((5, 6), np.float32), np.full((5, 6), np.nan, np.float32)):
        pieces, table = find_objects(empty, **options)
        assert not pieces.any() and len(table) == 0 and pieces.shape == (5, 6)
    assert find_objects(np.ones((5, 6), np.float32), **options)[1].area.tolist() == [30]
    one = np.zeros((4, 4), np.float32)
    one[1, 2] = one[2, 1] = 0.9  # touch at a corner
    assert find_objects(one, **options)[1].area.tolist() == [2]
    assert find_objects(np.full((3, 3), 0.2, np.float32), 0.0, **options)[1].area.tolist() == [9]
    assert find_objects(np.ones((1, 1), np.float32), **options | {"min_area": 1})[1].area.tolist() == [1]


@pytest.mark.parametrize("wrong, text", [
    (dict(split="watershed"), "split='watershed' is not known; expected one of 'distance', 'probability'"),
    (dict(split_depth=1.0), "split_depth=1.0; expected a number above 0, and split="),
    (dict(split="distance", split_depth=0), "split_depth=0; expected a number above 0"),
    (dict(fill_holes=1.5), "fill_holes=1.5; expected a whole number of pixels, at least 0"),
    (dict(min_area=0), "min_area=0"), (dict(threshold=2), "threshold=2; expected 0 to 1"),
])
def test_wrong_options(wrong, text):
    with pytest.raises(ValueError, match=text): find_objects(np.eye(3, dtype=np.float32), **wrong)


# ---- polygons

def same(one, other):
    "Whether two tables hold the same polygons; means of probabilities may differ in their last digits."
    one_table, other_table = (pd.DataFrame(table.drop(columns="geometry")).astype(float) for table in (one, other))
    return list(one) == list(other) and np.allclose(one_table, other_table, equal_nan=True) and one.geometry.geom_equals(other.geometry).all()


@pytest.mark.parametrize("options", [{}, {"min_area": 5, "fill_holes": 6}, {"split": "distance"}, {"split": "probability", "split_depth": 0.02, "min_area": 3, "fill_holes": 4}])
def test_polygons_are_the_objects_whatever_the_blocks(options):
    for seed, smooth, threshold in ((0, 1.5, 0.55), (1, 0.6, 0.6), (2, 3, 0.4)):
        mask = speckled(seed, 61, 83, smooth)
        found, (pieces, table) = object_polygons(mask, threshold, **options), find_objects(mask, threshold, **options)
        assert found.area_px.tolist() == table.area.tolist() and found.geometry.is_valid.all()
        assert np.allclose(found.geometry.area, found.area_px) and np.allclose(found.mean_probability, table.mean_probability)
        shapes = zip(found.geometry, found.object)
        assert (rasterio.features.rasterize(shapes, pieces.shape) == pieces).all()
        for block in (42, 47, 60): assert same(object_polygons(mask, threshold, block=block, **options), found), (seed, block)


def test_a_spiral_through_all_blocks_is_one_object():
    mask = np.zeros((64, 64), np.float32)
    for k in range(0, 32, 4):
        mask[k, k:64 - k] = mask[63 - k, k:64 - k] = mask[k:64 - k, 63 - k] = 1
        mask[k + 4:64 - k, k] = mask[k + 4, k:k + 4] = 1
    assert label(mask, connectivity=2).max() == 1
    for block in (32, 41): assert same(object_polygons(mask, block=block), object_polygons(mask))
    with pytest.raises(ImageSetError, match="an object spans 64×64 pixels, more than are read at once .3,844.. Say a larger block="):
        object_polygons(mask, block=31)


def test_no_objects_and_nothing_but_object(tmp_path):
    for mask, n in ((np.zeros((6, 7), np.float32), 0), (np.full((6, 7), np.nan, np.float32), 0), (np.ones((6, 7), bool), 1)):
        found = object_polygons(mask, block=5)
        for name in ("a.gpkg", "a.geojson"):
            write_polygons(found, tmp_path / name, overwrite=True)
            with warnings.catch_warnings(action="ignore"): back = geopandas.read_file(tmp_path / name)
            assert len(back) == len(found) == n
            if n: assert back.geometry[0].bounds == (0, 0, 7, 6)


def raster(path, values, **options):
    options = dict(driver="GTiff", height=values.shape[0], width=values.shape[1], count=1, dtype=values.dtype) | options
    with warnings.catch_warnings(action="ignore"):  # of rasters on no map
        with rasterio.open(path, "w", **options) as file: file.write(values, 1)
    return path


UTM = dict(crs="EPSG:32633", transform=rasterio.Affine(2, 0, 500000, 0, -2, 5000000))


def test_what_numbers_of_a_raster_mean(tmp_path):
    mask = speckled(3)
    expected = object_polygons(mask, 0.55)
    as_float = raster(tmp_path / "float.tif", mask, nodata=np.nan)
    assert same(object_polygons(as_float, 0.55), expected)
    binary = np.where(np.isnan(mask), 127, np.where(mask >= 0.55, 255, 0)).astype(np.uint8)
    found = object_polygons(raster(tmp_path / "mask.tif", binary, nodata=127))
    assert found.area_px.tolist() == expected.area_px.tolist() and (found.mean_probability == 1).all()
    zero_one = raster(tmp_path / "zero_one.tif", (binary == 255).astype(np.uint8))
    with pytest.raises(ImageSetError, match="holds 0 and 1 alone, of uint8, whose largest number counts as 1. Say scale=1"): object_polygons(zero_one)
    assert object_polygons(zero_one, scale=1).area_px.tolist() == expected.area_px.tolist()
    deep = np.nan_to_num(np.rint(mask * 65535)).astype(np.uint16)
    assert object_polygons(raster(tmp_path / "deep.tif", deep), 0.55).area_px.tolist() == expected.area_px.tolist()
    with pytest.raises(ImageSetError, match="holds numbers of type int32"): object_polygons(raster(tmp_path / "labels.tif", binary.astype(np.int32)))
    with pytest.raises(ValueError, match="holds values from 0 to 255; expected probabilities"): object_polygons(raster(tmp_path / "grey.tif", binary.astype(np.float32)))
    with rasterio.open(tmp_path / "rgb.tif", "w", driver="GTiff", height=4, width=4, count=3, dtype="uint8") as file: file.write(np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ImageSetError, match="has 3 bands"): object_polygons(tmp_path / "rgb.tif")
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(ImageSetError, match="text.tif cannot be read"): object_polygons(tmp_path / "text.tif")


def test_on_maps(tmp_path):
    mask = speckled(4)
    path = raster(tmp_path / "utm.tif", mask, nodata=np.nan, **UTM)
    found = object_polygons(path, 0.55)
    assert np.allclose(found["area"], 4 * found.area_px) and np.allclose(found.geometry.area, found["area"])
    assert found.crs.to_epsg() == 32633 and found.attrs["area"] == "in square metre"
    write_polygons(found, tmp_path / "a.gpkg")
    assert pyogrio.read_info(tmp_path / "a.gpkg")["crs"] == "EPSG:32633" and same(geopandas.read_file(tmp_path / "a.gpkg"), found)
    row, column = np.argwhere(find_objects(mask, 0.55)[0] == 1)[0]
    point = geopandas.points_from_xy([500000 + 2 * (column + 0.5)], [5000000 - 2 * (row + 0.5)])[0]
    assert found.geometry[0].contains(point)

    degrees = raster(tmp_path / "degrees.tif", mask, nodata=np.nan, crs="EPSG:4326", transform=rasterio.Affine(1e-4, 0, 15, 0, -1e-4, 45))
    assert "area" not in object_polygons(degrees, 0.55)
    turned = dict(UTM, transform=rasterio.Affine(0, 2, 500000, 2, 0, 5000000))
    assert np.allclose(object_polygons(raster(tmp_path / "turned.tif", mask, nodata=np.nan, **turned), 0.55)["area"], found["area"])

    local = object_polygons(mask, 0.55, transform=UTM["transform"])
    with pytest.raises(ValueError, match="whose reference system is unknown"): write_polygons(local, tmp_path / "local.geojson")
    assert same(geopandas.read_file(write_polygons(local, tmp_path / "local.gpkg")), local)


def test_geojson_is_that_of_rfc_7946(tmp_path):
    found = object_polygons(raster(tmp_path / "utm.tif", speckled(5), nodata=np.nan, **UTM), 0.5, simplify=0.7)
    made = json.loads(write_polygons(found, tmp_path / "a.geojson").read_text())
    assert set(made) == {"type", "bgcs", "features"} and made["type"] == "FeatureCollection"
    def signed_area(ring): return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:]))
    n_holes = 0
    for feature in made["features"]:
        assert set(feature) == {"type", "properties", "geometry"} and feature["properties"]["simplified_px"] == 0.7
        kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
        for outer, *holes in [coordinates] if kind == "Polygon" else coordinates:
            for ring in (outer, *holes): assert ring[0] == ring[-1] and len(ring) >= 4 and all(14 < x < 16 and 44 < y < 46 for x, y in ring)
            assert signed_area(outer) > 0 and all(signed_area(hole) < 0 for hole in holes)
            n_holes += len(holes)
    assert n_holes and "0.7 pixels" in made["bgcs"]["simplified_px"] and "WGS84" in made["bgcs"]["coordinates"]


def test_a_file_is_not_replaced_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    found = object_polygons(speckled(), 0.5)
    path = write_polygons(found, tmp_path / "a.gpkg")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="is there already; say overwrite=True"): write_polygons(found, path)
    def full(*args, **options): raise OSError("disk full")
    monkeypatch.setattr(pyogrio, "write_dataframe", full)
    with pytest.raises(OSError): write_polygons(found, path, overwrite=True)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.gpkg"]


# ---- formats

SIZES = {"dive 1/a.png": (40, 60), "dive 1/b c.png": (64, 48), "dive 2/a.png": (33, 70), "dive 2/größe.png": (50, 50), "a.png": (40, 60)}


@lru_cache
def _made(root):
    root = Path(root)
    for k, (name, size) in enumerate(SIZES.items()):
        path = root / "survey" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(*size, k)).save(path)
    return predict(model(), root / "survey", root / "found", min_area=3, overlays=False)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory): return _made(tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def survey(predicted): return predicted.folder.parent / "survey"


def test_predictions_are_read_as_they_were_made(predicted):
    images = {image.file: image for image in read_predictions(predicted.folder)}
    assert list(images) == sorted(SIZES)
    for file, image in images.items():
        table = predicted.objects[predicted.objects.file == file].reset_index(drop=True)
        assert image.pieces.shape == SIZES[file] and len(table) > 3
        ours = image.table
        assert (ours.area == table.area).all() and np.abs(ours.mean_probability - table.mean_probability).max() < 1e-4
    only = list(read_predictions(predicted, files=["dive 2/a.png"], split="distance", split_depth=0.3))
    assert [image.file for image in only] == ["dive 2/a.png"] and only[0].pieces.max() > images["dive 2/a.png"].pieces.max()
    assert ((only[0].pieces > 0) == (images["dive 2/a.png"].pieces > 0)).all()
    with pytest.raises(ValueError, match="1 of files= have no mask in .* such as 'dive 2/b.png'"): list(read_predictions(predicted, files=["dive 2/b.png"]))
    with pytest.raises(TypeError, match="splitt is no option .did you mean 'split'"): list(read_predictions(predicted, splitt="distance"))


def test_split_and_filled_predictions(survey, predicted, tmp_path):
    options = dict(split="distance", split_depth=0.5, fill_holes=4, min_area=3)
    found = predict(model(), survey, tmp_path / "out", **options)
    assert len(found.objects) > len(predicted.objects)
    for image in read_predictions(found):
        assert image.table.area.tolist() == found.objects[found.objects.file == image.file].area.tolist()
    with pytest.raises(ValueError, match="split 'distance', now None"): predict(model(), survey, tmp_path / "out", min_area=3)
    stamp = predicted.folder / "settings.json"
    assert not {"split", "fill_holes", "split_depth"} & set(json.loads(stamp.read_text()))  # so that older folders can be gone on with
    assert len(predict(model(), survey, predicted.folder, min_area=3, overlays=False).objects) == len(predicted.objects)


def test_coco_is_read_by_pycocotools(predicted, tmp_path, capsys):
    (path,) = export_masks(predicted, tmp_path / "a.json", "coco", category="sea urchin")
    read = pycocotools.coco.COCO(path)
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == ["sea urchin"]
    for record, image in zip(read.loadImgs(read.getImgIds()), read_predictions(predicted)):
        assert (record["file_name"], record["height"], record["width"]) == (image.file, *image.pieces.shape)
        own = read.loadAnns(read.getAnnIds(record["id"]))
        assert len(own) == image.pieces.max() > 0
        for number, one in enumerate(own, 1):
            mask = read.annToMask(one)
            assert (mask == (image.pieces == number)).all() and one["area"] == mask.sum()
            assert one["bbox"] == pycocotools.mask.toBbox(read.annToRLE(one)).tolist() and 0.5 <= one["score"] <= 1
    scored = read.loadRes([{key: one[key] for key in ("image_id", "category_id", "segmentation", "score")} for one in read.dataset["annotations"]])
    assert len(scored.getAnnIds()) == len(predicted.objects)
    capsys.readouterr()


def test_polygons_of_coco_cannot_hold_holes(tmp_path, capsys):
    ring = DISC.copy()
    ring[8:13, 12:17] = False
    image = Masked("a.png", ring.astype(np.int32))
    with pytest.warns(UserWarning, match="1 objects have holes, which polygons of COCO cannot hold; they are filled"): made = to_coco([image], segmentation="polygons")
    (one,) = made["annotations"]
    assert (pycocotools.mask.decode(pycocotools.mask.merge(pycocotools.mask.frPyObjects(one["segmentation"], *ring.shape))) == DISC).mean() > 0.97
    assert one["area"] == ring.sum() and "score" not in one
    pair = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert len(to_coco([Masked("b.png", pair)], segmentation="polygons")["annotations"][0]["segmentation"]) == 2


def test_runs_of_any_mask():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 90), (300, 1), (37, 53), (200, 150)):
        for share in (0, 0.01, 0.5, 1):
            mask = rng.random(shape) < share
            assert (pycocotools.mask.decode(coco_rle(mask)) == mask).all()
            assert (_of_brush(brush_rle(mask), shape) == mask).all()


def equal_sized(tmp_path):
    "Images of one size, since a set has one; two of one name."
    for k, name in enumerate(("with/dive 1/a.png", "with/dive 2/a.png", "with/größe 3.png", "without/b.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40, 60, k)).save(path)
    found = predict(model(), tmp_path / "images" / "with", tmp_path / "found", min_area=3, overlays=False)
    return found, from_folders(tmp_path / "images" / "with", tmp_path / "images" / "without", progress=False)


def test_masks_come_back_pixel_for_pixel(tmp_path):
    found, data = equal_sized(tmp_path)
    truth = [image.pieces > 0 for image in read_predictions(found)]
    def back(path, **options):
        masks = read_labels(path, data, **options)["masks"]
        assert len(masks) == 3
        for i, mask in enumerate(truth): assert (masks[i].numpy() == mask).all(), (path, i)
    back(export_masks(found, tmp_path / "a.json", "coco")[0])
    for segmentation in ("rle", "polygons"):
        with warnings.catch_warnings(action="ignore"): tasks = to_label_studio(read_predictions(found), segmentation=segmentation, prefix="/data/local-files/?d=set/")
        assert tasks[2]["data"]["image"] == "/data/local-files/?d=set/gr%C3%B6%C3%9Fe%203.png"
        for task in tasks: task["annotations"] = task.pop("predictions")
        (tmp_path / "tasks.json").write_text(json.dumps(tasks))
        if segmentation == "rle": back(tmp_path / "tasks.json")
        else: assert len(read_labels(tmp_path / "tasks.json", data)["masks"]) == 3
    export_masks(found, tmp_path / "labels", "labels")
    back(tmp_path / "labels")
    export_masks(found, tmp_path / "binary", "labels", instances=False)
    back(tmp_path / "binary")
    back(found.folder / "masks")


def test_a_correction_in_napari_comes_back(tmp_path):
    "napari saves a layer of labels by tifffile, in the type of the layer, under any name that the person types."
    found, data = equal_sized(tmp_path)
    (path, *_) = export_masks(found, tmp_path / "labels", "labels")
    layer = tifffile.imread(path).astype(np.int64)
    layer[layer == 1] = 0
    layer[30:36, 40:50] = layer.max() + 1
    tifffile.imwrite(path, layer, compression="zlib")
    masks = read_labels(tmp_path / "labels", data)["masks"]
    assert (masks[0].numpy() == (layer > 0)).all() and (layer != list(read_predictions(found))[0].pieces).any()


def test_label_studio_tasks_are_what_it_imports(predicted, tmp_path):
    tasks = json.loads(export_masks(predicted, tmp_path / "t.json", "label-studio", category="ship")[0].read_text())
    assert [task["data"]["image"] for task in tasks] == sorted(SIZES)
    for task, image in zip(tasks, read_predictions(predicted)):
        (prediction,) = task["predictions"]
        assert 0 <= prediction["score"] <= 1 and isinstance(prediction["model_version"], str)
        assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"]) == image.pieces.max()
        for number, region in enumerate(prediction["result"], 1):
            assert (region["original_height"], region["original_width"]) == image.pieces.shape and region["image_rotation"] == 0
            assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "label", "image")
            assert region["value"]["brushlabels"] == ["ship"] and region["value"]["format"] == "rle"
            assert (_of_brush(region["value"]["rle"], image.pieces.shape) == (image.pieces == number)).all()


def test_unseen_pixels(tmp_path):
    (tmp_path / "survey").mkdir()
    image = noise(40, 60).astype(np.float32) / 255
    image[:10] = np.nan
    raster(tmp_path / "survey" / "map.tif", image, nodata=np.nan, **UTM)
    found = predict(model(), tmp_path / "survey", tmp_path / "found", min_area=3, overlays=False)
    (one,) = read_predictions(found)
    assert one.unseen[:10].all() and not one.unseen[10:].any() and not one.pieces[:10].any() and one.pieces.any()
    for instances, kind in ((True, "int32"), (False, "int16")):
        (path,) = export_masks(found, tmp_path / kind, "labels", instances=instances)
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == 32633 and file.transform == UTM["transform"] and file.dtypes == (kind,)
            values = file.read(1)
        assert (values[:10] == -1).all() and ((values[10:] > 0) == (one.pieces[10:] > 0)).all()
        assert not instances or (values[10:] == one.pieces[10:]).all()
    outlines = geopandas.read_file(export_masks(found, tmp_path / "o.gpkg", "geopackage")[0])
    assert outlines.crs.to_epsg() == 32633 and outlines.area_px.sum() == (one.pieces > 0).sum() and np.allclose(outlines.geometry.area, 4 * outlines.area_px)
    degrees = geopandas.read_file(export_masks(found, tmp_path / "o.geojson", "geojson", simplify=1.0)[0])
    assert (degrees.simplified_px == 1).all() and degrees.total_bounds[0] > 14.9 and (degrees.file == "map.tif").all()
    assert object_polygons(tmp_path / "found" / "soft" / "map.png", min_area=3).area_px.tolist() == one.table.area.tolist()


def test_a_picture_with_a_world_file_stays_in_place(tmp_path):
    (tmp_path / "survey").mkdir()
    Image.fromarray(noise(40, 60)).save(tmp_path / "survey" / "x.png")
    (tmp_path / "survey" / "x.pgw").write_text("2\n0\n0\n-2\n500001\n4999999\n")
    (tmp_path / "survey" / "x.prj").write_text(rasterio.crs.CRS.from_epsg(32633).to_wkt())
    found = predict(model(), tmp_path / "survey", tmp_path / "found", overlays=False)
    (path,) = export_masks(found, tmp_path / "labels", "labels")
    with rasterio.open(path) as file: assert file.transform == UTM["transform"]
    outlines = geopandas.read_file(export_masks(found, tmp_path / "o.gpkg", "geopackage")[0])
    assert outlines.crs.to_epsg() == 32633 and 500000 <= outlines.total_bounds[0] < outlines.total_bounds[2] <= 500120


def test_images_on_several_maps_or_none_are_not_mixed(tmp_path):
    (tmp_path / "survey").mkdir()
    image = noise(40, 60)
    raster(tmp_path / "survey" / "a.tif", image, **UTM)
    raster(tmp_path / "survey" / "b.tif", image, **dict(UTM, crs="EPSG:32634"))
    found = predict(model(), tmp_path / "survey", tmp_path / "found", overlays=False)
    with pytest.raises(ImageSetError, match="lie on several maps, or on none: a.tif .*b.tif .*Export them apart: files="): export_masks(found, tmp_path / "o.gpkg", "geopackage")
    both = geopandas.read_file(export_masks(found, tmp_path / "o.geojson", "geojson")[0])
    assert set(both.file) == {"a.tif", "b.tif"} and both.total_bounds[2] - both.total_bounds[0] > 5
    export_masks(found, tmp_path / "a.gpkg", "geopackage", files="a.tif")
    Image.fromarray(image).save(tmp_path / "survey" / "c.png")
    found = predict(model(), tmp_path / "survey", tmp_path / "found", overlays=False)
    with pytest.raises(ImageSetError, match="or on none"): export_masks(found, tmp_path / "p.geojson", "geojson")


def test_nifti_lies_where_the_image_lies(tmp_path):
    (tmp_path / "survey").mkdir()
    affine = np.array([[0, -0.7, 0, 30], [0.7, 0, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    volume = np.stack([noise(40, 60, k) for k in range(3)], -1)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "survey" / "scan.nii.gz")
    found = predict(model(), tmp_path / "survey", tmp_path / "found", page=1, overlays=False)
    (one,) = read_predictions(found)
    (path,) = export_masks(found, tmp_path / "nifti", "nifti")
    back = nibabel.load(path)
    assert path.name == "scan.nii.gz" and (np.asarray(back.dataobj)[..., 0] == one.pieces).all() and back.get_data_dtype() == np.int32
    assert np.allclose(back.affine @ [0, 0, 0, 1], affine @ [0, 0, 1, 1]) and np.allclose(back.affine[:, :3], affine[:, :3])
    assert len(object_polygons(tmp_path / "found" / "soft" / "scan.nii.gz")) == one.pieces.max()


HOUNSFIELD = Normalization("range", -1000, 1200)


def dicom_survey(folder, n=2):
    folder.mkdir()
    source = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    source.preamble = bytes(128)  # its own begins like a TIFF
    for k in range(n):
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        source.ImagePositionPatient = [0, 0, 5 * k]
        source.save_as(folder / f"slice {k}.dcm")
    return folder


def test_dicom_segmentations_are_of_their_images(tmp_path):
    survey = dicom_survey(tmp_path / "survey")
    found = predict(model(normalization=HOUNSFIELD), survey, tmp_path / "found", overlays=False)
    paths = export_masks(found, tmp_path / "seg", "dicom-seg", category="lesion")
    for path, image in zip(paths, read_predictions(found)):
        seg, source = highdicom.seg.segread(path), pydicom.dcmread(survey / image.file)
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "AccessionNumber"): assert getattr(seg, name) == getattr(source, name)
        assert seg.SOPClassUID == pydicom.uid.SegmentationStorage and seg.SeriesInstanceUID != source.SeriesInstanceUID and seg.Modality == "SEG"
        read = seg.get_pixels_by_source_instance([source.SOPInstanceUID])
        assert (read[0, :, :, 0] == (image.pieces > 0)).all() and image.pieces.any()
        assert seg.get_segment_description(1).SegmentLabel == "lesion" and seg.get_segment_description(1).SegmentAlgorithmType == "AUTOMATIC"
        assert (pydicom.dcmread(path).pixel_array.squeeze() == (image.pieces > 0)).all()
    image = Masked("slice 0.dcm", np.zeros((128, 128), np.int32), source=survey / "slice 0.dcm")
    write_dicom_seg(image, tmp_path / "empty.dcm")
    assert not pydicom.dcmread(tmp_path / "empty.dcm").pixel_array.any()
    several = np.zeros((128, 128), np.int32)
    several[3:6, 4:9], several[50:60, 50:60] = 1, 2
    write_dicom_seg(Masked("slice 0.dcm", several, source=survey / "slice 0.dcm"), tmp_path / "several.dcm", instances=True)
    seg = highdicom.seg.segread(tmp_path / "several.dcm")
    read = seg.get_pixels_by_source_instance([pydicom.dcmread(survey / "slice 0.dcm").SOPInstanceUID], combine_segments=True)
    assert seg.number_of_segments == 2 and (read[0] == several).all()


def test_dicom_segmentations_need_dicom_images(predicted, tmp_path):
    with pytest.raises(ImageSetError, match="a.png is no DICOM file; a DICOM segmentation is of DICOM images alone"): export_masks(predicted, tmp_path / "seg", "dicom-seg")
    survey = dicom_survey(tmp_path / "survey")
    found = predict(model(normalization=HOUNSFIELD), survey, tmp_path / "found", overlays=False)
    shutil.move(survey, tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="2 images are not found in .*: slice 0.dcm, slice 1.dcm. Say images="): export_masks(found, tmp_path / "dicom", "dicom-seg")
    assert not (tmp_path / "dicom").exists()
    assert len(export_masks(found, tmp_path / "dicom", "dicom-seg", images=tmp_path / "moved")) == 2


def test_without_soft_masks(survey, tmp_path):
    found = predict(model(), survey, tmp_path / "found", min_area=3, soft=False, overlays=False)
    made = json.loads(export_masks(found, tmp_path / "a.json", "coco")[0].read_text())
    assert len(made["annotations"]) == len(found.objects) and not any("score" in one for one in made["annotations"])
    assert "score" not in json.loads(export_masks(found, tmp_path / "t.json", "label-studio")[0].read_text())[0]["predictions"][0]
    outlines = geopandas.read_file(export_masks(found, tmp_path / "o.gpkg", "geopackage")[0])
    assert outlines.mean_probability.isna().all() and len(outlines) == len(found.objects)
    properties = json.loads(export_masks(found, tmp_path / "o.geojson", "geojson")[0].read_text())["features"][0]["properties"]
    assert properties["mean_probability"] is None
    export_masks(found, tmp_path / "labels", "labels", split="distance")
    for options in (dict(threshold=0.4), dict(split="probability"), dict(fill_holes=3), dict(min_area=1)):
        with pytest.raises(ImageSetError, match="holds no soft mask of a.png, which these options need; predict with soft=True"):
            export_masks(found, tmp_path / "b.json", "coco", **options)
    assert not (tmp_path / "b.json").exists()


def test_a_threshold_of_its_own(predicted, tmp_path):
    low, high = (json.loads(export_masks(predicted, tmp_path / f"{t}.json", threshold=t)[0].read_text())["annotations"] for t in (0.3, 0.7))
    assert sum(one["area"] for one in low) > sum(one["area"] for one in high) > 0


@pytest.mark.parametrize("format, name", [("coco", "a.json"), ("label-studio", "t.json"), ("labels", "l"), ("nifti", "n"), ("geojson", "o.geojson"), ("geopackage", "o.gpkg")])
def test_no_object_anywhere(survey, tmp_path, format, name):
    found = predict(model(), survey, tmp_path / "found", threshold=1.0, overlays=False)
    assert len(found.objects) == 0
    paths = export_masks(found, tmp_path / name, format)
    assert paths and all(path.is_file() for path in paths)
    if format == "coco": assert json.loads(paths[0].read_text())["annotations"] == [] and len(json.loads(paths[0].read_text())["images"]) == len(SIZES)
    if format == "labels": assert not any(tifffile.imread(path).any() for path in paths) and len(paths) == len(SIZES)


def test_many_objects(tmp_path):
    mask = np.zeros((80, 80), np.float32)
    mask[::2, ::2] = 1
    pieces = np.zeros(mask.shape, np.int32)
    pieces[::2, ::2] = np.arange(1, 1601).reshape(40, 40)
    assert (find_objects(mask)[0] == pieces).all()
    write_labels(Masked("a.png", pieces), tmp_path / "a.tif")
    assert (tifffile.imread(tmp_path / "a.tif") == pieces).all() and (tmp_path / "a.tif").stat().st_size < pieces.nbytes / 2
    write_nifti(Masked("a.png", pieces), tmp_path / "a.nii")
    assert (np.asarray(nibabel.load(tmp_path / "a.nii").dataobj) == pieces).all()
    assert len(object_polygons(mask, block=33)) == 1600


def test_what_is_there_is_not_replaced(predicted, tmp_path):
    for format, name in (("coco", "a.json"), ("labels", "labels"), ("geopackage", "o.gpkg")):
        (first, *_) = export_masks(predicted, tmp_path / name, format)
        before = first.read_bytes()
        with pytest.raises(FileExistsError, match="are there already, such as .*; choose another place, or say overwrite=True"): export_masks(predicted, tmp_path / name, format, threshold=0.9)
        assert first.read_bytes() == before
        export_masks(predicted, tmp_path / name, format, threshold=0.9, overwrite=True)
        assert first.read_bytes() != before
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("out, format, options, error, text", [
    ("a.json", "coko", {}, ValueError, "format='coko' is not known .did you mean 'coco'"),
    ("a", "coco", {}, ValueError, "is one file for the format 'coco'; expected a name that ends in .json"),
    ("a.json", "coco", {"prefix": "x"}, TypeError, "prefix is no option of the format 'coco'; these are: category, segmentation, threshold"),
    ("a.json", "coco", {"segmentation": "polygon"}, ValueError, "did you mean 'polygons'"),
    ("labels", "labels", {"instance": True}, TypeError, "did you mean 'instances'"),
    ("a.json", "coco", {"images": "nowhere"}, FileNotFoundError, "images=nowhere is no folder"),
    ("a.json", "coco", {"files": []}, ValueError, "holds no mask to export"),
    ("blocked/a.json", "coco", {}, NotADirectoryError, "blocked cannot be written .it is a file.. Choose another place: out="),
    ("blocked", "labels", {}, NotADirectoryError, "blocked cannot be written .it is a file.. Choose another place: out="),
])
def test_wrong_exports(predicted, tmp_path, out, format, options, error, text):
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(error, match=text): export_masks(predicted, tmp_path / out, format, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["blocked"]


def test_folders_that_are_no_predictions_and_images_that_failed(survey, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no images.csv, so it isn't what predict_files writes"): export_masks(survey, tmp_path / "a.json")
    shutil.copytree(survey, tmp_path / "survey")
    (tmp_path / "survey" / "bad.png").write_bytes(b"nothing")
    with warnings.catch_warnings(action="ignore"): found = predict(model(), tmp_path / "survey", tmp_path / "found", on_bad="skip", overlays=False)
    with pytest.warns(UserWarning, match="1 images could not be predicted and are left out: bad.png"): made = export_masks(found, tmp_path / "a.json")
    assert len(json.loads(made[0].read_text())["images"]) == len(SIZES)
    (found.folder / "masks" / "a.png").unlink()
    with pytest.raises(ImageSetError, match="masks/a.png is not there, the mask of a.png; call predict_files again"): export_masks(found, tmp_path / "b.json", files="a.png")


@pytest.fixture(scope="module")
def large_survey(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    source = raster(root / "map.tif", noise(300, 260), **UTM)
    return predict_survey(model(), source, root / "found", tile=32, overlap=0, threshold=0.45, progress=False, part=None)


@pytest.mark.parametrize("of", ["what it gave", "its folder"])
def test_a_survey_becomes_polygons(large_survey, of, tmp_path):
    given = large_survey if of == "what it gave" else large_survey.folder
    outlines = geopandas.read_file(export_masks(given, tmp_path / "o.gpkg", "geopackage", min_area=3)[0])
    with rasterio.open(large_survey.mask) as file: marked = file.read(1) == 1
    pieces, n = label(marked, connectivity=2, return_num=True)
    sizes = np.bincount(pieces.ravel())[1:]
    assert outlines.crs.to_epsg() == 32633 and n > 10
    assert sorted(outlines.area_px) == sorted(sizes[sizes >= 3])
    assert np.allclose(outlines.geometry.area, 4 * outlines.area_px)


@pytest.mark.parametrize("format, given, error, said", [
    ("coco", {}, ValueError, "is a survey; expected 'geojson' or 'geopackage'"),
    ("geojson", {"files": ["map.tif"]}, ValueError, "files= chooses among images"),
    ("geojson", {"category": "ship"}, TypeError, "category is no option of the format"),
])
def test_what_a_survey_does_not_become(large_survey, format, given, error, said, tmp_path):
    with pytest.raises(error, match=said): export_masks(large_survey, tmp_path / "out.geojson", format, **given)
    assert not list(tmp_path.iterdir())
