"""The editor: selections, edits made, undone and made again, in words and in files; colours."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stripes import KINDS, agrees, fitted, images

from bgcs.backgrounds.cluster import Edits
from bgcs.widgets import editor as module
from bgcs.widgets.editor import ClusterEditor


@pytest.fixture(scope="module")
def data(): return images()


@pytest.fixture
def editor(data): return ClusterEditor(fitted(data), data)


def some_edit(editor, draw):
    "An edit that is possible now."
    there = editor.edits.clusters
    editor.select(draw(st.lists(st.sampled_from(editor.points.numbers.tolist()), min_size=1, max_size=30)))
    actions = {
        "rename": lambda: editor.rename("new", draw(st.sampled_from(there))),
        "move": lambda: editor.move(draw(st.sampled_from([*there, -1]))),
        "drop": lambda: editor.drop(there[-1]),
        "merge": lambda: editor.merge(*draw(st.permutations(there))[:2]),
        "split_off": editor.split_off,
        "split": lambda: editor.split(there[0]),
    }
    possible = [name for name in actions if len(there) > 1 or name not in ("merge", "drop")]
    try: actions[draw(st.sampled_from(possible))]()
    except ValueError as error:  # too small to be split
        assert any(word in str(error) for word in ("too few", "select", "no background-only")), error


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_edits_can_all_be_undone_and_made_again(drawn):
    editor = ClusterEditor(SHARED[0], SHARED[1])
    editor.edits = Edits(KINDS + 1)
    learned, names = editor.clusters.copy(), editor.edits.names
    for _ in range(drawn.draw(st.integers(1, 6))): some_edit(editor, drawn.draw)
    agrees(editor)
    after, steps = editor.clusters.copy(), editor.edits.steps
    for _ in steps: editor.undo()
    assert (editor.clusters == learned).all() and editor.edits.names == names
    with pytest.raises(ValueError, match="no edit to undo"): editor.undo()
    for _ in steps: editor.redo()
    assert (editor.clusters == after).all() and editor.edits.steps == steps
    with pytest.raises(ValueError, match="no edit to make again"): editor.redo()


SHARED = (fitted(images()), images())


def test_a_new_edit_forgets_what_was_undone(editor):
    editor.merge(0, 1)
    editor.undo()
    editor.rename("sand", 2)
    with pytest.raises(ValueError, match="no edit to make again"): editor.redo()


def test_edits_made_elsewhere_are_seen(editor):
    editor.merge(0, 1)
    editor.undo()
    editor.clusterer.split_cluster(2)
    with pytest.raises(ValueError, match="no edit to make again"): editor.redo()
    agrees(editor)


def test_splitting_off_finds_what_was_selected(editor):
    whole = editor.clusterer.edits_.clusters
    editor.merge(*whole)
    kind = np.arange(90) % KINDS
    editor.select(60 + np.flatnonzero(kind == 1)[:20])
    editor.split_off()
    new = max(editor.edits.clusters)
    assert ((editor.clusters == new) == (kind == 1)).mean() > 0.95  # all of the kind, selected or not
    agrees(editor)


@pytest.mark.parametrize("text, act", [
    ("at least two", lambda editor: editor.merge(0)),
    ("there is no cluster 9; there are 0, 1, 2, 3", lambda editor: editor.merge(0, 9)),
    ("images of 0 clusters", lambda editor: editor.split()),
    ("no image is selected", lambda editor: editor.move(0)),
    ("no cluster to drop", lambda editor: editor.drop()),
    ("the new name is empty", lambda editor: editor.rename(" ", 0)),
    ("there is no cluster 8; there are 0, 1, 2, 3", lambda editor: editor.select_cluster(8)),
    ("expected one of 'replace', 'add', 'remove'", lambda editor: editor.select([60], "more")),
    ("for 9 clusters, and the clusterer learned 4", lambda editor: setattr(editor, "edits", Edits(9))),
])
def test_refusals_say_what_to_do(editor, text, act):
    with pytest.raises(ValueError, match=text): act(editor)
    assert editor.edits == Edits(4)


def test_splitting_off_needs_some_background_only_images_but_not_all(editor):
    editor.select_cluster(0)
    n = len(editor.selection)
    with pytest.raises(ValueError, match=f"{n} background-only images of cluster 0 are selected and 0 are not"):
        editor.split_off()


@pytest.mark.parametrize("step, words", [
    ({"edit": "rename", "cluster": 1, "name": "sand"}, "rename 1 to sand"),
    ({"edit": "drop", "cluster": 1}, "drop 1"),
    ({"edit": "split", "cluster": 1, "parts": [1, 4]}, "split 1 into 1, 4"),
    ({"edit": "move", "images": ["a", "b"], "to": 3}, "move 2 images to 3"),
])
def test_edits_in_words(step, words): assert module._described(step) == words


def test_selection(editor):
    editor.select([60, 70, 61])
    assert editor.selection.tolist() == [60, 61, 70]
    editor.select([62], "add"); editor.select([60], "remove")
    assert editor.selection.tolist() == [61, 62, 70] and len(editor.data[editor.selection]) == 3
    editor.select(~editor.data.presence.numpy())
    assert len(editor.selection) == 90
    editor.select_cluster(1, 2)
    assert editor.touched == [1, 2]
    editor.clear()
    assert not len(editor.selection) and editor.touched == []
    missing = r"1 of these 2 images are not shown, the first is 3; .*show_objects\(\)"
    with pytest.raises(ValueError, match=missing): editor.select([60, 3])


def test_colours_of_odd_columns():
    scale = module._colour_column(np.r_[np.linspace(2, 4, 99), np.nan], "depth")
    assert scale.codes[[0, 98, 99]].tolist() == [0, 254, 255] and len(scale.legend["colours"]) == 255
    assert (scale.legend["low"], scale.legend["high"]) == ("2", "4")
    assert module._colour_column([True, False, None], "b").keys == ["False", "True", "no value"]
    assert module._colour_column(pd.array([1, None], "Int64"), "i").keys == ["1", "no value"]
    assert module._colour_numbers([np.nan] * 3, "x").codes.tolist() == [255] * 3
    many = module._colour_column([f"site {i % 100}" for i in range(1000)] + ["site 7"] * 5, "source").legend["entries"]
    assert len({(entry["colour"], entry["shape"]) for entry in many}) == 48
    assert sum(entry["count"] for entry in many) == 1005


def test_export_overwrites_no_folder(editor, tmp_path):
    with pytest.raises(ValueError, match="no image is selected"): editor.export(tmp_path / "none")
    editor.select([60, 61])
    folder = editor.export(tmp_path / "two")
    table = pd.read_csv(folder / "images.csv")
    assert table.number.tolist() == [60, 61] and all(Image.open(folder / name).size == (16, 16) for name in table.file)
    with pytest.raises(ValueError, match="not empty; name another folder"): editor.export(folder)
