"The browser of masks without a browser: what the page sends, work ahead, interruptions, decisions of several, formats."
import io
import json
import threading
import time
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco
from test_predict import model, noise

from bgcs.data.files import ImageSetError
from bgcs.data.images import from_arrays
from bgcs.masks.predict import predict_files, predict_large
from bgcs.widgets.browser import _EIGHT, MaskBrowser, _most_of_four

PATIENCE = 300  # seconds, which only a hang takes
SIZES = [(40, 60), (64, 33), (50, 50), (90, 41), (33, 70)]


@pytest.fixture(scope="module")
def segmenter(): return model()


@pytest.fixture
def arrays(): return [noise(*size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture
def opened():
    "Opens browsers, and closes them."
    browsers = []
    yield lambda *args, **settings: browsers.append(MaskBrowser(*args, **settings)) or browsers[-1]
    for browser in browsers: browser.close()


@pytest.fixture
def survey(tmp_path, arrays):
    for k, array in enumerate(arrays):
        path = tmp_path / "survey" / f"dive{k % 2}" / f"line{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return tmp_path / "survey"


class Page:
    "What a page sends, and what it gets."
    def __init__(self, browser):
        self.browser, self.got, self.asked = browser, [], 0
        browser.view.send = lambda content, buffers=(): self.got.append((content, list(buffers)))

    def send(self, **content):
        self.asked += 1
        self.browser.view._handle_custom_msg({**content, "page": "p", "id": self.asked}, [])
        assert ({"heard": ["p", self.asked]}, []) in self.got

    def wants(self, image, tiles, thumbs=(), ahead=()):
        self.send(do="wants", image=image, ahead=list(ahead), tiles=[list(tile) for tile in tiles], thumbs=list(thumbs))

    def wait(self, holds):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for content, buffers in list(self.got):
                if holds(content): return content, buffers
            time.sleep(0.01)
        raise AssertionError("nothing came")

    def tile(self, *what): return self.wait(lambda content: content.get("tile") == list(what))

    def masked(self, i): return self.wait(lambda content: content.get("masked", {}).get("image") == i)

    @property
    def said(self): return self.browser.view.panel["said"]


def test_a_page_gets_what_it_lacks(opened, segmenter, arrays):
    browser = opened(segmenter, arrays, tile=32)
    page = Page(browser)
    page.wants(1, [["info", 1], ["picture", 1, 0, 0, 0]], thumbs=[1, 4])
    info = page.wait(lambda content: "info" in content)[0]["info"]
    assert info == {"image": 1, "name": "1", "height": 64, "width": 33, "levels": 1}
    picture = np.asarray(Image.open(io.BytesIO(page.tile("picture", 1, 0, 0, 0)[1][0])))
    assert picture.shape == (64, 33) and np.corrcoef(picture.ravel(), arrays[1].ravel())[0, 1] > 0.99
    told, (hist,) = page.masked(1)
    expected = predict_large(segmenter, arrays[1], tile=32, progress=False)
    page.wants(1, [["mask", 1, 0, 0, 0]])
    content, (packed,) = page.tile("mask", 1, 0, 0, 0)
    codes = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(content["shape"])
    assert np.abs((codes - 1.0) / 254 - expected).max() < 0.5 / 254 + 1e-4
    assert np.frombuffer(hist, np.uint32).tolist() == np.bincount(codes.ravel(), minlength=256).tolist()
    assert page.wait(lambda content: content.get("thumb") == 4)[0]["name"] == "4"
    assert np.abs(browser.mask(1) - expected).max() < 2e-5


def test_a_large_image_comes_in_tiles(opened, segmenter, tmp_path):
    image = noise(1300, 700, 5, channels=3)
    tifffile.imwrite(tmp_path / "large.tif", image, photometric="rgb")
    page = Page(opened(model(3), [tmp_path / "large.tif"], tile=128, overlap=0))
    page.wants(0, [["info", 0], ["picture", 0, 2, 0, 0], ["picture", 0, 0, 2, 1]])
    info = page.wait(lambda content: "info" in content)[0]["info"]
    assert (info["name"], info["levels"]) == ("large.tif", 3)
    corner = Image.open(io.BytesIO(page.tile("picture", 0, 0, 2, 1)[1][0]))
    assert corner.size == (700 - 512, 1300 - 1024) and corner.mode == "RGB"
    assert np.abs(np.asarray(corner).astype(int) - image[1024:, 512:]).mean() < 6  # as JPEG
    page.masked(0)
    codes = page.browser._desk.shelf.get(("codes", 0))
    page.wants(0, [["mask", 0, 2, 0, 0]])
    content, (packed,) = page.tile("mask", 0, 2, 0, 0)
    coarse = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(content["shape"])
    assert (coarse == _EIGHT[codes.levels[2]]).all() and coarse.max() == _EIGHT[codes.levels[0]].max()


def test_the_newest_wish_counts_and_nothing_is_sent_twice(opened, segmenter, arrays):
    page = Page(opened(segmenter, arrays, tile=32))
    page.wants(0, [["picture", 0, 0, 0, 0]])
    page.tile("picture", 0, 0, 0, 0)
    page.wants(0, [["picture", 0, 0, 0, 0], ["picture", 2, 0, 0, 0]])
    page.tile("picture", 2, 0, 0, 0)
    assert sum(content.get("tile") == ["picture", 0, 0, 0, 0] for content, _ in page.got) == 1
    time.sleep(0.6)  # it was lost, and is asked for again
    page.wants(0, [["picture", 0, 0, 0, 0], ["picture", 3, 0, 0, 0]])
    page.tile("picture", 3, 0, 0, 0)
    assert sum(content.get("tile") == ["picture", 0, 0, 0, 0] for content, _ in page.got) == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (5, 5), (8, 3)])
def test_the_highest_of_four(shape):
    level = noise(*shape, 3).astype(np.uint16)
    found = _most_of_four(level)
    blocks = [[level[y:y + 2, x:x + 2].max() for x in range(0, shape[1], 2)] for y in range(0, shape[0], 2)]
    assert (found == blocks).all()


class Slow:
    "A model that waits at its gate at each batch."
    normalization_, settings, threshold_ = None, {"channels": 1}, 0.5

    def __init__(self): self.gate, self.batches = threading.Semaphore(0), []

    def predict(self, images):
        self.batches.append(images.shape)
        assert self.gate.acquire(timeout=PATIENCE)
        return (images > 0.5).float()

    def until(self, n):
        end = time.monotonic() + PATIENCE
        while len(self.batches) < n and time.monotonic() < end: time.sleep(0.01)
        assert len(self.batches) >= n


def test_what_is_seen_comes_before_a_large_image_is_done(opened):
    slow = Slow()
    images = [noise(320, 320, 0), *(noise(16, 16, k) for k in range(1, 5))]
    browser = opened(slow, images, tile=32, overlap=0, batch_size=10)
    page = Page(browser)
    slow.until(1)  # the first of ten batches of the large one
    browser.show(3)
    slow.gate.release(2)
    page.masked(3)
    assert not any(content.get("masked", {}).get("image") == 0 for content, _ in page.got)
    slow.gate.release(100)
    page.masked(4)


def test_a_large_image_that_nobody_looks_at_any_more_is_given_up(opened):
    slow = Slow()
    browser = opened(slow, [noise(320, 320, 0), *(noise(16, 16, k) for k in range(1, 9))], tile=32, overlap=0, batch_size=10)
    page = Page(browser)
    slow.until(1)
    browser.show(6)
    slow.gate.release(100)
    for i in (6, 7, 8, 5): page.masked(i)
    assert sum(shape[0] == 10 for shape in slow.batches) < 5 and not browser._desk.scores.done[0]
    assert (browser.show(0).wait().mask() == (browser.source.read(0)[0] > 127)).all()


def test_closing_ends_the_threads_at_once(opened):
    slow = Slow()
    browser = opened(slow, [noise(320, 320, 0)], tile=32, overlap=0, batch_size=10)
    slow.until(1)
    threading.Timer(0.2, slow.gate.release, [1]).start()
    browser.close()
    assert not any(thread.is_alive() for thread in browser._desk.threads) and len(slow.batches) == 1
    browser.close()


def test_an_error_of_the_model_is_said_of_its_image_alone(opened, arrays):
    def odd(images): return images * float("nan") if images.shape[-1] == 50 else images
    browser = opened(odd, arrays).predict_all().wait()
    assert browser.scores_.problem.map(bool).tolist() == [False, False, True, False, False]
    assert "the model gave NaN" in browser.scores_.problem.iloc[2]
    with pytest.raises(ValueError, match="NaN"): browser.mask(2)
    page = Page(browser)
    page.wants(2, [["info", 2]])
    assert "NaN" in page.masked(2)[0]["masked"]["problem"]


def test_too_large_for_one_piece_says_what_to_do(opened, segmenter):
    browser = opened(segmenter, [np.zeros((3000, 2000), np.uint8)]).wait()
    assert "Say tile=" in browser.scores_.problem.iloc[0]


def test_little_memory_is_enough(opened, segmenter, arrays):
    browser = opened(segmenter, arrays * 4, tile=32, memory=1)
    browser._desk.shelf.most = 20_000  # bytes: three masks or so
    browser.sort_by("size").wait()
    assert browser.scores_["size"].notna().all() and browser._desk.shelf.nbytes < 60_000
    for i in range(20): assert np.abs(browser.show(i).wait().mask() - predict_large(segmenter, arrays[i % 5], tile=32)).max() < 2e-5


def test_a_file_that_is_mended_is_read(opened, segmenter, survey):
    path = survey / "dive0" / "line0.png"
    good = path.read_bytes()
    path.write_bytes(b"")
    page = Page(opened(segmenter, survey, tile=32))
    page.wants(0, [["info", 0]], thumbs=[0])
    assert page.wait(lambda c: "info" in c)[0]["info"]["problem"].startswith("dive0/line0.png is empty (0 bytes)")
    assert "is empty" in page.wait(lambda c: "thumb" in c)[0]["problem"]
    path.write_bytes(good)
    time.sleep(0.6)
    page.wants(0, [["info", 0]])
    assert page.wait(lambda c: c.get("info", {}).get("height"))[0]["info"]["height"] == 40
    assert page.browser.mask(0).shape == (40, 60)


def test_decisions_of_the_page_are_kept(opened, segmenter, survey, tmp_path):
    browser = opened(segmenter, survey, folder=tmp_path / "kept", tile=32)
    page = Page(browser)
    for image, decision in enumerate(["accepted", "rejected", "correct", "accepted"]):
        page.send(do="decide", image=image, decision=decision, threshold=0.3 + image / 10)
    page.send(do="decide", image=3, decision=None, threshold=0.5)
    assert browser.view.panel["counts"] == [2, 1, 1, 1] and bytes(browser.view.marks) == bytes([1, 2, 3, 0, 0])
    page.send(do="decide", image=3, decision="perhaps", threshold=0.5)
    assert "decision='perhaps' is not known" in page.said and browser.view.panel["wrong"]
    again = opened(segmenter, survey, folder=tmp_path / "kept", tile=32)
    pd.testing.assert_frame_equal(again.decisions_, browser.decisions_)
    assert again.decisions_.threshold[:3].tolist() == [0.3, 0.4, 0.5]
    again.decide("accepted", 4)  # beside the first, which goes on
    browser.decide("accepted", 3)
    known = json.loads((tmp_path / "kept" / "decisions.json").read_text())["decisions"]
    assert len(known) == 5
    fewer = opened(segmenter, survey / "dive1", folder=tmp_path / "kept", tile=32)
    assert "5 decisions in decisions.json are of images not here (dive0/line0.png" in fewer.view.panel["said"]
    fewer.decide("rejected", 0)
    assert len(json.loads((tmp_path / "kept" / "decisions.json").read_text())["decisions"]) == 6


def test_a_decision_that_cannot_be_written_is_not_taken(opened, segmenter, arrays, tmp_path, monkeypatch):
    browser = opened(segmenter, arrays, folder=tmp_path, tile=32)
    page = Page(browser)
    def full(path, content): raise OSError(28, "the disk is full")
    monkeypatch.setattr("bgcs.widgets.browser.replace_file", full)
    page.send(do="decide", image=0, decision="accepted", threshold=0.5)
    assert "the disk is full" in page.said and bytes(browser.view.marks) == bytes(5)
    monkeypatch.undo()
    page.send(do="decide", image=0, decision="accepted", threshold=0.5)
    assert page.said == "" and bytes(browser.view.marks)[0] == 1


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other", "decisions": {}}', '{"format": "bgcs.decisions/1", "decisions": {"a": {"decision": "maybe"}}}',
                                  '{"format": "bgcs.decisions/1", "decisions": {"a": 3}}'])
def test_a_damaged_file_of_decisions_is_left_alone(segmenter, arrays, tmp_path, text):
    (tmp_path / "decisions.json").write_text(text)
    with pytest.raises(ValueError, match="Mend it or move it away"): MaskBrowser(segmenter, arrays, folder=tmp_path, tile=32)
    assert (tmp_path / "decisions.json").read_text() == text


def test_lists_that_the_page_asks_for(opened, segmenter, arrays):
    browser = opened(segmenter, arrays, tile=32)
    page = Page(browser)
    page.send(do="sort", by="size", reverse=False, show="all")
    browser.wait()
    order = lambda: np.frombuffer(browser.view.order, np.uint32).tolist()
    sizes = browser.scores_["size"].to_numpy()
    assert sizes[order()].tolist() == sorted(sizes, reverse=True) and browser.view.current == order()[0]
    largest = order()[0]
    page.send(do="sort", by="size", reverse=True, show="all")
    assert order()[-1] == largest
    page.send(do="decide", image=2, decision="rejected", threshold=0.5)
    page.send(do="sort", by="name", reverse=False, show="undecided")
    assert order() == [0, 1, 3, 4]
    page.send(do="sort", by="name", reverse=False, show="accepted")
    assert order() == []
    browser.next()
    page.send(do="sort", by="colour", reverse=False, show="all")
    assert "by='colour' is not known" in page.said


def test_the_shape_of_size_follows_the_threshold(opened, arrays):
    browser = opened(lambda images: images, arrays).predict_all().wait()
    for threshold in (0.2, 0.7):
        browser.show(threshold=threshold)
        expected = [(array / 255 >= threshold).mean() for array in arrays]
        assert np.abs(browser.scores_["share"] - expected).max() < 0.01


def test_predictions_need_no_model(opened, segmenter, survey, tmp_path):
    Image.fromarray(noise(30, 30, 1, channels=3)).save(survey / "colour.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = predict_files(segmenter, survey, tmp_path / "out", tile=32, threshold=0.3, on_bad="skip", progress=False)
        hard = predict_files(segmenter, survey, tmp_path / "hard", tile=32, soft=False, on_bad="skip", progress=False)
    browser = opened(None, written).sort_by("uncertainty").wait()
    assert browser.view.settings["threshold"] == 0.3 and browser.source.names[0] == "colour.png"
    assert "has 3 channels" in browser.scores_.problem.iloc[0] and browser.scores_["size"].notna().sum() == 5
    for i, name in enumerate(browser.source.names[1:], 1):
        image = np.asarray(Image.open(survey / name))
        assert np.abs(browser.mask(i) - predict_large(segmenter, image, tile=32, progress=False)).max() < 2e-5
    of_folder = opened(None, tmp_path / "hard")
    assert set(np.unique(of_folder.mask(1))) <= {0, 1} and of_folder.view.settings["threshold"] == segmenter.threshold_
    masks = np.asarray(Image.open(hard.folder / hard.images["mask"][1]))
    assert ((of_folder.mask(1) > 0) == (masks == 255)).all()
    (tmp_path / "hard" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="predict again"): MaskBrowser(None, tmp_path / "hard")


def test_unseen_pixels_stay_unseen(opened, tmp_path):
    image = noise(40, 40, 2).astype(np.float32) / 255
    image[:10] = np.nan
    browser = opened(model(), [image], tile=32).wait()
    assert np.isnan(browser.mask(0)[:10]).all() and np.isfinite(browser.mask(0)[10:]).all()
    path, = browser.export(tmp_path / "png", "all")
    assert (np.asarray(Image.open(path))[:10] == 127).all()
    assert abs(browser.scores_["share"].iloc[0] - (browser.mask(0)[10:] >= 0.5).mean()) < 0.01  # counted in 8 bits


def test_masks_go_out_as_others_read_them(opened, segmenter, survey, tmp_path):
    browser = opened(segmenter, survey, tile=32)
    browser.show(threshold=0.6)
    for image in (0, 1, 3): browser.decide("accepted", image)
    browser.show(threshold=0.5)
    written = browser.export(tmp_path / "png")
    assert [path.relative_to(tmp_path / "png").as_posix() for path in written] == [
        "dive0/line0.png", "dive0/line2.png", "dive1/line1.png"]
    assert ((np.asarray(Image.open(written[1])) == 255) == (browser.mask(1) >= 0.6)).all()
    path, = browser.export(tmp_path / "coco", [0, "dive1/line1.png"], format="coco", threshold=0.4)
    found = json.loads(path.read_text())
    assert [image["file_name"] for image in found["images"]] == ["dive0/line0.png", "dive1/line1.png"]
    for image in found["images"]:
        total = np.zeros((image["height"], image["width"]), int)
        for one in found["annotations"]:
            if one["image_id"] != image["id"]: continue
            packed = one["segmentation"]
            total += coco.decode(packed)
            assert one["area"] == coco.area(packed) and one["bbox"] == coco.toBbox(packed).tolist()
        assert total.max() == 1 and (total == (browser.mask(image["file_name"]) >= 0.4)).all()
    with pytest.raises(ValueError, match="holds other things"): browser.export(tmp_path / "png")
    with pytest.raises(ValueError, match="holds the images themselves"): browser.export(survey)
    with pytest.raises(ValueError, match="no image is of this kind"): browser.export(tmp_path / "no", "correct")


def test_masks_that_cannot_be_written_are_named(opened, segmenter, survey, tmp_path):
    (survey / "dive0" / "line2.png").write_bytes(b"cut off")
    browser = opened(segmenter, survey, tile=32)
    with pytest.raises(ImageSetError, match="1 of 5 masks could not be written to .*\n  dive0/line2.png is not an image"):
        browser.export(tmp_path / "out", "all")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


def test_an_image_set_as_the_model_sees_it(opened, segmenter):
    pixels = torch.rand(6, 1, 24, 24)
    data = from_arrays(pixels[:3].numpy(), pixels[3:].numpy())
    browser = opened(segmenter, data).wait()
    assert np.abs(browser.mask(4) - segmenter.predict(data.images[4:5])[0, 0].numpy()).max() < 2e-5
    other = from_arrays(pixels[:3].numpy(), pixels[3:].numpy(), normalization="zscore")
    with pytest.raises(ValueError, match="open them with normalization"): MaskBrowser(segmenter, other)


def test_outside_of_a_notebook_it_is_said_in_words(opened, segmenter, arrays, capsys):
    browser = opened(segmenter, arrays, tile=32).wait()
    browser.decide("accepted", 0)
    browser._ipython_display_()
    assert capsys.readouterr().out.startswith("MaskBrowser: 0, image 1 of 5; presence")
    assert browser._picture_bytes()[:4] == b"\x89PNG"
    figure = browser.plot()
    assert len(figure.axes) == 2


# ---- the picture that stays in a notebook

@pytest.mark.parametrize("side, channels", [(20, 1), (900, 3)])
def test_the_still_picture_is_small_and_shows_image_and_mask(opened, side, channels):
    images = [noise(side, side + 40, seed, channels=channels) for seed in range(2)]
    browser = opened(model(channels=channels), images, tile=32).wait()
    (live, _), (fallback, _) = browser._bundles()
    picture = np.asarray(Image.open(io.BytesIO(live["image/png"])).convert("RGB")).astype(int)
    assert 0 < len(live["image/png"]) < 150_000 and picture.std() > 10
    assert live["text/plain"].startswith("MaskBrowser: ") and "showStill" in fallback["text/html"]
    half = picture.shape[1] // 2
    assert np.abs(picture[:, :half] - picture[:, half:2 * half]).mean() > 1  # the mask's own picture lies beside the image
