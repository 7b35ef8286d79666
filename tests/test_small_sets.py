"""Small, blank, uneven and filmed sets: what holds, and the word that is said, through Python and on the command line.

Each case writes two folders of images. The table says what a user does with them and what they must hear, once from the
function and once, word for word the same, from `bgcs`.
"""
import re
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage import data as textures

from bgcs.backgrounds.cluster import BackgroundClusterer, KChoice, choose_k
from bgcs.data.describe import describe
from bgcs.data.files import ImageSetError
from bgcs.data.images import _films_of, from_arrays, from_files, from_folders, from_globs, from_hdf5, from_table
from bgcs.data.patches import cut_patches
from bgcs.data.splits import exact_duplicates, held_out_images, split
from bgcs.masks.criteria import hold_out
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches, Transplants
from bgcs.runs.cli import main
from bgcs.runs.runs import load_run

SIDE = 24
KINDS = {"brick": textures.brick(), "grass": textures.grass(), "dim": textures.gravel() // 4}
BLACK, GREY = np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 90, np.uint8)


def crop(kind, rng):
    top, left = rng.integers(0, 512 - SIDE, 2)
    return np.ascontiguousarray(KINDS[kind][top:top + SIDE, left:left + SIDE])


def mixture(n, seed=0, **counts):
    "So many crops of each kind, in random order."
    rng = np.random.default_rng(seed)
    found = [crop(kind, rng) for kind, times in counts.items() for _ in range(times)]
    return [found[i] for i in rng.permutation(len(found))][:n]


def even(n): return lambda more=0: mixture(n + more, brick=(n + more + 1) // 2, grass=(n + more + 1) // 2)
def mixed(**counts): return lambda more=0: mixture(sum(counts.values()) + more, **{kind: n + more for kind, n in counts.items()})
def objects(n): return mixture(n, seed=1, brick=(n + 1) // 2, grass=(n + 1) // 2)
def dark(n): return lambda more=0: [BLACK] * (n + more)


def write(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        path = folder / (names[i] if names else f"{i:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def folders(root, objects, backgrounds, names=(None, None)):
    write(root / "with", objects, names[0])
    write(root / "without", backgrounds, names[1])
    return root / "with", root / "without"


def heard(act):
    "The outcome and all that is said: warnings, or the error."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try: result, said = act(), ""
        except (ValueError, ImageSetError) as error: result, said = None, str(error)
    return result, said + "\n".join(str(warning.message) for warning in caught)


def typed(capsys, *words):
    code = main(list(map(str, words)))
    out, err = capsys.readouterr()
    return code, out + err


# name: background-only images, arguments of the clusterer, clusters made (None: refused), what is said ("": nothing; None: that may be)
CLUSTERED = {
    "two backgrounds": (even(2), {}, None, "only 2 background-only images to cluster; expected at least 4"),
    "three backgrounds": (even(3), {}, None, "only 3 background-only images to cluster; expected at least 4"),
    "four": (even(4), {}, 2, "only 4 background-only images to cluster: two clusters are made"),
    "five": (even(5), {}, 2, "only 5 background-only images to cluster: two clusters are made"),
    "six": (even(6), {}, 2, "only 6 background-only images to cluster: two clusters are made"),
    "seven": (even(7), {}, 2, "only 7 background-only images to cluster: two clusters are made"),
    "six, in three": (even(6), {"n_clusters": 3}, 3, ""),
    "six, in seven": (even(6), {"n_clusters": 7}, None, "n_clusters=7, but there are only 6 background-only images"),
    "six, shares given": (even(6), {"shares": [0.5, 0.5]}, 2, ""),
    "eight": (even(8), {}, 2, None),
    "ten": (even(10), {}, 2, None),
    "all black": (dark(9), {}, None, "all 9 background-only images are the same, so they would have the same embedding: there is one kind of background only"),
    "half black": (lambda more=0: dark(6)() + mixture(6 + more, grass=6 + more), {}, 2, None),
    "black and grey": (lambda more=0: dark(6 + more)() + [GREY] * 6, {}, 2, None),
    "nine to one": (mixed(brick=54, dim=6), {"n_clusters": 2}, 2, "forced to have equal shares, but the backgrounds look like kinds of "),
    "nine to one, number chosen": (mixed(brick=54, dim=6), {}, range(2, 16), "but the backgrounds look like kinds of "),
    "nine to one, estimated": (mixed(brick=54, dim=6), {"shares": "auto"}, 2, ""),
    "nine to one, given": (mixed(brick=54, dim=6), {"shares": [0.1, 0.9]}, 2, ""),
    "half and half": (mixed(brick=30, dim=30), {}, 2, ""),
    "half and half, estimated": (mixed(brick=30, dim=30), {"shares": "auto"}, 2, ""),
    "a wrong word": (even(12), {"shares": "even"}, None, "shares='even'"),
    "shares of another number": (even(12), {"n_clusters": 3, "shares": [0.5, 0.5]}, None, "of n_clusters=3; expected null"),
    "shares of another sum": (even(12), {"shares": [0.5, 0.6]}, None, "of sum 1"),
}


def check(case, made, said, quiet):
    _, _, clusters, text = CLUSTERED[case]
    if text: assert text in said, said
    if text == "": assert quiet, said
    assert made is None if clusters is None else made in (clusters if isinstance(clusters, range) else [clusters])


@pytest.mark.parametrize("case", CLUSTERED)
def test_clusters(case):
    make, settings, _, _ = CLUSTERED[case]
    data = from_arrays(np.stack(objects(6)), np.stack(make()))
    found, said = heard(lambda: BackgroundClusterer(encoder="pixels", progress=False, **settings).fit(data))
    check(case, found and len(found.edits_.clusters), said, not said)


@pytest.mark.parametrize("case", CLUSTERED)
def test_clusters_on_the_command_line(case, tmp_path, capsys):
    "One image of each kind is set aside for validation, and one for the test, so there are two more."
    make, settings, _, _ = CLUSTERED[case]
    a, b = folders(tmp_path, objects(8), make(2))
    words = [f"clusters.{key}={value}" for key, value in settings.items()]
    code, said = typed(capsys, "cluster", "--objects", a, "--backgrounds", b, "--folder", tmp_path / "run",
                       "data.val=0.01", "data.test=0.01", "clusters.encoder=pixels", *words)
    assert code in (0, 2), said
    check(case, None if code else len(load_run(tmp_path / "run").clusterer.edits_.clusters), said, "Warning:" not in said)


@pytest.mark.parametrize("case", [case for case in CLUSTERED if CLUSTERED[case][2] is None])
def test_what_is_refused_is_refused_before_training(case, monkeypatch):
    make, settings, _, text = CLUSTERED[case]
    def never(*args, **kw): raise AssertionError("training began")
    monkeypatch.setattr("lightning.Trainer.fit", never)
    data = from_arrays(np.stack(objects(6)), np.stack(make()))
    with pytest.raises(ValueError, match=re.escape(text)): BackgroundClusterer(progress=False, **settings).fit(data)


@pytest.mark.parametrize("encoder", ["contrastive", "autoencoder", "pca", "pixels"])
@pytest.mark.parametrize("n", [4, 6, 10])
def test_every_encoder_learns_from_a_few(encoder, n):
    data = from_arrays(np.stack(objects(n)), np.stack(even(n)()))
    found, said = heard(lambda: BackgroundClusterer(encoder=encoder, epochs=1, progress=False).fit(data))
    assert found is not None, said
    assert found.labels_.bincount().min() >= 2 and len(found.predict(data)) == 2 * n


@pytest.mark.parametrize("n", [3, 5])
def test_a_few_images_become_masks(n, tmp_path, capsys):
    "Four steps; half of the objects lie on black, as half of the backgrounds are."
    dark_objects = [np.where(np.hypot(*(np.mgrid[:SIDE, :SIDE] - 12)) < 3 + i % 3, 200, 0).astype(np.uint8) for i in range(n)]
    a, b = folders(tmp_path, objects(n) + dark_objects, mixture(n, seed=2, grass=n) + [BLACK] * n)
    code, said = typed(capsys, "train", "--objects", a, "--backgrounds", b, "--folder", tmp_path / "run", "clusters.epochs=1",
                       "network.base_width=4", "network.depth=1", "schedule.steps=4", "schedule.rounds=2", "trainer.accelerator=cpu")
    assert code == 0 and load_run(tmp_path / "run").segmenter is not None, said


def test_estimated_shares_find_the_rare_kind():
    "And equal kinds stay as they are."
    for counts, expected in (({"brick": 54, "dim": 6}, [6, 54]), ({"brick": 30, "dim": 30}, [30, 30])):
        kinds = np.repeat([0, 1], list(counts.values()))
        backgrounds = [image for kind, times in counts.items() for image in mixture(times, **{kind: times})]
        data = from_arrays(np.stack(objects(6)), np.stack(backgrounds))
        found = BackgroundClusterer(2, encoder="pixels", shares="auto", progress=False).fit(data)
        labels = found.labels_.numpy()
        assert max((labels == kinds).mean(), (labels != kinds).mean()) >= 0.95 and np.abs(np.sort(np.bincount(labels)) - expected).max() <= 3


def test_shares_are_saved(tmp_path):
    data = from_arrays(np.stack(objects(6)), np.stack(mixed(brick=54, dim=6)()))
    for shares in ("auto", [0.9, 0.1], np.array([0.9, 0.1])):
        found = BackgroundClusterer(2, encoder="pixels", shares=shares, progress=False).fit(data)
        loaded = BackgroundClusterer.load(found.save(tmp_path))
        assert np.array_equal(loaded.shares, shares) and torch.equal(loaded.predict(data), found.predict(data))


def test_a_cloud_is_hardly_distinct():
    cloud = torch.randn(120, 10, generator=torch.Generator().manual_seed(0))
    choice = choose_k(cloud)
    assert not choice.distinct and str(choice).endswith("hardly distinct") and "hardly distinct" in choice.plot().axes[0].get_xlabel()
    blobs = cloud + 12 * torch.eye(10)[torch.arange(120) % 3]
    choice = choose_k(blobs)
    assert choice.distinct and choice.recommended == 3 and "hardly" not in str(choice)


@pytest.mark.parametrize("scores, errors, expected", [
    ([0.30, 0.20, 0.10], [0.01, 0.01, 0.01], 2), ([0.10, 0.11, 0.12], [0.02, 0.02, 0.02], 2), ([0.10, 0.30, 0.31], [0.02, 0.02, 0.02], 3),
    ([0.10, 0.20, 0.40], [0.02, 0.02, 0.02], 4), ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 2),
], ids=["the first is best", "all within noise", "two within noise", "the last is best", "nothing"])
def test_the_fewest_within_noise(scores, errors, expected):
    one = np.ones(3)
    assert KChoice([2, 3, 4], one, np.array(scores), one, None, np.array(errors)).recommended == expected


def ways_in(root, shown, backgrounds):
    "The same two folders, opened in every way."
    a, b = folders(root, shown, backgrounds)
    files, there = [*sorted(a.iterdir()), *sorted(b.iterdir())], [True] * len(shown) + [False] * len(backgrounds)
    table = pd.DataFrame({"file": [str(file) for file in files], "presence": there})
    with h5py.File(root / "all.h5", "w") as file: file["images"], file["presence"] = np.stack([*shown, *backgrounds]), np.array(there)
    return {
        "arrays": lambda **o: from_arrays(np.stack(shown), np.stack(backgrounds), **o), "folders": lambda **o: from_folders(a, b, **o),
        "lazily": lambda **o: from_folders(a, b, lazy=True, **o).packed(root / "cache"), "files": lambda **o: from_files(files, there, **o),
        "table": lambda **o: from_table(table, **o), "globs": lambda **o: from_globs(root, "with/*", "without/*", **o),
        "hdf5": lambda **o: from_hdf5(root / "all.h5", **o),
    }


@pytest.mark.parametrize("normalization", ["unit", "percentile", "zscore", "mean-clip"])
@pytest.mark.parametrize("way", ["arrays", "folders", "lazily", "files", "table", "globs", "hdf5"])
def test_blank_images(way, normalization, tmp_path):
    "A background may be blank; an object image may not, and is named, or left out."
    opened = ways_in(tmp_path / "good", objects(4), [*even(3)(), BLACK])[way](normalization=normalization)
    assert len(opened) == 8 and opened.images[:].isfinite().all() and len(opened.backgrounds) == 4
    bad = ways_in(tmp_path / "bad", [*objects(3), GREY], [*even(3)(), BLACK])[way]
    with pytest.raises(ImageSetError, match="1 of 8 images cannot be used(.|\n)*is 90 everywhere, so it shows no object"): bad(normalization=normalization)
    with pytest.warns(UserWarning, match="1 images"): kept = bad(normalization=normalization, on_bad="skip")
    assert len(kept.objects) == 3 and len(kept.backgrounds) == 4


def test_a_cache_of_the_other_presence_is_not_taken(tmp_path):
    a, b = folders(tmp_path, objects(4), [*even(3)(), BLACK])
    assert len(from_folders(a, b, lazy=True).packed(tmp_path / "cache")) == 8
    with pytest.raises(ImageSetError, match="is 0 everywhere"): from_folders(b, a, lazy=True).packed(tmp_path / "cache")


def test_blank_patches():
    "Of fluorescence, where half of an image is black."
    picture, marks = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
    picture[:, 48:], marks[10:20, 60:70] = KINDS["grass"][:96, :48], 1
    data = cut_patches([picture], SIDE, labels=[marks], stride=SIDE, object_share=(0.01, 1), progress=False)
    assert len(data.backgrounds) == 15 and (data.backgrounds.images[:].amax((1, 2, 3)) == 0).sum() == 8


def test_blank_images_tie_nothing(tmp_path):
    "Black backgrounds of twelve sources are no copies, nor do they tie these sources."
    rng = np.random.default_rng(0)
    shown, backgrounds = rng.random((12, 8, 8), np.float32), np.zeros((12, 8, 8), np.float32)
    backgrounds[::2] = rng.random((6, 8, 8), np.float32)
    data = from_arrays(shown, backgrounds, object_source=np.arange(12), background_source=np.arange(12))
    assert exact_duplicates(data).tolist() == list(range(24))
    found, said = heard(lambda: describe(data, split(data)))
    assert not said and found.across == {"exact": [], "near": []} and "6 images of one value everywhere" in str(found)


FILMS = [f"dive{i // 8}_{i:04}.png" for i in range(48)]

# name: names of object images, names of background-only images, whether the split warns, sources told by 'auto' (None: they can't be split)
FILMED = {
    "films": (FILMS, FILMS, True, 6),
    "films in folders": ([f"dive{i // 8}/{i:04}.png" for i in range(48)], [f"dive{i // 8}/{i:04}.png" for i in range(48)], True, 6),
    "other signs": ([f"dive{i // 8}-frame ({i}).png" for i in range(48)], [f"dive{i // 8}-frame ({i + 50}).png" for i in range(48)], True, 6),
    "no sign": ([f"{'abcdef'[i // 8]}{i}.png" for i in range(48)], [f"{'abcdef'[i // 8]}{i + 50}.png" for i in range(48)], True, 6),
    "other suffixes": ([f"dive{i // 8}_{i}.{'bmp' if i % 2 else 'png'}" for i in range(48)], FILMS, True, 6),
    "one long film": ([f"dive_{i:04}.png" for i in range(48)], [f"dive_{i:04}.png" for i in range(48)], False, None),
    "only numbers": ([f"{i:04}.png" for i in range(48)], [f"{i:04}.png" for i in range(48)], False, None),
    "a name a kind": ([f"dent_{i}.png" for i in range(48)], [f"free_{i}.png" for i in range(48)], False, None),
    "no numbers": ([f"tile {chr(97 + i // 8)}{chr(97 + i % 8)}.png" for i in range(48)], [f"free {chr(97 + i // 8)}{chr(97 + i % 8)}.png" for i in range(48)], False, 96),
}


def drifting(n, seed):
    "Frames of six films, each of eight that show nearly the same."
    rng = np.random.default_rng(seed)
    scenes = rng.random((6, 4, 4)).repeat(6, 1).repeat(6, 2)
    return [np.uint8(200 * scenes[i // 8] + 20 * rng.random((SIDE, SIDE))) for i in range(n)]


@pytest.mark.parametrize("case", FILMED)
def test_films(case, tmp_path):
    *names, warns, n = FILMED[case]
    where = folders(tmp_path, drifting(48, 0), drifting(48, 1), names)
    data = from_folders(*where)
    parts, said = heard(lambda: split(data))
    assert ("source='auto' (on a command line data.source=auto)" in said) == warns, said
    tied, said = heard(lambda: split(from_folders(*where, source="auto")))
    if n is None:
        assert "too few sources to split" in said and r"source=lambda file: file.stem[:-1]; on a command line 'data.source=^(.*).\.'" in said
        return
    assert not said
    films = _films_of(data.names, data.presence)
    assert all(len(set(tied.part[films == film])) == 1 for film in films) and len(set(films)) == n
    aside, said = heard(lambda: held_out_images(data))
    assert ("source='auto'" in said) == warns


@pytest.mark.parametrize("case", FILMED)
def test_films_on_the_command_line(case, tmp_path, capsys):
    *names, warns, n = FILMED[case]
    where = folders(tmp_path, drifting(48, 0), drifting(48, 1), names)
    words = ["describe", "--objects", where[0], "--backgrounds", where[1]]
    code, said = typed(capsys, *words)
    assert code == 0 and ("tie them: source='auto' (on a command line data.source=auto)" in said) == warns, said
    leaks = "near duplicates across training, validation and test, such as"
    assert leaks in said
    if case != "no numbers": assert ("data.source=auto" if warns else "data.source=^(.*).") in said[said.index(leaks):]
    code, said = typed(capsys, *words, "data.source=auto")
    assert code == (2 if n is None else 0), said
    if n == 6: assert "6 sources, from 16 to 16 images each" in said and "0 near duplicates across" in said
    if n is None:
        assert "too few sources to split" in said
        if case == "one long film": assert typed(capsys, *words, r"data.source=^(.*).\.")[0] == 0


@pytest.mark.parametrize("way", ["files", "table", "globs"])
def test_films_in_other_ways(way, tmp_path):
    a, b = folders(tmp_path, drifting(48, 0), drifting(48, 1), (FILMS, FILMS))
    files, there = [*sorted(a.iterdir()), *sorted(b.iterdir())], [True] * 48 + [False] * 48
    table = pd.DataFrame({"file": [str(file) for file in files], "presence": there})
    opened = {"files": lambda **o: from_files(files, there, **o), "table": lambda **o: from_table(table, **o),
              "globs": lambda **o: from_globs(tmp_path, "with/*", "without/*", **o)}[way]
    assert len(set(opened(source="auto").source)) == 6
    with pytest.raises((ImageSetError, TypeError)): from_files(files, there, source="films")


LONELY = {  # case: (clusters of 12 object images, of 12 background-only ones), what is said, target clusters that are left
    "no object image": ((0, 1), (0, 1, 2), "Cluster 2 holds no object image: 4 background-only images are left out", [0, 1]),
    "no background-only image": ((0, 1, 2), (0, 1), "Cluster 2 holds no background-only image: 4 object images are only moved", [0, 1]),
    "one of each": ((0, 1), (0, 2), "Cluster 1 holds no background-only image: 6 object images are only moved", [0]),
}


@pytest.mark.parametrize("case", LONELY)
def test_a_cluster_without_images_of_one_kind_is_told_of_and_the_rest_is_trained_on(case):
    of_objects, of_backgrounds, said, left = LONELY[case]
    data = from_arrays(np.stack(objects(12))[:, None], np.stack(even(12)())[:, None])
    clusters = torch.tensor([of_objects[i % len(of_objects)] for i in range(12)]
                            + [of_backgrounds[i % len(of_backgrounds)] for i in range(12)])
    deal = Batches(per_cluster=2, n_real=4)
    segmenter = Segmenter(base_width=4, depth=2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        segmenter.fit(data, clusters, steps=4, rounds=2, batches=deal, held_out=None, progress=False)
    assert said in "\n".join(str(word.message) for word in heard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Transplants(clusters[:12], clusters[12:], deal).pairing.clusters == left
    assert segmenter.predict(data.objects).isfinite().all()


def test_held_out_images_of_a_cluster_without_object_images_are_not_judged_by():
    data = from_arrays(np.stack(objects(12))[:, None], np.stack(even(12)())[:, None])
    clusters = torch.tensor([0, 1] * 6 + [0, 1, 2] * 4)
    with pytest.warns(UserWarning, match="Cluster 2 holds no object image"): held_out = hold_out(data, clusters)
    assert set(held_out.targets.tolist()) == {0, 1} and len(held_out.backgrounds) == 8
