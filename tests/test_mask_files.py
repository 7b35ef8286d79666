"""Masks as people really have them: which belongs to which image, what their values mean, and what a set says of them.

Each case writes six object images and six background-only images with their masks in some layout. The table says what must come of it:
the share of each object image that is marked, what is warned of, what is refused. Each is tried by the function, and by `bgcs describe`.
"""
import itertools
import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from bgcs.data.describe import describe
from bgcs.data.files import ImageSetError
from bgcs.data.images import from_arrays, from_files, from_folders, from_globs, from_hdf5, from_table
from bgcs.masks.evaluate import evaluate, mask_metrics
from bgcs.runs.cli import main

H, W = 48, 56
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, H, W), dtype=np.uint8)


def disc(k): return np.hypot(*np.mgrid[-24:24, -28:28]) < 8 + k


DISCS = [disc(k) for k in range(6)]
RINGS = [disc(k + 3) & ~disc(k) for k in range(6)]
HALVES = [(d & (np.mgrid[:H, :W][1] < 28), d & (np.mgrid[:H, :W][1] >= 28)) for d in DISCS]
SHARES = np.array([d.mean() for d in DISCS])


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def grey(mask): return mask.astype(np.uint8) * 255


def images(root, names=tuple(f"{k}.png" for k in range(6)), kind="with", first=0):
    for k, name in enumerate(names): save(root / kind / name, IMAGES[first + k])
    return list(names)


def usual(root, names=tuple(f"{k}.png" for k in range(6))):
    images(root, names)
    images(root, kind="without", first=6)


def in_folders(root):
    "Three images of one name in folders, their masks in folders of the same names."
    names = [f"{where}/{name}.png" for where in ("a", "b", "c") for name in ("x", "y")]
    usual(root, names)
    for name, mask in zip(names, DISCS): save(root / "masks" / name, grey(mask))


def in_other_folders(root):
    usual(root, [f"images/{k // 2}/im{k % 2}_image.png" for k in range(6)])
    for k, mask in enumerate(DISCS): save(root / "masks" / f"{k // 2}" / "labels" / f"im{k % 2}_labels.png", grey(mask))


def flat_with_clash(root):
    usual(root, [f"{where}/{name}.png" for where in ("a", "b", "c") for name in ("x", "y")])
    for name, mask in zip("xy", DISCS): save(root / "masks" / f"{name}.png", grey(mask))


def flat_without_clash(root):
    usual(root, [f"{k % 2}/{k}.png" for k in range(6)])
    for k, mask in enumerate(DISCS): save(root / "masks" / f"{k}.png", grey(mask))


def of_one_folder(root):
    "Only one of two folders has masks; the other must not take them."
    usual(root, [f"{where}/{name}.png" for where in ("a", "b", "c") for name in ("x", "y")])
    for name, mask in zip("xy", DISCS): save(root / "masks" / "a" / f"{name}.png", grey(mask))


def by_bands(root):
    "Words such as 'rgb' may tell folders apart."
    names = [f"{band}/{k}.png" for band in ("nir", "rgb", "swir") for k in (0, 1)]
    usual(root, names)
    for name, mask in zip(names, DISCS): save(root / "masks" / name, grey(mask))


def of_both_kinds(root):
    usual(root)
    for k, mask in enumerate(DISCS):
        save(root / "masks" / "with" / f"{k}.png", grey(mask))
        save(root / "masks" / "without" / f"{k}.png", grey(~mask))


def suffixed(pattern, n=1):
    "Masks named by a pattern of the image's number and the part's."
    def write(root):
        usual(root, [f"im{k}.png" for k in range(6)])
        for k, mask in enumerate(DISCS):
            for part, half in enumerate([mask] if n == 1 else HALVES[k]):
                save(root / "masks" / pattern.format(k=k, part=part + 1), grey(half))
    return write


def numbered_images(root):
    "Image `im.png` beside `im_1.png`: the mask of the second is none of the first."
    names = ["im.png", "im_1.png", "im_2.png", "im_3.png", "im_4.png", "im_10.png"]
    usual(root, names)
    for name, mask in zip(names, DISCS): save(root / "masks" / name.replace(".png", "_mask.png"), grey(mask))


def number_last(root):
    usual(root, [f"frame_{k:04}.png" for k in range(6)])
    for k, mask in enumerate(DISCS): save(root / "masks" / f"frame_mask_{k:04}.png", grey(mask))


def one_folder_an_image(root):
    "As the Data Science Bowl of 2018 deals them."
    usual(root, [f"id{k}f/images/id{k}f.png" for k in range(6)])
    for k, part in itertools.product(range(6), (0, 1)):
        save(root / "masks" / f"id{k}f" / "masks" / f"{k}{'ab'[part]}9c.png", grey(HALVES[k][part]))


def nifti(root):
    nibabel = pytest.importorskip("nibabel")
    usual(root, ())
    for k in range(6):
        where = root / ("with" if k < 3 else "masks")
        where.mkdir(exist_ok=True, parents=True)
        numbers = IMAGES[k] if k < 3 else DISCS[k - 3].astype(np.uint8)
        nibabel.Nifti1Image(numbers[..., None], np.eye(4)).to_filename(where / f"scan{k % 3}.nii.gz")
    for k in (3, 4, 5):
        save(root / "with" / f"scan{k}.png", IMAGES[k])
        nibabel.Nifti1Image(DISCS[k].astype(np.uint8)[..., None], np.eye(4)).to_filename(root / "masks" / f"scan{k}.nii.gz")


def nifti_and_png(root):
    "One stem in two formats: each has the mask of its own."
    nibabel = pytest.importorskip("nibabel")
    usual(root, [f"{k}.png" for k in range(3)])
    for k in range(3):
        save(root / "masks" / f"{k}.png", grey(DISCS[k]))
        for folder, numbers in (("with", IMAGES[3 + k]), ("masks", DISCS[3 + k].astype(np.uint8))):
            nibabel.Nifti1Image(numbers[..., None], np.eye(4)).to_filename(root / folder / f"{k}.nii.gz")


def in_a_folder_and_above(root):
    "The mask in the folder of the same name is meant; the other is named."
    usual(root, [f"a/{k}.png" for k in range(6)])
    for k, mask in enumerate(DISCS):
        save(root / "masks" / "a" / f"{k}.png", grey(mask))
        save(root / "masks" / f"{k}.png", grey(~mask))


def for_nnunet(root):
    usual(root, [f"scan{k}_0000.png" for k in range(6)])
    for k, mask in enumerate(DISCS): save(root / "masks" / f"scan{k}.png", grey(mask))


def two_candidates(root):
    usual(root)
    for k, mask in enumerate(DISCS):
        save(root / "masks" / f"{k}.png", grey(mask))
        save(root / "masks" / f"{k}.bmp", grey(~mask))


def a_stray(root):
    suffixed("im{k}_mask.png")(root)
    save(root / "masks" / "im3_overlay.png", grey(DISCS[0]))


LAYOUTS = {  # what writes it; what the masks mark, as shares, or what is refused; what is warned of
    "folders of the same names": (in_folders, SHARES, None),
    "folders of other names": (in_other_folders, SHARES, None),
    "folders called rgb and nir": (by_bands, SHARES, None),
    "flat masks, bare names clash": (flat_with_clash, "it isn't clear", None),
    "flat masks, bare names differ": (flat_without_clash, SHARES[[0, 2, 4, 1, 3, 5]], None),
    "masks of one folder only": (of_one_folder, "4 object images have no mask", None),
    "masks of both kinds": (of_both_kinds, SHARES, None),
    "im_mask": (suffixed("im{k}_mask.png"), SHARES, None),
    "im-seg": (suffixed("im{k}-seg.png"), SHARES, None),
    "im.GT": (suffixed("im{k}.GT.png"), SHARES, None),
    "im_L": (suffixed("im{k}_L.png"), SHARES, None),
    "mask_im": (suffixed("mask_im{k}.png"), SHARES, None),
    "im_ground_truth": (suffixed("im{k}_ground_truth.png"), SHARES, None),
    "im_mask_1, im_mask_2": (suffixed("im{k}_mask_{part}.png", 2), SHARES, None),
    "im_mask1, im_mask2": (suffixed("im{k}_mask{part}.png", 2), SHARES, None),
    "im_mask (1), im_mask (2)": (suffixed("im{k}_mask ({part}).png", 2), SHARES, None),
    "im_1, im_2": (suffixed("im{k}_{part}.png", 2), SHARES, None),
    "im_1_mask, im_2_mask": (suffixed("im{k}_{part}_mask.png", 2), SHARES, None),
    "im/1, im/2": (suffixed("im{k}/{part}.png", 2), SHARES, None),
    "im beside im_1": (numbered_images, SHARES[[0, 1, 5, 2, 3, 4]], None),
    "frame_mask_0001": (number_last, SHARES, None),
    "a folder for each image": (one_folder_an_image, SHARES, None),
    "x.nii.gz with x.nii.gz": (nifti, SHARES, None),
    "x.nii.gz beside x.png": (nifti_and_png, SHARES[[3, 0, 4, 1, 5, 2]], None),
    "in a folder and above it": (in_a_folder_and_above, SHARES, "6 files have names like those of object images"),
    "im_0000": (for_nnunet, SHARES, None),
    "two files for one mask": (two_candidates, "may have as its mask 0.", None),
    "a file of a like name": (a_stray, SHARES, "im3_overlay.png"),
}


def quietly(read, *args, **options):
    "What is read, and the warnings."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return read(*args, **options), " ".join(str(w.message) for w in said)


def shares(data): return data.objects.masks[:].float().mean((1, 2, 3)).numpy()


def typed(capsys, *words):
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("case", LAYOUTS)
def test_which_mask_is_whose(case, tmp_path, capsys):
    write, expected, word = LAYOUTS[case]
    write(tmp_path)
    three = tmp_path / "with", tmp_path / "without", tmp_path / "masks"
    command = ["describe", "--objects", three[0], "--backgrounds", three[1], "--masks", three[2]]
    if isinstance(expected, str):
        with pytest.raises(ImageSetError, match=re.escape(expected)): from_folders(*three)
        code, _, said = typed(capsys, *command)
        assert code == 2 and expected in said
        return
    data, said = quietly(from_folders, *three)
    assert np.allclose(shares(data), expected, atol=1e-6) and not data.backgrounds.masks.any()
    assert (word or "") in said and bool(said) == bool(word)
    code, out, said = typed(capsys, *command)
    assert code == 0 and "6 true masks" in out and (word or "") in said


def test_layouts_are_the_same_where_they_are_read_when_used(tmp_path):
    suffixed("im{k}_mask_{part}.png", 2)(tmp_path)
    three = tmp_path / "with", tmp_path / "without", tmp_path / "masks"
    lazy = from_folders(*three, lazy=True)
    assert np.allclose(shares(lazy.packed(tmp_path / "cache", progress=False)), SHARES)
    save(tmp_path / "masks" / "im2_mask_2.png", grey(DISCS[5]))  # the cache must see the second part, too
    assert shares(lazy.packed(tmp_path / "cache", progress=False))[2] > SHARES[2] + 0.01


AMONG = {  # how a mask is called that lies beside its image
    "im_mask.png": "im{k}_mask.png", "im-gt.png": "im{k}-gt.png", "masks/im.png": "masks/im{k}.png",
    "labels/im_label.png": "labels/im{k}_label.png", "mask_im.png": "mask_im{k}.png", "im.bmp": "im{k}.bmp",
}


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("case", AMONG)
def test_masks_among_the_images(case, on_bad, tmp_path, capsys):
    usual(tmp_path, [f"im{k}.png" for k in range(6)])
    for k, mask in enumerate(DISCS): save(tmp_path / "with" / AMONG[case].format(k=k), grey(mask))
    two = tmp_path / "with", tmp_path / "without"
    data, said = quietly(from_folders, *two, on_bad=on_bad)
    assert len(data.objects) == 6 and "6 files lie among the images" in said and not data.skipped
    data, said = quietly(from_folders, *two, two[0], on_bad=on_bad)
    assert np.allclose(shares(data), SHARES) and not said
    if "/" in AMONG[case]:
        inside, said = quietly(from_folders, *two, two[0] / AMONG[case].split("/")[0])
        assert np.allclose(shares(inside), SHARES) and len(inside.objects) == 6 and not said
    code, out, said = typed(capsys, "describe", "--objects", two[0], "--backgrounds", two[1], f"data.on_bad={on_bad}")
    assert code == 0 and out.startswith("6 object images") and "6 files lie among the images" in said
    code, out, said = typed(capsys, "describe", "--objects", two[0], "--backgrounds", two[1], "--masks", two[0])
    assert code == 0 and "6 true masks" in out and not said


def test_masks_among_images_of_a_tree(tmp_path):
    usual(tmp_path)
    for k, mask in enumerate(DISCS): save(tmp_path / "with" / f"{k}_mask.png", grey(mask))
    data, said = quietly(from_globs, tmp_path, "with/*", "without/*")
    assert len(data.objects) == 6 and "6 files lie among the images" in said


def test_images_of_like_names_stay_images(tmp_path):
    usual(tmp_path, ["seg_1.png", "seg_2.png", "label.png", "ship_label_3.png", "gt/4.png", "manual_5.png"])
    data, said = quietly(from_folders, tmp_path / "with", tmp_path / "without")
    assert len(data.objects) == 6 and not said


def soft(k): return np.clip(255 * (8.5 + k - np.hypot(*np.mgrid[-24:24, -28:28])), 0, 255).astype(np.uint8)


def trimap(k): return np.where(RINGS[k], 128, 255 * DISCS[k]).astype(np.uint8)


def rgba(colour, alpha): return np.dstack([np.asarray(colour, np.uint8)] * 3 + [np.asarray(alpha, np.uint8)])


def palette(path, k, zero, one):
    "A PNG with two colours, in which the disc has number 1."
    image = Image.fromarray(DISCS[k].astype(np.uint8), "L").convert("P")
    image.putpalette([*zero, *one])
    image.save(path)


def each(suffix, make, **options):
    "Writes a mask of each disc."
    def write(folder):
        for k in range(6): save(folder / f"{k}{suffix}", make(k), **options)
    return write


def palettes(zero, one):
    def write(folder):
        for k in range(6): palette(folder / f"{k}.png", k, zero, one)
    return write


def quantized(folder):
    "White objects have number 0."
    for k in range(6):
        image = Image.fromarray((~DISCS[k]).astype(np.uint8), "L").convert("P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        image.save(folder / f"{k}.png")


def arrays(make):
    def write(folder):
        for k in range(6): np.save(folder / f"{k}.npy", make(k))
    return write


def tiffs(make, **options):
    def write(folder):
        for k in range(6): tifffile.imwrite(folder / f"{k}.tif", make(k), **options)
    return write


def with_void(k, void=255): return np.where(RINGS[k], void, DISCS[k]).astype(np.uint8)


def recoded(k):
    "A JPEG saved as PNG."
    import io
    file = io.BytesIO()
    Image.fromarray(grey(DISCS[k])).save(file, "JPEG", quality=70)
    return np.asarray(Image.open(file))


ZERO, SOFT = np.zeros((H, W)), 0.004  # of the pixels, by which a rim that was blurred may differ
VALUES = {  # writes masks; options; share that is wrong, at most, or what is refused; what is warned of; whether rings don't count
    "0 and 1": (each(".png", lambda k: DISCS[k].astype(np.uint8)), {}, 0, None, False),
    "0 and 255": (each(".png", lambda k: grey(DISCS[k])), {}, 0, None, False),
    "1 bit": (each(".png", lambda k: DISCS[k]), {}, 0, None, False),
    "16 bits": (tiffs(lambda k: DISCS[k].astype(np.uint16) * 65535), {}, 0, None, False),
    "pages of one mask": (tiffs(lambda k: np.stack([grey(h) for h in HALVES[k]] * 2), photometric="minisblack"), {}, 0, None, False),
    "objects by number": (each(".png", lambda k: (DISCS[k] * (1 + np.mgrid[:H, :W][0] // 6)).astype(np.uint8)), {}, 0, None, False),
    "200 objects by number": (tiffs(lambda k: (DISCS[k] * (1 + np.mgrid[:H, :W][0] // 2 * 8 + np.mgrid[:H, :W][1] // 7)).astype(np.uint16)),
                              {}, 0, None, False),
    "colours": (each(".png", lambda k: np.dstack([grey(DISCS[k]), 0 * grey(DISCS[k]), 90 * DISCS[k].astype(np.uint8)])), {}, 0, None, False),
    "JPEG, quality 30": (each(".jpg", lambda k: grey(DISCS[k]), quality=30), {}, SOFT, None, False),
    "JPEG, quality 75": (each(".jpg", lambda k: grey(DISCS[k])), {}, SOFT, None, False),
    "JPEG in colour": (each(".jpg", lambda k: np.dstack([grey(DISCS[k])] * 3)), {}, SOFT, None, False),
    "JPEG of 0 and 128": (each(".jpg", lambda k: grey(DISCS[k]) // 2), {}, SOFT, None, False),
    "JPEG called PNG": (each(".png", lambda k: grey(DISCS[k]), format="JPEG"), {}, SOFT, None, False),
    "JPEG saved as PNG": (each(".png", recoded), {}, SOFT, None, False),
    "JPEG in a TIFF": (tiffs(lambda k: np.pad(grey(DISCS[k]), ((0, 0), (0, 0))), compression="jpeg", photometric="minisblack"),
                       {}, SOFT, None, False),
    "JPEG, label 255": (each(".jpg", lambda k: grey(DISCS[k])), {"mask_labels": 255}, SOFT, None, False),
    "JPEG, inverted": (each(".jpg", lambda k: grey(~DISCS[k])), {"mask_labels": 0}, SOFT, None, False),
    "JPEG of classes": (each(".jpg", lambda k: DISCS[k].astype(np.uint8)), {"mask_labels": [1, 2]}, "cannot be told apart", None, False),
    "smooth edges": (each(".png", soft), {}, SOFT, None, False),
    "probabilities": (arrays(lambda k: soft(k).astype(np.float32) / 255), {}, SOFT, None, False),
    "0.0 and 1.0": (arrays(lambda k: DISCS[k].astype(np.float64)), {}, 0, None, False),
    "bool array": (arrays(lambda k: DISCS[k]), {}, 0, None, False),
    "alpha only, black": (each(".png", lambda k: rgba(ZERO, grey(DISCS[k]))), {}, 0, None, False),
    "alpha only, white": (each(".png", lambda k: rgba(ZERO + 255, grey(DISCS[k]))), {}, 0, None, False),
    "alpha only, grey": (each(".png", lambda k: np.dstack([ZERO, grey(DISCS[k])]).astype(np.uint8)), {}, 0, None, False),
    "black on nothing, white beneath": (each(".png", lambda k: rgba(grey(~DISCS[k]), grey(DISCS[k]))), {}, 0, None, False),
    "white on black, opaque": (each(".png", lambda k: rgba(grey(DISCS[k]), ZERO + 255)), {}, 0, None, False),
    "white on black, alpha 0": (each(".png", lambda k: rgba(grey(DISCS[k]), ZERO)), {}, 0, None, False),
    "palette, black first": (palettes((0, 0, 0), (200, 0, 0)), {}, 0, None, False),
    "palette, black last": (quantized, {}, 0, None, False),
    "palette, black last, number 1": (palettes((255, 255, 255), (0, 0, 0)), {"mask_labels": [1]}, 0, None, False),
    "inverted": (each(".png", lambda k: grey(~DISCS[k])), {}, None, "say mask_labels=[0]", False),
    "inverted, said": (each(".png", lambda k: grey(~DISCS[k])), {"mask_labels": [0]}, 0, None, False),
    "inverted, as one number": (each(".png", lambda k: grey(~DISCS[k])), {"mask_labels": 0}, 0, None, False),
    "nothing marked": (each(".png", lambda k: grey(0 * DISCS[k])), {}, None, "Masks mark nothing", False),
    "255 beside 1": (each(".png", with_void), {}, 0, "Masks hold 255 beside 1: such pixels are left out", True),
    "255 beside classes": (each(".png", lambda k: with_void(k) * np.where(RINGS[k], 1, k + 1).astype(np.uint8)), {}, 0, "Masks hold 255", True),
    "255 beside 1, label 1": (each(".png", with_void), {"mask_labels": [1]}, 0, "Masks hold 255 beside 1", True),
    "-1 beside 1": (arrays(lambda k: with_void(k, 9).astype(int) - 10 * (with_void(k, 9) == 9)), {}, 0, "Masks hold -1 beside 1", True),
    "255 beside 1, ignored": (each(".png", with_void), {"mask_ignore": [255]}, 0, None, True),
    "255 beside 1, as one number": (each(".png", with_void), {"mask_ignore": 255}, 0, None, True),
    "a trimap": (each(".png", lambda k: trimap(k)), {}, 0, "Masks hold 128 beside 255: such pixels are left out", True),
    "classes of 1 about 2": (each(".png", lambda k: trimap(k) // 127), {}, None, None, False),
    "a trimap, 128 is object": (each(".png", lambda k: trimap(k)), {"mask_labels": [128, 255]}, None, None, False),
    "classes of 128 and 255": (each(".png", lambda k: (DISCS[k] * np.where(np.mgrid[:H, :W][1] < W // 2, 128, 255)).astype(np.uint8)), {}, 0, None, False),
    "7 doesn't count": (each(".png", lambda k: with_void(k, 7)), {"mask_ignore": [7]}, 0, None, True),
    "255 beside 1, both object": (each(".png", with_void), {"mask_labels": [1, 255]}, None, None, False),
    "255 beside 1, as background": (each(".png", with_void), {"mask_labels": [1], "mask_ignore": []}, 0, None, False),
}


def written(case, root):
    write, options, wrong, word, rings = VALUES[case]
    usual(root)
    (root / "masks").mkdir()
    write(root / "masks")
    return (root / "with", root / "without", root / "masks"), options, wrong, word, rings


@pytest.mark.parametrize("case", VALUES)
def test_what_a_mask_says(case, tmp_path, capsys):
    three, options, wrong, word, rings = written(case, tmp_path)
    command = ["describe", "--objects", three[0], "--backgrounds", three[1], "--masks", three[2],
               *(f"data.{name}={value}" for name, value in options.items())]
    if isinstance(wrong, str):
        with pytest.raises(ImageSetError, match=wrong): from_folders(*three, **options)
        assert typed(capsys, *command)[0] == 2
        return
    data, said = quietly(from_folders, *three, **options)
    assert (word or "") in said and bool(said) == bool(word)
    if wrong is not None: assert (data.objects.masks[:, 0].numpy() != np.stack(DISCS)).mean((1, 2)).max() <= wrong
    assert (data.ignored is not None) == rings
    if rings: assert np.array_equal(data.objects.ignored[:, 0].numpy(), np.stack(RINGS)) and not data.backgrounds.ignored.any()
    lazy = quietly(from_folders, *three, **options, lazy=True)[0].packed(tmp_path / "cache", progress=False)
    assert torch.equal(lazy.masks[:], data.masks) and (not rings or torch.equal(lazy.ignored[:], data.ignored))
    code, out, said = typed(capsys, *command)
    typed_word = (word or "").replace("mask_labels=[0]", "'data.mask_labels=[0]'")
    assert code == 0 and "6 true masks" in out and typed_word in said and ("don't count" in out) == rings


def test_both_object(tmp_path):
    three, options, *_ = written("255 beside 1, both object", tmp_path)
    assert np.allclose(shares(from_folders(*three, **options)), [(d | r).mean() for d, r in zip(DISCS, RINGS)])


def test_what_does_not_count_is_in_no_metric(tmp_path):
    three, options, *_ = written("255 beside 1, ignored", tmp_path)
    objects = from_folders(*three, **options).objects
    found = torch.from_numpy(np.stack([d | r for d, r in zip(DISCS, RINGS)]))[:, None].float()
    assert all(evaluate(found, objects)[name] == pytest.approx(1) for name in ("iou", "f1", "ap"))
    every = mask_metrics(found, objects.masks)
    assert every["iou"] == pytest.approx(np.sum(DISCS) / found.sum().item(), abs=1e-6)
    assert objects.weak().ignored is None
    resized = from_folders(*three, **options, resize=(24, 28))
    assert resized.ignored.shape == resized.masks.shape == (12, 1, 24, 28) and not (resized.ignored & resized.masks).any()


def test_masks_in_arrays_and_hdf5_mean_the_same(tmp_path):
    h5py = pytest.importorskip("h5py")
    masks = np.stack([with_void(k) for k in range(6)])
    data, said = quietly(from_arrays, IMAGES[:6], IMAGES[6:], masks=masks)
    assert "Masks hold 255 beside 1" in said and np.array_equal(data.objects.ignored[:, 0], np.stack(RINGS))
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["images"], file["presence"], file["masks"] = IMAGES, np.arange(12) < 6, np.concatenate([masks, 0 * masks])
    for lazy in (False, True):
        stored, said = quietly(from_hdf5, tmp_path / "set.h5", masks="masks", lazy=lazy)
        assert "Masks hold 255 beside 1" in said
        assert torch.equal(stored.masks[:], data.masks) and torch.equal(stored.ignored[:], data.ignored)
    soft_masks = np.stack([soft(k) for k in range(6)]) / 255
    assert (from_arrays(IMAGES[:6], IMAGES[6:], masks=soft_masks).objects.masks[:, 0].numpy() != np.stack(DISCS)).mean() < SOFT
    chosen = from_arrays(IMAGES[:6], IMAGES[6:], masks=masks, mask_labels=[255], mask_ignore=[1])
    assert np.array_equal(chosen.objects.masks[:, 0], np.stack(RINGS))


def test_a_mask_of_another_size_is_named_among_several(tmp_path):
    suffixed("im{k}_mask_{part}.png", 2)(tmp_path)
    save(tmp_path / "masks" / "im2_mask_2.png", grey(DISCS[0][:20]))
    with pytest.raises(ImageSetError, match="im2_mask_2.png, which is 20×56, and its image 48×56"):
        from_folders(tmp_path / "with", tmp_path / "without", tmp_path / "masks")


def test_a_description_draws_masks(tmp_path):
    three, options, *_ = written("255 beside 1, ignored", tmp_path)
    data = from_folders(*three, **options)
    found, without = describe(data), describe(data.weak())
    assert len(found.plot(4).axes) == len(without.plot(4).axes) + 4 and "true mask" not in str(without)
    assert "6 true masks: 12.9% of the pixels are object" in str(found) and "of the pixels don't count" in str(found)
    assert f"from {SHARES[0]:.1%} to {SHARES[5]:.1%} an image" in str(found)
    data.masks[2] = False
    assert f"! 1 true masks mark nothing, such as {data.names[2]}" in str(describe(data))
    said = str(describe(data._with(masks=~data.masks, ignored=None)))
    assert "say mask_labels=[0]" in said


NARROW = {  # type, highest number, normalisation; what is advised, or None
    "12 bits in 16": (np.uint16, 4095, "unit", "normalization=('range', 0, 4095)"),
    "10 bits in 16": (np.uint16, 1000, "unit", "normalization=('range', 0, 1023)"),
    "14 bits in 16": (np.uint16, 16383, "unit", "normalization=('range', 0, 16383)"),
    "16 bits in 16": (np.uint16, 65535, "unit", None),
    "12 bits in 16, signed": (np.int16, 4000, "unit", "normalization=('range', 0, 4095)"),
    "0 and 1 in 8": (np.uint8, 1, "unit", "normalization=('range', 0, 1)"),
    "8 bits in 8": (np.uint8, 255, "unit", None),
    "12 bits in 16, stated": (np.uint16, 4095, ("range", 0, 4095), None),
    "12 bits in 16, percentile": (np.uint16, 4095, "percentile", None),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("case", NARROW)
def test_numbers_that_fill_a_part_of_their_type(case, lazy, tmp_path, capsys):
    dtype, high, normalization, advice = NARROW[case]
    for k in range(12):
        pixels = RNG.integers(0, high + 1, (H, W)).astype(dtype)
        pixels[0, :2] = 0, high
        (tmp_path / ("with" if k < 6 else "without")).mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / ("with" if k < 6 else "without") / f"{k}.tif", pixels)
    two = tmp_path / "with", tmp_path / "without"
    data, said = quietly(from_folders, *two, normalization=normalization, lazy=lazy)
    assert (advice or "") in said and bool(said) == bool(advice)
    described = str(describe(data.packed(tmp_path / "cache", progress=False)))
    assert f"object: {np.dtype(dtype)} from 0 to {high}; " in described
    assert (f"! Numbers go from 0 to {high}" in described) == bool(advice)
    if lazy or not isinstance(normalization, str): return
    code, out, said = typed(capsys, "describe", "--objects", two[0], "--backgrounds", two[1],
                            f"data.normalization={normalization}")
    assert code == 0 and f"from 0 to {high}; " in out and bool(said) == bool(advice)


def test_numbers_that_are_not_known_are_called_normalised():
    data = from_arrays(IMAGES[:6], IMAGES[6:])
    assert "object: uint8 from 0 to 255" in str(describe(data))
    assert "object: normalised numbers from 0 to 1" in str(describe(data._with(raw_ends=None)))


def test_many_sizes_are_told_in_few_lines(tmp_path, capsys):
    for k in range(160):
        odd = (16 + k, 30 + k % 7) if k % 16 == 4 else (49, 33)
        save(tmp_path / ("with" if k % 2 else "without") / f"{k:03}.png", np.resize(IMAGES[0], odd))
    with pytest.raises(ImageSetError) as error: from_folders(tmp_path / "with", tmp_path / "without")
    said = str(error.value).splitlines()
    assert len(said) <= 12 and "say resize=(49, 33)" in said[0] and said[1] == "160 images are of 11 kinds:"
    assert any("smallest: 20×34" in line for line in said) and any("largest: 148×36" in line for line in said)
    assert "window=48" in said[-1]
    code, _, said = typed(capsys, "describe", "--objects", tmp_path / "with", "--backgrounds", tmp_path / "without")
    assert code == 2 and len(said.splitlines()) <= 12


ROWS = [(f"with/{k}.png", "yes", f"masks/{k}.png") for k in range(6)] + [(f"without/{k}.png", "no", "") for k in range(6)]


def table(separator=",", head=("file", "presence", "mask"), change=lambda cell: cell, encoding="utf-8", before="", end="\n"):
    return (before + end.join(separator.join(map(change, row)) for row in [head, *ROWS]) + end).encode(encoding)


TABLES = {
    "commas": table(), "semicolons": table(";"), "tabs": table("\t"), "bars": table("|"), "spaces after commas": table(", "),
    "semicolons with commas in a column": table(";", ("file", "presence", "mask")).replace(b"yes;", b"yes;"),
    "sep= above": table(";", before="sep=;\n"), "a mark of UTF-8": table(encoding="utf-8-sig"), "UTF-16 with tabs": table("\t", encoding="utf-16"),
    "Windows' line ends": table(end="\r\n"), "Windows' paths": table(change=lambda cell: cell.replace("/", "\\")),
    "names in capitals": table(head=("File", "Presence", "Mask")), "paths from here": table(change=lambda cell: cell and cell.replace("with", "./with")),
    "quoted": table(change=lambda cell: f'"{cell}"'), "a comma at each line's end": table(end=",\n"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case, tmp_path, monkeypatch, capsys):
    usual(tmp_path / "set")
    for k, mask in enumerate(DISCS): save(tmp_path / "set" / "masks" / f"{k}.png", grey(mask))
    file = tmp_path / "set" / "table.csv"
    file.write_bytes(TABLES[case])
    monkeypatch.chdir(tmp_path)  # files lie beside the table, not here
    data = from_table(file)
    assert len(data) == 12 and np.allclose(shares(data), SHARES)
    assert np.allclose(shares(from_table(file, tmp_path / "set")), SHARES)
    code, out, said = typed(capsys, "describe", "data.set=table", f"data.table={file}")
    assert code == 0 and "6 true masks" in out and not said
    monkeypatch.chdir(tmp_path / "set")
    (tmp_path / "lists").mkdir()
    elsewhere = file.rename(tmp_path / "lists" / "table.csv")
    assert np.allclose(shares(from_table(elsewhere)), SHARES)  # neither beside the table, but here


def test_several_masks_in_a_table(tmp_path):
    suffixed("im{k}_{part}.png", 2)(tmp_path)
    files = [f"with/im{k}.png" for k in range(6)] + [f"without/{k}.png" for k in range(6)]
    parts = [f"masks/im{k}_1.png; masks/im{k}_2.png" for k in range(6)] + [""] * 6
    rows = pd.DataFrame({"file": files, "presence": [1] * 6 + [0] * 6, "mask": parts})
    assert np.allclose(shares(from_table(rows, tmp_path)), SHARES)
    each_mask = rows.assign(mask=rows["mask"].str.split("; ")).explode("mask")
    assert np.allclose(shares(from_table(each_mask, tmp_path)), SHARES)
    with pytest.raises(ImageSetError, match="or twice"):
        from_table(each_mask.assign(presence=[1, 0] * 6 + [0] * 6), tmp_path)


@pytest.mark.parametrize("says, change", [
    ("2 files of the table are not in", lambda text: text.replace(b"with/1.png", b"with/one.png").replace(b"with/2.png", b"with/two.png")),
    ("1 masks of the table are not in", lambda text: text.replace(b"masks/3.png", b"masks/three.png")),
    ("has no column 'presence'", lambda text: text.replace(b"presence", b"label")),
    ("it is a workbook. Save it as CSV", lambda text: b"PK\3\4" + text),
])
def test_tables_that_name_what_is_not_there(says, change, tmp_path, capsys):
    usual(tmp_path)
    for k, mask in enumerate(DISCS): save(tmp_path / "masks" / f"{k}.png", grey(mask))
    (tmp_path / "table.csv").write_bytes(change(table()))
    with pytest.raises(ImageSetError, match=says): from_table(tmp_path / "table.csv")
    code, _, said = typed(capsys, "describe", "data.set=table", f"data.table={tmp_path / 'table.csv'}")
    assert code == 2 and says in said


def test_a_list_takes_several_masks_of_an_image(tmp_path):
    suffixed("im{k}_{part}.png", 2)(tmp_path)
    files = [tmp_path / "with" / f"im{k}.png" for k in range(6)] + [tmp_path / "without" / f"{k}.png" for k in range(6)]
    masks = [[tmp_path / "masks" / f"im{k}_{part}.png" for part in (1, 2)] for k in range(6)] + [None] * 6
    assert np.allclose(shares(from_files(files, [1] * 6 + [0] * 6, masks=masks)), SHARES)


def test_a_run_measures_without_what_does_not_count(tmp_path, capsys):
    "From the command line: trained, judged at its end, and judged again. A bright band doesn't count, or is background."
    folders = {name: tmp_path / name for name in ("with", "without", "masks")}
    band = np.mgrid[:32, :32][0] < 8
    for k in range(16):
        blob = np.hypot(*np.mgrid[-16:16, -16:16]) < 5 + k % 3
        pixels = RNG.integers(0, 120, (32, 32), dtype=np.uint8)
        save(folders["without"] / f"{k}.png", np.roll(pixels, 7, 0))
        save(folders["with"] / f"{k}.png", np.where(blob | band, 255 - pixels // 4, pixels))
        save(folders["masks"] / f"{k}_mask.png", np.where(blob, 1, 9 * band).astype(np.uint8))
    tiny = ["clusters.n_clusters=2", "clusters.encoder=pca", "network.base_width=4", "network.depth=1", "schedule.steps=4",
            "schedule.rounds=1", "schedule.choose=false", "trainer.accelerator=cpu"]
    code, _, said = typed(
        capsys, "train", "--objects", folders["with"], "--backgrounds", folders["without"], "--masks", folders["masks"],
        "data.mask_ignore=9", *tiny, "--folder", tmp_path / "run", "--quiet")
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["otsu_iou"] > 0.95
    code, out, said = typed(
        capsys, "evaluate", tmp_path / "run", "--out", tmp_path / "again", "--data", "set=folders", "mask_labels=[1]",
        "mask_ignore=[]", *(f"{kind}_folder={folders[name]}" for kind, name in zip(("object", "background", "mask"), folders)))
    assert code == 0 and 0.1 < float(re.search(r"otsu_iou +([\d.]+)", out)[1]) < 0.6, said
