"Labels in files: COCO, Label Studio, folders of masks and scribbles."
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from bgcs.data.annotations import _decompressed, _of_brush, _of_runs, read_labels
from bgcs.data.files import ImageSetError
from bgcs.data.images import from_arrays, from_files, from_folders
from bgcs.objective.labels import Labels

H, W = 24, 32
TEXTURE = np.random.default_rng(0).integers(0, 200, (H, W)).astype(np.uint8)
SQUARE = np.zeros((H, W), bool)
SQUARE[4:12, 10:20] = True
CORNERS = [10, 4, 20, 4, 20, 12, 10, 12]


@pytest.fixture
def folder(tmp_path):
    "Four object images, `dive/0.png` to `dive/3.png`, and two of background, one of them of the same name."
    for k in range(6):
        part = tmp_path / ("objects/dive" if k < 4 else "backgrounds")
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(TEXTURE, k, 1)).save(part / f"{k if k < 5 else 0}.png")
    return tmp_path


def opened(folder, **options): return from_folders(folder / "objects", folder / "backgrounds", progress=False, **options)


def coco(folder, *annotations, images=range(4), **more):
    images = [{"id": k, "file_name": f"{k}.png", "height": H, "width": W} for k in images]
    kinds = [{"id": 7, "name": "ship"}, {"id": 8, "name": "quay"}]
    made = {"images": images, "annotations": list(annotations), "categories": kinds} | more
    (folder / "coco.json").write_text(json.dumps(made))
    return folder / "coco.json"


def annotation(image, category=7, **more): return {"id": 1, "image_id": image, "category_id": category} | more


def studio(folder, *tasks):
    (folder / "studio.json").write_text(json.dumps(list(tasks)))
    return folder / "studio.json"


def task(name, *regions, **more):
    found = {"id": 1, "updated_at": "2026-01-02", "result": list(regions)} | more
    return {"id": 5, "data": {"image": name}, "annotations": [found]}


def region(kind, category="ship", size=(H, W), **value):
    value = value | {kind: [category]}
    return {"type": kind, "value": value, "original_height": size[0], "original_width": size[1]}


def percent(corners): return [[100 * x / W, 100 * y / H] for x, y in zip(corners[::2], corners[1::2])]


def runs(mask):
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    return np.diff([0, *changes, mask.size]).tolist()


def packed(mask):
    "A mask as Label Studio's brush: runs of one value each, of 16 bits."
    values = np.repeat(mask.ravel(), 4).astype(int) * 255
    bits = f"{len(values):032b}{7:05b}" + f"{15:04b}" * 4
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(values)]): bits += f"100{end - start - 1:016b}{values[start]:08b}"
    return [int(bits[k:k + 8].ljust(8, "0"), 2) for k in range(0, len(bits), 8)]


def mask_of(found, i=0): return found["masks"][i].numpy()


# what pycocotools 2.0.11 writes of a disc of radius 9.5 about the middle of 24×32 pixels
DISC, COMPRESSED = np.hypot(*np.mgrid[-12:12, -16:16]) <= 9.5, r"""a57?4M2N2N2O0O2O000000000001N101N2N2N3LY4"""


def test_outlines_of_every_kind_give_the_same_pixels(folder):
    data = opened(folder)
    half = [[10, 4, 15, 4, 15, 12, 10, 12], [15, 4, 20, 4, 20, 12, 15, 12]]
    ways = {"polygon": [CORNERS], "two parts": half, "runs": {"size": [H, W], "counts": runs(SQUARE)}}
    for name, segmentation in ways.items():
        found = mask_of(read_labels(coco(folder, annotation(0, segmentation=segmentation)), data))
        assert found.dtype == np.uint8 and (found == SQUARE).all(), name
    several = coco(folder, *(annotation(0, segmentation=[part]) for part in half))
    assert (mask_of(read_labels(several, data)) == SQUARE).all()
    for drawn in (region("polygonlabels", points=percent(CORNERS)), region("brushlabels", format="rle", rle=packed(SQUARE))):
        assert (mask_of(read_labels(studio(folder, task("0.png", drawn)), data)) == SQUARE).all()
    (folder / "masks").mkdir()
    Image.fromarray(SQUARE).save(folder / "masks/0_mask.png")
    assert (mask_of(read_labels(folder / "masks", data)) == SQUARE).all()


def test_compressed_runs_are_those_of_pycocotools(folder):
    assert _decompressed(COMPRESSED) == runs(DISC)
    found = read_labels(coco(folder, annotation(1, segmentation={"size": [H, W], "counts": COMPRESSED})), opened(folder))
    assert (mask_of(found, 1) == DISC).all()


def test_what_is_no_segmentation_is_refused_whatever_it_holds():
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = bytes(rng.integers(33, 127, rng.integers(0, 20)).tolist()).decode()
        try: assert _of_runs(text, (5, 7)).shape == (5, 7)
        except ImageSetError: pass
        try: assert _of_brush(rng.integers(0, 256, rng.integers(0, 40)).tolist(), (5, 7)).shape == (5, 7)
        except ImageSetError: pass
    good = packed(SQUARE)
    for cut in range(1, len(good) - 1, 7):
        with pytest.raises(ImageSetError, match="cut short|holds"): _of_brush(good[:cut], (H, W))


def test_an_ellipse_that_was_turned(folder):
    drawn = region("ellipselabels", x=50, y=50, radiusX=100 * 9 / W, radiusY=100 * 4 / H, rotation=90)
    found = mask_of(read_labels(studio(folder, task("0.png", drawn)), opened(folder)))
    y, x = np.mgrid[:H, :W] + 0.5 - np.reshape([H / 2, W / 2], (2, 1, 1))
    inside = (x / 4) ** 2 + (y / 9) ** 2
    assert (found[inside < 0.9] == 1).all() and (found[inside > 1.1] == 0).all()


def test_crowds_and_categories(folder):
    data, crowd = opened(folder), [0, 0, 6, 0, 6, 6, 0, 6]
    both = [annotation(0, segmentation=[CORNERS]), annotation(0, 8, segmentation=[crowd])]
    path = coco(folder, *both)
    united = SQUARE.copy()
    united[:6, :6] = True
    for chosen, expected in ((None, united), ("ship", SQUARE), (7, SQUARE), (["ship", 8], united)):
        assert (mask_of(read_labels(path, data, categories=chosen)) == expected).all()
    unsure = np.where(united, 255, 0)
    unsure[SQUARE] = 1
    assert (mask_of(read_labels(path, data, ignore="quay")) == unsure).all()
    both[1] |= {"iscrowd": 1, "category_id": 7}
    assert (mask_of(read_labels(coco(folder, *both), data)) == unsure).all()
    with pytest.warns(UserWarning, match="1 images were left out, since crowds"), pytest.raises(ImageSetError, match="no boxes"):
        read_labels(coco(folder, *both), data, "boxes")
    with pytest.raises(ValueError, match="no category is called 'shop' .did you mean 'ship'"):
        read_labels(path, data, categories="shop")


def test_boxes(folder):
    data = opened(folder)
    paths = [coco(folder, annotation(2, bbox=[10.2, 3.8, 9.9, 8.1])), coco(folder, annotation(2, segmentation=[CORNERS])),
             studio(folder, task("2.png", region("rectanglelabels", x=1000 / W, y=400 / H, width=1000 / W, height=800 / H)))]
    paths[1].rename(folder / "outlined.json")
    paths = [coco(folder, annotation(2, bbox=[10.2, 3.8, 9.9, 8.1])), folder / "outlined.json", paths[2]]
    for path in paths: assert read_labels(path, data, "boxes") == {"boxes": {2: [(4, 10, 8, 10)]}}
    with pytest.warns(UserWarning, match="shapes there are boxed only: 2.png"), pytest.raises(ImageSetError, match="no masks"):
        read_labels(paths[0], data)
    turned = region("rectanglelabels", x=10, y=10, width=20, height=20, rotation=30)
    with pytest.warns(UserWarning, match="a rectangle that was turned"), pytest.raises(ImageSetError):
        read_labels(studio(folder, task("0.png", turned)), data, "boxes")
    with pytest.raises(ImageSetError, match="lies outside"): read_labels(coco(folder, annotation(1, bbox=[40, 1, 5, 5])), data, "boxes")


def test_labels_follow_crop_and_resize(folder):
    path = coco(folder, annotation(0, segmentation=[CORNERS]), annotation(1, bbox=[10, 4, 10, 8]))
    for options, crop in ((dict(crop=(20, 24)), (20, 24)), (dict(resize=(12, 16)), None), (dict(crop=(20, 24), resize=(10, 12)), (20, 24)),
                          (dict(resize=(12, 16), lazy=True), None)):
        data = opened(folder, **options)
        expected = SQUARE[2:22, 4:28] if crop else SQUARE
        if "resize" in options: expected = expected[::2, ::2]
        with pytest.warns(UserWarning, match="boxed only"): assert (mask_of(read_labels(path, data)) == expected).all()
        rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
        box = (rows[0], columns[0], len(rows), len(columns))
        boxes = read_labels(path, data, "boxes")
        assert boxes == {"boxes": {0: [box], 1: [box]}}
        Labels(**boxes).check(len(data), data.shape[1:])
    narrow = opened(folder, crop=(10, 12))
    with pytest.warns(UserWarning, match="2 images were left out, since the set shows a part of a box only"):
        with pytest.raises(ImageSetError): read_labels(path, narrow, "boxes")


def test_scribbles(folder):
    data, rng = opened(folder, resize=(12, 16)), np.full((H, W), 255, np.uint8)
    rng[4, 10:20], rng[20, :8] = 1, 0
    (folder / "scribbles").mkdir()
    Image.fromarray(rng).save(folder / "scribbles/3.png")
    found = read_labels(folder / "scribbles", data, "scribbles")["scribbles"][3].numpy()
    assert (found[2, 5:10] == 1).all() and (found[10, :4] == 0).all() and (found != 255).sum() == 9
    other = np.select([rng == 1, rng == 0], [128, 64], 0).astype(np.uint8)
    Image.fromarray(other).save(folder / "scribbles/3.png")
    same = read_labels(folder / "scribbles", data, "scribbles", categories=128, background=64)["scribbles"][3].numpy()
    assert (same == found).all()
    Image.fromarray(SQUARE.astype(np.uint8)).save(folder / "scribbles/3.png")
    with pytest.raises(ImageSetError, match="leaves no pixel unknown"): read_labels(folder / "scribbles", data, "scribbles")
    drawn = [region("brushlabels", rle=packed(rng == 1)), region("brushlabels", "sea", rle=packed(rng == 0)),
             region("keypointlabels", x=50, y=50, width=2)]
    path = studio(folder, task("3.png", *drawn))
    brushed = read_labels(path, data, "scribbles", background="sea")["scribbles"][3].numpy()
    found[6, 8] = 1
    assert (brushed == found).all()


def test_names_are_matched_by_folders_then_by_what_shows_the_object(folder):
    data = opened(folder)
    names = data.paths.tolist()
    found = {
        "0.png": 0,  # a background-only image has the same name
        "dive/2.png": 2, "C:\\dives\\dive\\2.png": 2, "2.jpg": 2, "/data/upload/3/0a1b2c3d-2.png": 2,
        "/data/local-files/?d=dive%2F2.png": 2, "https://host/some%20where/2.png?x=1": 2, "s3://bucket/dive/2.png": 2,
    }
    for name, i in found.items():
        path = studio(folder, task(name, region("polygonlabels", points=percent(CORNERS))))
        assert list(read_labels(path, data)["masks"]) == [i], name
    twice = from_files([*names[:4], *names], [True] * 4 + data.presence.tolist(), progress=False)
    with pytest.raises(ImageSetError, match="pages of one file"): read_labels(path, twice)
    (folder / "objects/other").mkdir()
    Image.fromarray(TEXTURE).save(folder / "objects/other/2.png")
    data, drawn = opened(folder), annotation(2, segmentation=[CORNERS])
    with pytest.raises(ImageSetError, match="2.png may be .*dive.*other"): read_labels(coco(folder, drawn), data)
    path = coco(folder, drawn, images=[0])
    made = json.loads(path.read_text())
    made["images"] = [{"id": 2, "file_name": "other/2.png"}, {"id": 3, "file_name": "dive/2.png"}]
    path.write_text(json.dumps(made))
    (i,) = read_labels(path, data)["masks"]
    assert data.paths[i].endswith("2.png") and "other" in data.paths[i]


def test_the_latest_of_several_annotators_counts(folder):
    left, right = ([x, 0, x + 6, 0, x + 6, 6, x, 6] for x in (0, 10))
    old, new = (region("polygonlabels", points=percent(corners)) for corners in (left, right))
    one = task("0.png", new, updated_at="2026-03-01")
    one["annotations"] += [{"id": 9, "updated_at": "2026-02-01", "result": [old]},
                           {"id": 10, "updated_at": "2026-04-01", "was_cancelled": True, "result": [old]}]
    with pytest.warns(UserWarning, match="1 images were annotated several times, of which the latest"):
        found = mask_of(read_labels(studio(folder, one), opened(folder)))
    assert found[:6, 10:16].all() and found.sum() == 36


def test_what_is_left_out_is_counted_and_named(folder):
    data = opened(folder)
    path = coco(folder, annotation(0, segmentation=[CORNERS]), annotation(9, segmentation=[CORNERS]), images=[0, 1, 9])
    with pytest.warns(UserWarning, match=r"1 labels of .* are of no image in the set and were passed over: 9.png"):
        assert list(read_labels(path, data)["masks"]) == [0]
    (folder / "masks").mkdir()
    for name, mask in {"0": SQUARE, "1": SQUARE & False, "9": SQUARE}.items(): Image.fromarray(mask).save(folder / f"masks/{name}.png")
    with pytest.warns(UserWarning) as said: found = read_labels(folder / "masks", data)
    said = " ".join(str(one.message) for one in said)
    assert list(found["masks"]) == [0] and "9.png" in said and "nothing of the object is marked" in said
    Image.fromarray(SQUARE & False).save(folder / "masks/4.png")  # of a background-only image: that much is known
    with warnings.catch_warnings(record=True): assert list(read_labels(folder / "masks", data)["masks"]) == [0]


def test_values_that_do_not_count_stay_unknown(folder):
    (folder / "masks").mkdir()
    mask = SQUARE.astype(np.uint8)
    mask[:2] = 255
    Image.fromarray(mask).save(folder / "masks/0.png")
    with pytest.warns(UserWarning, match="Masks hold 255"): assert (mask_of(read_labels(folder / "masks", opened(folder))) == mask).all()
    every = read_labels(folder / "masks", opened(folder), categories=[1, 255], ignore=())
    assert (mask_of(every) == (mask > 0)).all()


def test_what_contradicts_the_images_is_refused(folder):
    data = opened(folder)
    (folder / "masks").mkdir()
    Image.fromarray(SQUARE).save(folder / "masks/4.png")
    with pytest.raises(ImageSetError, match="1 background-only images with a marked object"): read_labels(folder / "masks", data)
    Image.fromarray(SQUARE[:9]).save(folder / "masks/0.png")
    with pytest.raises(ImageSetError, match="is 9×32, and its image 24×32"): read_labels(folder / "masks", data)
    small = coco(folder, annotation(0, segmentation=[CORNERS]))
    made = json.loads(small.read_text())
    made["images"][0]["height"] = 99
    small.write_text(json.dumps(made))
    with pytest.raises(ImageSetError, match=r"annotated as of \(99, 32\)"): read_labels(small, data)
    drawn = region("polygonlabels", size=(H, 99), points=percent(CORNERS))
    with pytest.raises(ImageSetError, match=r"annotated as of \(24, 99\)"): read_labels(studio(folder, task("0.png", drawn)), data)
    arrays = from_arrays(np.stack([TEXTURE] * 2), np.stack([TEXTURE] * 2))
    with pytest.raises(ImageSetError, match="not read from files"): read_labels(folder / "masks", arrays)


BAD = {
    "no JSON file": "{", "expected COCO": "[1, 2]", "not JSON-MIN": '[{"image": "0.png", "label": []}]',
    "images=None; expected a list": '{"images": null, "annotations": []}',
    "has id=None": '{"images": [{}], "annotations": []}',
    "is of image 5, which isn't listed": '{"images": [], "annotations": [{"id": 3, "image_id": 5}]}',
    "image_id=None": '{"images": [], "annotations": [7]}',
    "three corners or more": '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "segmentation": [[1, 2]]}]}',
    "expected numbers": '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "segmentation": [[1, NaN, 3, 4, 5, 6]]}]}',
    "expected x, y, width, height": '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "bbox": [1, 2]}]}',
    "cover 3 pixels": '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "segmentation": {"size": [24, 32], "counts": [1, 2]}}]}',
    "holds no masks of images": '{"images": [], "annotations": []}',
    "names no image": '[{"data": {"n": 3}, "annotations": []}]',
    "was turned": '[{"data": {"i": "0.png"}, "annotations": [{"result": [{"type": "brush", "value": {}, "original_width": 1, "original_height": 1, "image_rotation": 90}]}]}]',
    "several sizes": '[{"data": {"i": "0.png"}, "annotations": [{"result": [{"value": {}, "original_width": 1, "original_height": 1}, {"value": {}, "original_width": 2, "original_height": 1}]}]}]',
}


@pytest.mark.parametrize("text", BAD)
def test_bad_files_are_named(folder, text):
    (folder / "bad.json").write_text(BAD[text])
    with pytest.raises(ImageSetError, match=text): read_labels(folder / "bad.json", opened(folder))


def test_deep_nesting_is_refused(folder):
    (folder / "bad.json").write_text("[" * 200_000)
    with pytest.raises(ImageSetError, match="no JSON file"): read_labels(folder / "bad.json", opened(folder))
