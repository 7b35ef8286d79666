"""Several methods on one's own two folders: trained, judged without masks, recommended, on a page."""
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bgcs.data.datasets import digits_on_textures
from bgcs.masks.method import method_class
from bgcs.runs.cli import main
from bgcs.runs.compare import MethodComparison, compare_methods
from bgcs.runs.runs import load_run
from bgcs.runs.settings import settings_from

SETTINGS = ["clusters.epochs=1", "clusters.n_clusters=2"]


def typed(capsys, *words):
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, data = tmp_path_factory.mktemp("images"), digits_on_textures("train", n=160, image_size=24)
    for name, images in (("with", data.objects.images), ("without", data.backgrounds.images), ("masks", data.objects.masks)):
        (root / name).mkdir()
        for i, image in enumerate(images[:]): Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(root / name / f"a{i}b.png")
    return root


@pytest.fixture(scope="module")
def compared(folders, tmp_path_factory):
    "The comparison on the command line, and its folder."
    out = tmp_path_factory.mktemp("compared") / "methods"
    words = ["compare", "--methods", "cut,gaussian", "--objects", folders / "with", "--backgrounds", folders / "without",
             "--masks", folders / "masks", *SETTINGS, "--out", out]
    assert main([str(word) for word in words]) == 0
    return out, words


def test_a_page_with_a_recommendation(compared):
    out, _ = compared
    page, table = (out / "comparison.html").read_text(), pd.read_csv(out / "table.csv", index_col="method")
    assert set(table.index) == {"cut", "gaussian"} and table["score"].is_monotonic_decreasing
    assert table[["iou", "ap", "minutes", "parameters"]].notna().all().all() and set(table["verdict"]) <= {"usable", "doubtful", "failed"}
    assert "Recommended: " in page or "No recommendation" in page
    assert page.count("data:image/png;base64,") == 2 and not re.findall(r'(?:src|href)="https?:', page)
    assert all(f'href="{name}/report.html"' in page and (out / name / "report.html").is_file() for name in table.index)


def test_it_goes_on_without_training_anew(compared, capsys):
    out, words = compared
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/model/*")}
    assert len(before) == 2
    code, said = typed(capsys, *words[:2], "cut,gaussian,presence", *words[3:], "--minutes", "0.02")
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    steps = load_run(out / "presence").settings.method.steps
    assert steps == 20 and "presence" in said  # the fewest


def test_a_method_that_cannot_be_trained_is_named_and_the_rest_is_compared(folders, tmp_path, monkeypatch):
    def fails(self, *_): raise ValueError("images are too small for it")
    monkeypatch.setattr(method_class("memory"), "_remember", fails)
    found = compare_methods(settings_from("quick", {
        "data.set": "folders", "data.object_folder": str(folders / "with"), "data.background_folder": str(folders / "without"),
        "clusters.epochs": 1, "clusters.n_clusters": 2}), tmp_path, ["memory", "gaussian", "cut"], progress=False)
    assert found.left_out == {"memory": "images are too small for it"} and "memory was left out: images are too small" in found.page.read_text()
    assert set(found.table.index) == {"gaussian", "cut"} and "iou" not in found.table
    assert repr(found).endswith(str(found.page)) and "<img" in found._repr_html_()


@pytest.mark.parametrize("verdicts, best, said", [
    (("failed", "doubtful", "usable"), "critic", "its masks are usable, score 0.30"),
    (("failed", "doubtful", "failed"), "presence", "its masks are doubtful, score 0.50"),
    (("failed", "failed", "failed"), None, "No method's masks can be trusted here."),
    (("usable", "usable", "failed"), "cut", "About as good by the score: presence."),
])
def test_the_recommendation_goes_by_the_verdict_and_then_by_the_score(tmp_path, verdicts, best, said):
    names = ["cut", "presence", "critic"]
    table = pd.DataFrame({"score": [0.51, 0.5, 0.3], "verdict": verdicts, "reason": ["" if word == "usable" else "masks mark nothing" for word in verdicts]}, index=names)
    agreement = pd.DataFrame(np.eye(3) * 0.6 + 0.4, names, names)
    found = MethodComparison(tmp_path, table, agreement)
    assert found.best == best and any(said in line for line in found.advice)


@pytest.mark.parametrize("words, said", [
    ((), "nothing to compare"),
    (("--methods", "all"), "no images are named"),
    (("--methods", "cut"), "expected at least 2 to compare"),
    (("--methods", "cut,magic"), "magic"),
    (("--methods", "cut,gaussian", "--minutes", "0"), "minutes=0"),
    (("run", "data.resize=3"), "data.resize=3 is for a comparison of methods"),
    (("run", "--objects", "a"), "--objects is for a comparison of methods"),
    (("--methods", "all", "--data", "n=3"), "with --methods say KEY=VALUE"),
])
def test_what_cannot_be_compared_is_refused(words, said, folders, tmp_path, capsys):
    given = ["--objects", folders / "with", "--backgrounds", folders / "without"] if len(words) > 1 and "cut" in words[1] else []
    code, heard = typed(capsys, "compare", *words, *given, "--out", tmp_path / "out")
    assert code == 2 and said in heard, heard


def test_too_few_validation_images_are_told_before_training(folders, tmp_path, capsys):
    code, said = typed(capsys, "compare", "--methods", "cut,gaussian", "--objects", folders / "with", "--backgrounds", folders / "without",
                       *SETTINGS, "data.val=0.02", "--out", tmp_path / "out")
    assert code == 2 and "validation images are too few to compare methods by" in said and not (tmp_path / "out" / "cut").exists()
