"""The page of a run holds all that is there and loads nothing; what is missing or damaged costs its own part only; nothing of a run becomes code."""
import base64
import errno
import io
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.segment import Segmenter
from bgcs.runs.report import _READING, _read_run, _warnings_of, data_uri, plot_losses, read_losses, write_report

CHROMIUM = os.environ.get("BGCS_CHROMIUM", "")
FIGURES = ("images", "clusters", "plane", "losses", "scores", "masks", "composites")


def picture(path, seed=0, size=(120, 400)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def clusterer(): return BackgroundClusterer(3, encoder="pca", progress=False).fit(digits_on_textures(n=60))


@pytest.fixture
def run(tmp_path, clusterer):
    "A whole run; its pictures are noise, its numbers made up."
    folder = tmp_path / "runs" / "a run"
    for i, name in enumerate(FIGURES): picture(folder / "figures" / f"{name}.png", i)
    for n in range(1, 6): picture(folder / "figures" / "training" / f"masks_{n:03}.png", n)
    clusterer.save(folder / "clusterer")
    (folder / "model").mkdir()
    (folder / "logs").mkdir()
    (folder / "logs" / "metrics.csv").write_text("epoch,step,loss,divergence\n0,0,3,\n0,1,2,0.5\n1,2,1,0.4\n")
    (folder / "settings.yaml").write_text("preset: some-preset\ndata:\n  set: some_data\nseed: 7\n")
    (folder / "description.txt").write_text("1200 object images, 800 background-only images of 32×32, 1 channel; normalisation unit\n! 4 images are exact copies\n")
    contents = {
        "versions": {"torch": "2.x"}, "status": {"state": "finished", "seconds": {"training": 61}},
        "metrics": {"iou": 0.71, "ap": 0.9, "f1": 0.83, "otsu_iou": 0.36, "otsu_ap": 0.7, "otsu_f1": 0.5},
        "criteria": {name: 0.5 + i / 1000 for i, name in enumerate(_READING)},
        "verdict": {"word": "doubtful", "reasons": ["masks mark a lot: use more images", "masks follow edges: look"]},
    }
    for name, content in contents.items(): (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


class Page(HTMLParser):
    "What a page is made of."
    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"): self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.words += data.split() if self.open[-1:] not in (["style"], ["script"]) else []

    @property
    def text(self): return " ".join(self.words)
    def all(self, tag): return [attrs for name, attrs in self.tags if name == tag]


def test_a_whole_run_is_told(run):
    page = Page(write_report(run))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("img")) == 7 + 5 and all(img["alt"] for img in page.all("img"))
    said = ("some-preset", "data: some_data", "1,200 object images", "800 background-only images", "3 kinds of background",
            "0.710 IoU with true masks (Otsu 0.360)", "4 images are exact copies", "finished", "61 s of work", "seed: 7",
            "Verdict: doubtful Something speaks against", "Masks mark a lot: use more images. Masks follow edges: look.",
            "torch 2.x", f"bgcs predict '{run}' IMAGES", f"bgcs.load_run('{run}')")
    for words in said: assert words in page.text, words
    for name, (_, what) in _READING.items():
        assert f"{name} 0.5" in page.text and " ".join(what.split()) in page.text
    assert page.text.index("IoU 0.710 0.360") < page.text.index("score 0.500")
    assert "bgcs train --folder" not in page.text


def test_it_loads_nothing_and_is_small(run):
    for n in range(1, 60): picture(run / "figures" / "training" / f"masks_{n:03}.png", n, (300, 900))
    for name in FIGURES: picture(run / "figures" / f"{name}.png", 1, (900, 1400))
    path = write_report(run)
    page, html = Page(path), path.read_text()
    assert path.stat().st_size < 3e6 and len(page.all("img")) == 7 + 12
    assert all(img["src"].startswith("data:image/") for img in page.all("img")) and not page.all("link") and all("src" not in script for script in page.all("script"))
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", re.sub(r"data:image/[^\"]+", "", html))
    assert [img["data-round"] for img in page.all("img") if "data-round" in img][::11] == ["1", "59"]


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \"' {{ 7*7 }} {% raise %}"


def test_nothing_of_a_run_becomes_code(run, clusterer):
    (run / "settings.yaml").write_text(json.dumps({"preset": EVIL, "data": {"set": EVIL}}))
    (run / "description.txt").write_text(f"{EVIL}\n! {EVIL}\n")
    for name in ("criteria", "metrics"): (run / f"{name}.json").write_text(json.dumps({EVIL: 1.0, "iou": 0.5}))
    (run / "versions.json").write_text(json.dumps({EVIL: EVIL}))
    (run / "verdict.json").write_text(json.dumps({"word": "failed", "reasons": [EVIL]}))
    (run / "status.json").write_text(json.dumps({"state": EVIL, "stage": EVIL, "seconds": {EVIL: EVIL}, "error": EVIL}))
    named = BackgroundClusterer.load(run / "clusterer")
    named.edits_ = named.edits_.rename(0, EVIL)
    named.save(run / "clusterer")
    picture(run / "figures" / "a<b>&'.png")
    page = Page(write_report(run))
    assert len(page.all("script")) == 1 and all(img["src"].startswith("data:") for img in page.all("img"))
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text.count("alert(1)") > 5 and "{{ 7*7 }}" in page.text and "a<b>&'" in page.text


@pytest.mark.parametrize("name, text", [
    ("settings.yaml", "settings.yaml cannot be read"), ("versions.json", "versions.json cannot be read"),
    ("criteria.json", "criteria.json cannot be read"), ("metrics.json", "metrics.json cannot be read"),
    ("status.json", "status.json cannot be read"), ("verdict.json", "verdict.json cannot be read"), ("clusterer/clusterer.safetensors", "clusterer cannot be read"),
    ("model/segmenter.safetensors", "model cannot be read, so it is left out: "),
    ("figures/masks.png", "masks.png is no picture"),
    ("figures/training/masks_003.png", "masks_003.png is no picture")])
@pytest.mark.parametrize("content", [b"", b"{ \xff: [", b"[1, 2]"])
def test_a_damaged_part_costs_only_itself(run, name, text, content):
    (run / name).write_bytes(content)
    page = Page(write_report(run))
    readable = name == "settings.yaml" and content in (b"", b"[1, 2]")
    assert readable or text in page.text, page.text[:600]
    if name.startswith("model"): assert f"{name} " in page.text  # which file it is
    assert "How to go on" in page.text and len(page.all("img")) >= 11


def test_losses_are_drawn_where_no_picture_of_them_is(run):
    (run / "figures" / "losses.png").unlink()
    assert "losses" in _read_run(run)["pictures"]
    (run / "logs" / "metrics.csv").write_text("")
    found = _read_run(run)
    assert "losses" not in found["pictures"] and "there are no curves" in _warnings_of(found)[-1]
    path = run / "logs" / "metrics.csv"
    path.write_text("epoch,step,loss,gone\n0,0,nan,\n0,1,2,\n")
    assert list(read_losses(path)) == ["loss"] and plot_losses(read_losses(path)).axes


@pytest.mark.parametrize("missing, words", [
    ("criteria.json", "There are no criteria"), ("metrics.json", "There are no true masks"),
    ("clusterer", "No clusters have been found"), ("description.txt", "have not been described")])
def test_missing_parts_are_left_out_with_a_word(run, missing, words):
    (run / missing).rename(run / "elsewhere")
    assert words in Page(write_report(run)).text


VERDICTS = {
    "usable": ('{"word": "usable", "reasons": []}', "usable", "Verdict: usable No fault was found"),
    "failed": ('{"word": "failed", "reasons": ["masks mark nothing: train longer"]}', "failed", "Masks mark nothing: train longer."),
    "unknown": ('{"word": "splendid", "reasons": []}', "not judged", "verdict.json cannot be read, so it is left out: word='splendid'"),
    "empty reason": ('{"word": "failed", "reasons": [""]}', "failed", "Verdict: failed These masks"),
    "gone": (None, "not judged", "Verdict: not judged Nothing is known of how good these masks are. Verdict.json is missing or damaged; bgcs evaluate"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_is_at_the_top(run, case):
    written, word, said = VERDICTS[case]
    if written is None: (run / "verdict.json").unlink()
    else: (run / "verdict.json").write_text(written)
    page = Page(write_report(run))
    section, = page.all("section")
    assert section["data-word"] == word and said in page.text, page.text[:900]
    assert page.text.index("Verdict: ") < page.text.index("IoU with true masks")


def test_why_a_run_was_not_judged(run):
    for name in ("verdict.json", "criteria.json"): (run / name).unlink()
    assert "There were too few validation images." in Page(write_report(run)).text
    (run / "model").rmdir()
    assert "Training has not come to its end." in Page(write_report(run)).text


def test_values_that_are_no_numbers(run):
    (run / "criteria.json").write_text('{"score": NaN, "separation": Infinity, "words": "x", "many": 123456.7}')
    (run / "metrics.json").write_text('{"iou": NaN}')
    text = Page(write_report(run)).text
    assert "score –" in text and "separation –" in text and "123,457" in text and "words" not in text


def test_predictions_are_shown(run):
    (run / "predictions").mkdir()
    rows = ["file,objects,presence,mask,problem", "a.png,2,0.9,masks/a.png,", "sub/b.png,0,0.1,masks/sub/b.png,",
            "c.png,,,,is empty", ""]
    (run / "predictions" / "images.csv").write_text("\n".join(rows))
    (run / "predictions" / "table.csv").write_text("file,object,area\na.png,1,9\na.png,2,7\n")
    picture(run / "predictions" / "overlays" / "a.png")
    page = Page(write_report(run))
    assert "2 objects in 2 images" in page.text and "1 images could not be predicted" in page.text and len(page.all("img")) == 13
    (run / "predictions" / "table.csv").unlink()
    assert "predictions cannot be read" in Page(write_report(run)).text


def test_the_old_page_stays_where_the_disk_is_full(run, monkeypatch):
    before = write_report(run).read_bytes()
    def full(fd): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk is full"): write_report(run)
    assert (run / "report.html").read_bytes() == before and not list(run.glob(".*.part"))


def test_what_is_no_run_is_refused(tmp_path):
    for folder, text in ((tmp_path / "nowhere", "is not a folder"), (tmp_path, "holds no run")):
        with pytest.raises(FileNotFoundError, match=text): write_report(folder)


def test_a_bomb_of_a_picture_is_left_out(run, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    found = _read_run(run)
    assert not found["pictures"] and sum("no picture that can be shown" in problem for problem in found["problems"]) == 12


def test_pictures_keep_their_shape(tmp_path):
    picture(tmp_path / "tall.png", size=(4000, 200))
    assert data_uri(tmp_path / "tall.png", 40_000).startswith("data:image/jpeg") and len(data_uri(tmp_path / "tall.png", 40_000)) < 60_000
    Image.new("P", (3000, 50)).save(tmp_path / "palette.png")
    assert data_uri(tmp_path / "palette.png").startswith("data:image/jpeg")


def test_what_is_clear_stands_before_white_and_damage_is_an_error(tmp_path):
    Image.new("RGBA", (2000, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    seen = Image.open(io.BytesIO(base64.b64decode(data_uri(tmp_path / "clear.png").split(",")[1])))
    assert seen.getpixel((5, 5)) == (255, 255, 255)
    picture(tmp_path / "whole.png")
    with pytest.raises(OSError): data_uri((tmp_path / "whole.png").read_bytes()[:2000])


def test_curves_of_nothing_are_empty(): assert len(plot_losses(pd.DataFrame(index=[0, 1])).axes) == 4


GOOD = {"status": {"state": "finished"}, "metrics": {"iou": 0.6, "otsu_iou": 0.3},
        "criteria": {"two_sample_auc": 0.7, "removal_residual": 0.2, "false_positive_area": 0.01},
        "clusters": {"sizes": {"a": 50, "b": 40}, "all": 90}}
WARNINGS = {
    "nothing": ({}, None), "all is well": (GOOD, None),
    "interrupted": ({"status": {"state": "interrupted", "stage": "training"}},
                    "not finished: it was interrupted, at training, when"),
    "running": ({"status": {"state": "running"}}, "not finished: it was running when"),
    "failed": ({"status": {"state": "failed", "stage": "clusters", "error": "ValueError: no"}},
               "failed, at clusters, with: ValueError: no"),
    "Otsu is better": ({"metrics": {"iou": 0.2, "otsu_iou": 0.3}}, "0.200, is no better than that of Otsu's threshold, 0.300"),
    "odd cluster": ({"clusters": {"sizes": {"dark": 3, "light": 100}, "all": 103}}, "Cluster dark has only 3 of 103"),
    "told apart": ({"criteria": {"two_sample_auc": 0.97}}, "nearly always (two_sample_auc 0.97)"),
    "nothing removed": ({"criteria": {"removal_residual": 1.0}}, "not to be trusted"),
    "marks backgrounds": ({"criteria": {"false_positive_area": 0.08}}, "8% of the area"),
    "copies": ({"description": "10 images\n! copies\nother"}, "copies"),
    "problem": ({"problems": ["x cannot be read"]}, "x cannot be read"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_a_careful_reader_would_notice(case):
    parts, expected = WARNINGS[case]
    empty = dict.fromkeys(("status", "criteria", "metrics", "clusters", "description", "predictions"))
    said = _warnings_of(empty | {"problems": []} | parts)
    assert (expected is None and not said) or (len(said) == 1 and expected in said[0]), said


def test_the_card_of_the_model_is_shown(run):
    data = digits_on_textures(n=40)
    segmenter = Segmenter(1, base_width=2, depth=1).fit(data, data.background_class, 2, 1, held_out=None, progress=False)
    segmenter.save(run / "model")
    text = Page(write_report(run)).text
    assert "Model card" in text and "object images 40" in text and "steps 2" in text
    assert "verdict not judged: no images were held out" in text


@pytest.mark.skipif(not CHROMIUM, reason="BGCS_CHROMIUM names no browser; `make test` finds or installs one")
def test_the_slider_shows_each_round_in_a_browser(run):
    from playwright.sync_api import sync_playwright
    path = write_report(run)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, asked, errors = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        visible = lambda: page.eval_on_selector_all(".frame", "frames => frames.filter(f => f.offsetParent).map(f => f.dataset.round)")
        assert visible() == ["5"]
        page.locator(".slider input").focus()
        for expected in ("4", "3", "2"):
            page.keyboard.press("ArrowLeft")
            assert visible() == [expected] and page.locator("output").inner_text() == f"round {expected}"
        assert page.eval_on_selector_all("img", "images => images.every(image => image.naturalWidth > 0)")
        for width in (390, 1366):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), width  # no sideways scrolling
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 31)"
        plain = browser.new_context(java_script_enabled=False).new_page()
        plain.goto(path.as_uri())
        assert plain.locator(".frame:visible").count() == 1 and not plain.locator(".slider").is_visible()
        browser.close()
    assert asked == [path.as_uri()] and not errors
