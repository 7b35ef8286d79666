"Whole images of mixed sizes, of which only the whole is known to show the object, as windows at a scale."
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bgcs.data.annotations import read_labels
from bgcs.data.describe import describe
from bgcs.data.files import ImageSetError
from bgcs.data.images import from_files, from_folders
from bgcs.data.splits import split
from bgcs.data.windows import Windows, find_scale, place_windows
from bgcs.masks.criteria import _judge, _presence_share, criteria, hold_out
from bgcs.masks.method import load_method
from bgcs.masks.predict import predict_files, predict_large
from bgcs.masks.segment import Segmenter
from bgcs.masks.whole import evaluate_whole, plot_whole, predict_whole
from bgcs.outputs.onnx import export_onnx
from bgcs.widgets.browser import MaskBrowser


def _write(folder, n, rng, shows=True, low=90, high=180, dtype=np.uint8):
    "Noise of mixed sizes, with a bright square each; files, and masks beside them."
    folder.mkdir(parents=True)
    (masks := folder.parent / "masks").mkdir(exist_ok=True)
    for k in range(n):
        h, w = rng.integers(low, high, 2)
        image, mask = rng.normal(100, 20, (h, w)).clip(0, 255).astype(dtype), np.zeros((h, w), np.uint8)
        if shows:
            top, left = rng.integers(0, (h - 20, w - 20))
            image[top:top + 20, left:left + 20] = mask[top:top + 20, left:left + 20] = 255
            Image.fromarray(mask).save(masks / f"{k:02}.png")
        Image.fromarray(image).save(folder / f"{k:02}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    return _write(tmp_path / "with", 16, rng), _write(tmp_path / "without", 16, rng, shows=False)


@pytest.fixture
def data(folders):
    return from_folders(*folders, mask_folder=folders[0].parent / "masks", window=32, scale=0.5, progress=False)


def test_sets_of_mixed_sizes_open_as_they_are(folders):
    found = from_folders(*folders, progress=False)
    assert found.shape == (1, 48, 48)
    assert "48×48 at scale" in repr(found) and "16 object + 16 background-only images" in repr(found)
    assert len(found) > 32 and set(found.whole) == set(range(32))
    assert all(found.presence.numpy() == found.windows.presence[found.whole])


def test_one_image_of_another_size_is_a_mistake(tmp_path):
    rng = np.random.default_rng(0)
    a = _write(tmp_path / "a", 20, rng, low=64, high=65)
    b = _write(tmp_path / "b", 20, rng, shows=False, low=64, high=65)
    Image.fromarray(np.zeros((70, 64), np.uint8) + np.arange(64, dtype=np.uint8)).save(a / "odd.png")
    with pytest.raises(ImageSetError, match="window="): from_folders(a, b, progress=False)
    assert from_folders(a, b, window=32, progress=False).windows is not None
    (a / "odd.png").unlink()
    assert from_folders(a, b, progress=False).windows is None


def test_windows_show_what_lies_there(data):
    i = 5
    top, left, height, width, _ = data.places[i]
    image = data.windows.image(data.whole[i])[0].astype(float)
    part = image[top:top + height, left:left + width]
    shrunk = torch.nn.functional.interpolate(torch.tensor(part)[None, None], (32, 32), mode="bilinear", antialias=True)
    assert (data.images[i:i + 1] * 255 - shrunk).abs().max() < 1
    truth = data.windows.mask(data.whole[i])[0][top:top + height, left:left + width]
    assert abs(float(data.masks[:][i].float().mean()) - truth.mean()) < 0.03


def test_windows_cover_every_pixel(data):
    for k in range(3):
        seen = np.zeros(data.windows.sizes[k], bool)
        for top, left, height, width, _ in data.places[data.whole == k]: seen[top:top + height, left:left + width] = True
        assert seen.all()


def test_images_smaller_than_a_window_are_mirrored_out(tmp_path):
    rng = np.random.default_rng(0)
    a, b = _write(tmp_path / "a", 4, rng, low=24, high=60), _write(tmp_path / "b", 4, rng, False, low=24, high=60)
    found = from_folders(a, b, window=64, scale=1.0, progress=False)
    assert len(found) == 8 and found.shape == (1, 64, 64)
    image = found.windows.image(0)
    top = (64 - image.shape[1]) // 2
    left = (64 - image.shape[2]) // 2
    inside = found.images[0, :, top:top + image.shape[1], left:left + image.shape[2]] * 255
    assert torch.allclose(inside, torch.tensor(image).float(), atol=0.01)


def test_few_windows_are_drawn_from_every_image(folders):
    found = from_folders(*folders, window=32, scale=1.0, most_windows=64, progress=False)
    assert len(found) <= 64 and set(found.whole) == set(range(32))
    again = from_folders(*folders, window=32, scale=1.0, most_windows=64, progress=False)
    assert (found.places == again.places).all()
    assert f"{len(found)} of the {found.windows.total} windows" in str(describe(found))


def test_parts_of_one_image_stay_together(data):
    parts = split(data, val=0.2, test=0.2)
    seen = [set(part.whole) for part in (parts.train, parts.val, parts.test)]
    assert not seen[0] & seen[1] and not seen[1] & seen[2] and not seen[0] & seen[2]
    assert set.union(*seen) == set(range(32))


def test_described_in_the_words_of_whole_images(data):
    text = str(describe(data))
    assert "16 object + 16 background-only images of" in text and "presence is known of the whole" in text
    assert "8 px become 4" in text and "windows of 32×32 at scale 0.5" in text


@pytest.mark.parametrize("options, said", [
    (dict(scale="small"), "'objects 40'"),
    (dict(scale=0), "above 0"),
    (dict(scale=100.0), "at most 8"),
    (dict(scale="objects 0"), "'objects 40'"),
    (dict(scale=True), "expected a number"),
    (dict(window=3), "window=3"),
    (dict(window=32, resize=(64, 64)), "say one of them"),
    (dict(most_windows=0), "most_windows=0"),
])
def test_what_cannot_be_is_refused(folders, options, said):
    with pytest.raises(ValueError, match=said): from_folders(*folders, progress=False, **options)


def test_a_damaged_image_is_named(folders):
    (folders[0] / "03.png").write_bytes(b"no image")
    with pytest.raises(ImageSetError, match="03.png"): from_folders(*folders, window=32, progress=False)
    with pytest.warns(UserWarning, match="cannot be used"):
        found = from_folders(*folders, window=32, on_bad="skip", lazy=False, progress=False)
    assert 3 not in set(found.whole)


def test_truth_is_not_among_what_training_sees(data):
    weak = data.weak()
    assert weak.masks is None and weak.windows.masks is None
    assert data.windows.masks is not None


def _wrong_in_backgrounds(spots):
    "Bright squares, and in images without one either a spot that is surer still, or a haze over all of a window."
    def masks(images):
        squares = 0.8 * (images > 0.95).float()
        none = squares.flatten(1).mean(1)[:, None, None, None] < 0.05
        wrong = torch.zeros_like(squares)
        if spots: wrong[..., :4, :4] = 1
        else: wrong[:] = 0.3
        return torch.where(none, wrong, squares if spots else squares * (torch.rand(images.shape) < 0.1))
    return masks


@pytest.mark.parametrize("spots, least, most", [(True, 0.05, 0.2), (False, 0.002, 0.01)], ids=["large objects", "small ones"])
def test_the_share_that_tells_presence_is_that_of_the_objects(tmp_path, spots, least, most):
    rng = np.random.default_rng(0)
    folders = _write(tmp_path / "with", 24, rng), _write(tmp_path / "without", 24, rng, shows=False)
    data = from_folders(*folders, window=32, scale=0.5, progress=False)
    torch.manual_seed(0)
    assert least <= _presence_share(_wrong_in_backgrounds(spots), data) <= most
    few = data[torch.from_numpy(data.whole % 2 == 0)]
    assert _presence_share(_wrong_in_backgrounds(spots), few) == 0.05  # 12 of each kind tell nothing
    assert least <= _presence_share(_wrong_in_backgrounds(spots), data, most=len(data)) <= most


def test_the_share_is_found_by_images_of_both_kinds_however_they_follow_each_other(tmp_path):
    rng = np.random.default_rng(0)
    folders = _write(tmp_path / "with", 40, rng), _write(tmp_path / "without", 40, rng, shows=False)
    files = [file for pair in zip(*(sorted(folder.iterdir()) for folder in folders)) for file in pair]
    names = [f"{file.parent.name}/{file.name}" for file in files]
    data = from_files(files, [True, False] * 40, names=names, window=32, scale=0.5, progress=False)
    seen = []
    def masks(images): return seen.append(len(images)) or _wrong_in_backgrounds(True)(images)
    assert 0.05 <= _presence_share(masks, data, most=len(data) // 2) <= 0.2  # every other image of each kind
    assert 0.3 * len(data) < sum(seen) < 0.7 * len(data)


def test_presence_by_the_share_that_was_learned(tmp_path):
    rng = np.random.default_rng(0)
    folders = _write(tmp_path / "with", 24, rng), _write(tmp_path / "without", 24, rng, shows=False)
    data = from_folders(*folders, window=32, scale=0.5, progress=False)
    halves = torch.arange(len(data)) % 2
    model = Segmenter(base_width=4, random_state=0).fit(data, halves, steps=6, rounds=1, held_out=None, progress=False)
    assert model.presence_share_ == _presence_share(model, data.packed(progress=False).weak())
    model.presence_share_ = 0.01
    model.save(tmp_path / "model")
    again = load_method(tmp_path / "model")
    assert again.presence_share_ == 0.01
    files = [data.paths[0]]
    few, many = (float(predict_files(again, files, tmp_path / name, progress=False).images.presence[0])
                 for name, again.presence_share_ in (("few", 0.01), ("many", 0.2)))
    assert few > many
    browser = MaskBrowser(again, files).predict_all().wait()
    try: assert browser.scores_.presence.tolist() == [pytest.approx(many, abs=1e-4)]
    finally: browser.close()


def test_model_knows_its_windows(data, tmp_path):
    model = Segmenter(base_width=4, random_state=0).fit(data, steps=6, rounds=1, held_out=None, progress=False)
    assert model.windows_ == Windows(32, 0.5)
    model.save(tmp_path / "model")
    again = load_method(tmp_path / "model")
    assert again.windows_ == model.windows_
    image = data.windows.image(0)
    mask = predict_large(again, image, 0, progress=False)
    assert mask.shape == image.shape[1:]
    said = predict_large(model, image, 0, tile=64, resize=32, progress=False)
    np.testing.assert_allclose(mask, said)
    done = predict_files(model, [data.paths[0]], tmp_path / "out", progress=False)
    assert done.images.height[0] == image.shape[1]
    found = dict(predict_whole(model, data, progress=False))
    np.testing.assert_allclose(found[0], mask)
    assert plot_whole(model, data, n=2).axes


def test_measured_on_whole_images(data):
    "A model that knows where squares are, and one that knows nothing."
    def bright(images): return (images > 0.9).float()
    def nothing(images): return torch.zeros_like(images)
    good, bad = evaluate_whole(bright, data, 0.5, False), evaluate_whole(nothing, data, 0.5, False)
    assert good["ap"] > 0.8 and good["presence_auc"] > 0.95 and good["iou"] > 0.7
    assert bad["iou"] == 0 and bad["presence_auc"] == 0.5
    with pytest.raises(ValueError, match="true masks"): evaluate_whole(bright, data.weak(), 0.5)


def test_whole_images_are_judged_by_their_surest_window(data):
    clusters = torch.from_numpy(data.whole % 2)
    held_out = hold_out(data, clusters)
    assert held_out.bags.whole.unique().tolist() == list(range(32)) and int(held_out.bags.shows.sum()) == 16
    found = criteria(lambda images: (images > 0.9).float(), held_out)
    assert found["separation"] > 0.95 and found["score"] > 0.3 and "evidence" not in found
    assert _judge(lambda images: (images > 0.9).float(), held_out, 0.5).word != "failed"
    assert criteria(lambda images: torch.full_like(images, 0.5), held_out)["separation"] == 0.5


def test_same_windows_from_a_packed_cache(data, folders, tmp_path):
    lazy = from_folders(*folders, window=32, scale=0.5, lazy=True, progress=False)
    packed = lazy.packed(tmp_path / "cache", progress=False)
    assert torch.equal(packed.images[:], data.images[:]) and (packed.whole == data.whole).all()


def test_files_of_16_bits_and_colours(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for k in range(4):
            h, w = rng.integers(70, 120, 2)
            Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(tmp_path / kind / f"{k}.png")
    found = from_folders(tmp_path / "a", tmp_path / "b", window=32, progress=False)
    assert found.shape == (3, 32, 32)
    assert from_folders(tmp_path / "a", tmp_path / "b", window=32, color="gray", progress=False).shape == (1, 32, 32)


def test_scale_follows_from_a_word():
    sizes = np.array([[300, 400], [200, 800], [400, 500]])
    assert find_scale("shortest 150", sizes, 64) == 0.5
    assert find_scale("longest 250", sizes, 64) == 0.5
    assert find_scale("objects 32", sizes, 64) == 0.5
    assert find_scale(None, np.array([[30, 40]]), 64) == 1.0  # nothing is enlarged unasked


def test_places_keep_to_images():
    sizes = np.array([[50, 200], [10, 10], [64, 64]])
    which, places, total = place_windows(sizes, 64)
    assert total == len(which) and (np.bincount(which) == [6, 1, 1]).all()
    ends = places[:, :2] + places[:, 2:4]
    assert (ends <= sizes[which]).all()


def test_from_a_list_of_files(folders):
    files = sorted(folders[0].iterdir()) + sorted(folders[1].iterdir())
    found = from_files(files, [True] * 16 + [False] * 16, window=32, scale="objects 20", progress=False)
    assert found.windows.windows.scale == pytest.approx(0.4)


def test_labels_of_whole_images_are_cut_along(data, folders):
    labels = read_labels(folders[0].parent / "masks", data.weak())["masks"]
    assert len(labels) == int(data.presence.sum())  # also of windows that are known to show nothing
    for i in (0, 5, 9): assert float((torch.as_tensor(labels[i]) != data.masks[:][i, 0]).float().mean()) < 0.01
    model = Segmenter(base_width=4, random_state=0)
    model.fit(data.weak(), steps=4, rounds=1, held_out=None, masks=labels, progress=False)
    assert model.windows_ == Windows(32, 0.5)


def test_labels_know_nothing_of_what_is_mirrored(tmp_path):
    rng = np.random.default_rng(0)
    a, b = _write(tmp_path / "a", 4, rng, low=24, high=50), _write(tmp_path / "b", 4, rng, False, low=24, high=50)
    found = from_folders(a, b, window=64, scale=1.0, progress=False)
    labels = read_labels(tmp_path / "masks", found)["masks"]
    h, w = found.windows.sizes[0]
    known = torch.as_tensor(labels[0]) != 255
    assert int(known.sum()) == h * w and bool(known[(64 - h) // 2 :][0, 32])


def test_the_script_without_torch_keeps_to_the_scale(data, tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    model = Segmenter(base_width=4, random_state=0).fit(data, steps=6, rounds=1, held_out=None, progress=False)
    model.threshold_ = float(np.median(predict_large(model, data.windows.image(0), 0, progress=False)))
    path = export_onnx(model, tmp_path / "model.onnx", script=True)
    (tmp_path / "images").mkdir()
    for k in (0, 1): Image.open(data.windows.images.paths[k]).save(tmp_path / "images" / f"{k}.png")
    command = [sys.executable, path.with_suffix(".py"), path, tmp_path / "images", tmp_path / "out"]
    subprocess.run(command, check=True)
    for k in (0, 1):
        image = data.windows.image(k)[0]
        small = [max(8, round(n * 0.5)) for n in image.shape]
        shrunk = torch.nn.functional.interpolate(torch.tensor(image / 255.0, dtype=torch.float32)[None, None],
                                                 small, mode="bilinear", antialias=True)
        soft = model.predict(shrunk)
        expected = torch.nn.functional.interpolate(soft, image.shape, mode="bilinear")[0, 0] >= model.threshold_
        written = np.asarray(Image.open(tmp_path / "out" / f"{k}.png")) > 0
        assert written.shape == image.shape and (written == expected.numpy()).mean() > 0.97


def test_whole_images_are_browsed_and_predicted_by_a_set(data, tmp_path):
    from bgcs.widgets.browser import MaskBrowser
    model = Segmenter(base_width=4, random_state=0).fit(data, steps=4, rounds=1, held_out=None, progress=False)
    browser = MaskBrowser(model, data)
    assert len(browser.scores_) == 32
    expected = predict_large(model, data.windows.image(0), 0, progress=False)
    assert np.abs(browser.mask(0) - expected).max() < 1e-3
    browser.close()
    assert len(predict_files(model, data, tmp_path / "out", progress=False).images) == 32
