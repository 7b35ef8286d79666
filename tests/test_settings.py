"""Settings: what is refused, with the nearest right name; what survives YAML; presets of which every value has a source."""
import dataclasses
import inspect
import os
import typing

import pytest
import yaml
from hypothesis import given, settings as how, strategies as st

from bgcs.data.datasets import PUBLISHED
from bgcs.data.files import ImageSetError
from bgcs.masks.criteria import FOLDS
from bgcs.masks.segment import Segmenter
from bgcs.objective.terms import Objective
from bgcs.runs import settings as module
from bgcs.runs.cli import _parse_words
from bgcs.runs.settings import (
    PRESETS, SETS, Data, Network, Schedule, Settings, gather, load_images, presets, set_options, settings_from,
)

BASE = {"data.set": "digits_on_textures"}
OWN = [name for name in SETS if "val" in set_options(name)]
PAPER = [name for name in PRESETS if "quick" not in name]
WITH_STANDIN = [name for name in PRESETS if "standin" in settings_from(name, {} if "data.set" in PRESETS[name] else BASE).data.all_options]
NUMBERS = [f"{section}.{f.name}" for section, cls in module._SECTIONS.items() for f in dataclasses.fields(cls)
           if typing.get_type_hints(cls)[f.name] in (int, float)]


def of_preset(name): return settings_from(name, {} if "data.set" in PRESETS[name] else {"data.set": "sprites_on_textures"})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml_and_every_value_has_a_source(name):
    settings, table = of_preset(name), presets(name)
    assert settings_from(yaml.safe_load(settings.to_yaml())) == settings and settings.preset == name
    assert all(settings.flat()[key] == value for key, (value, _) in PRESETS[name].items())
    assert set(settings.flat()) - {"preset"} <= set(table.index) | {"data.set"}
    assert (table.source.str.len() > 3).all() and not table.index.has_duplicates
    known = ("paper", "code: ", "ours: ", "made by this library")
    assert all(source.startswith(known) for _, source in PRESETS[name].values())


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_presets_are_the_published_recipe(name):
    settings = settings_from(name)
    o, s = settings.objective, settings.schedule
    assert (o.opening, o.opening_weight, o.recomposition_weight, o.patch_size) == (0, 0, 0, 0) and o.divergence_weight == 1
    assert not settings.network.distances
    assert (o.divergence, o.n_projections, o.temperature) == ("energy-sliced", 1000, "paper")
    assert o.background_weight == settings.data.options["image_size"] ** 2
    assert s.target_clusters == 1 and s.per_cluster == s.n_real and not s.average
    assert s.steps_for(70_000, 5) == -(-s.passes * 70_000 // (2 * s.per_cluster))
    network = settings.network
    Segmenter(1, network.base_width, network.depth, lr=s.lr, objective=o, schedule=s.lr_schedule, average=s.average)


def test_quick_presets_begin_with_the_librarys_defaults():
    settings = settings_from("digits-quick")
    assert (settings.objective, settings.schedule, settings.network) == (Objective(), Schedule(), Network())


@pytest.mark.parametrize("name", WITH_STANDIN)
def test_presets_of_published_sets_read_their_stand_in_and_name_what_is_missing(name, tmp_path):
    _, parts = load_images(settings_from(name, {"data.standin": True}).data)
    side = PRESETS[name]["data.image_size"][0]
    for part in (parts.train, parts.val, parts.test):
        assert part.shape[1:] == (side, side) and len(part.objects) and len(part.backgrounds)
    with pytest.raises(ImageSetError, match="found no") as error:
        load_images(settings_from(name, {"data.root": tmp_path}).data)
    for words in (str(tmp_path), "data.root=FOLDER", "data.standin=true"): assert words in str(error.value)


@pytest.mark.parametrize("name", module._STANDINS)
def test_each_stand_in_has_images_of_both_kinds_in_each_part(name):
    _, parts = load_images(Data(name, {"standin": True, "image_size": 32}))
    assert all(len(part.objects) and len(part.backgrounds) for part in (parts.train, parts.val, parts.test))


def test_every_published_set_has_a_stand_in(): assert set(module._STANDINS) == {cls.__name__ for cls in PUBLISHED}


def test_not_all_are_held_out():
    assert len(load_images(Data("sprites_on_textures", {"n": 700}))[1].test.objects) == module._MOST_HELD_OUT


@pytest.mark.parametrize("name", ["digits-quick", "sprites-quick"])
def test_quick_presets_need_no_download_and_have_enough_to_judge_by(name):
    settings = settings_from(name, {"data.n": 100})
    _, parts = load_images(settings.data)
    assert len(parts.val.objects) >= FOLDS * settings.clusters.n_clusters


BAD = {
    "unknown section": ({"shedule.steps": 3}, "did you mean 'schedule.steps'"),
    "unknown key": ({"objective.divergenc": "sliced"}, "did you mean 'objective.divergence'"),
    "last part alone": ({"base_width": 3}, "did you mean 'network.base_width'"),
    "an earlier name": ({"schedule.epochs": 3}, "'schedule.epochs' is now called 'schedule.rounds'"),
    "option of another set": ({"data.root": "x"}, "data.root is no setting of digits_on_textures"),
    "unknown option": ({"data.imagesize": 32}, "did you mean 'image_size'"),
    "unknown set": ({"data.set": "MNIST"}, "did you mean 'MNISTOnTextures'"),
    "word for an option": ({"data.n": "many"}, "data.n='many' is a word; expected a whole number"),
    "word for a number": ({"schedule.steps": "many"}, "'many' is a word; expected a whole number"),
    "part of a step": ({"schedule.steps": 2.5}, "2.5 is a number; expected a whole number"),
    "true for a number": ({"network.depth": True}, "true or false; expected a whole number"),
    "list for a number": ({"schedule.lr": [1]}, "is a list; expected a number"),
    "nothing for a number": ({"schedule.lr": None}, "is null; expected a number"),
    "no number": ({"schedule.lr": ".nan"}, "is a word; expected a number"),
    "infinite": ({"schedule.lr": float("inf")}, "expected a number"),
    "number for a word": ({"clusters.encoder": 3}, "is a whole number; expected a word"),
    "word for a seed": ({"seed": "x"}, "seed='x' is a word"),
    "negative seed": ({"seed": -1}, "seed=-1; expected a whole number, at least 0"),
    "no steps": ({"schedule.steps": 0}, "schedule.steps=0; expected a whole number, at least 1"),
    "no rounds": ({"schedule.rounds": 0}, "schedule.rounds=0; expected a whole number, at least 1"),
    "steps and passes": ({"schedule.passes": 3}, "expected one of them"),
    "no rate": ({"schedule.lr": 0.0}, "schedule.lr=0.0; expected above 0"),
    "batch too small": ({"schedule.per_cluster": 1}, "at least 2 images of each target cluster"),
    "nothing to compare with": ({"schedule.n_real": 1}, "at least 2 images of each target cluster"),
    "targets": ({"clusters.n_clusters": 3, "schedule.target_clusters": 4}, "expected at most 3"),
    "one cluster": ({"clusters.n_clusters": 1}, "clusters.n_clusters=1; expected a whole number, at least 2, or 'auto'"),
    "no number of clusters": ({"clusters.n_clusters": "six"}, "or 'auto'"),
    "all too sure": ({"clusters.min_confidence": 1}, "clusters.min_confidence=1.0; expected at least 0 and below 1"),
    "no width": ({"network.base_width": 0}, "network.base_width=0"),
    "more than all of training": ({"objective.opening": 1.5}, "objective.opening=1.5; expected a share from 0 to 1"),
    "negative weight": ({"objective.divergence_weight": -1}, "objective.divergence_weight=-1.0"),
    "unknown divergence": ({"objective.divergence": "wasserstein"}, "objective"),
    "unknown flip": ({"objective.flip": "sideways"}, "objective.flip='sideways'"),
    "unknown way": ({"clusters.assign": "nearst"}, "did you mean 'nearest'"),
    "unknown encoder": ({"clusters.encoder": "autoencode"}, "did you mean 'autoencoder'?"),
    "unknown accelerator": ({"trainer.accelerator": "gup"}, "did you mean 'gpu'?"),
    "unknown precision": ({"trainer.precision": "bf16"}, "did you mean 'bf16-mixed'"),
    "no device": ({"trainer.devices": 0}, "trainer.devices=0; expected a whole number, at least 1, or 'auto'"),
    "no number of devices": ({"trainer.devices": "two"}, "or 'auto'"),
    "a mapping for a value": ({"schedule.steps.more": 3}, "there is no setting 'schedule.steps.more'"),
    "a value for a section": ({"schedule": 3}, "there is no setting 'schedule'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_with_what_was_expected(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError) as error: settings_from(BASE, changes)
    assert message in str(error.value)


def test_bad_options_of_own_images():
    both = {"object_folder": "a", "background_folder": "b"}
    for name, options, message in (
            ("folders", both | {"resise": 3}, "did you mean 'resize'?"), ("folders", both | {"val": 0.0}, "data.val=0.0"),
            ("folders", {"object_folder": "a"}, "data.background_folder must be given"),
            ("table", {}, "data.table must be given"), ("table", {"table": "a.csv", "test": 1}, "data.test=1")):
        with pytest.raises(ValueError, match=message): Data(name, options)


def test_folders_that_are_not_there():
    absent = Data("folders", {"object_folder": "nowhere", "background_folder": "."})
    with pytest.raises(FileNotFoundError, match="data.object_folder: .*nowhere is not a folder"): load_images(absent)


NONE = {"cpu": 4, "cuda": 0, "mps": 0}
TWO = {"cpu": 4, "cuda": 2, "mps": 0}


@pytest.mark.parametrize("accelerator, devices, there, message", [
    ("gpu", 1, NONE, r"sees no such device here \(it sees none but the CPU\)"), ("gpu", "auto", NONE, "sees no such device"),
    ("cuda", 3, TWO, r"there are 2 here \(2 cuda\)"), ("cuda", 2, {"cpu": 4, "cuda": 1, "mps": 0}, "there is 1 here"),
    ("mps", 1, TWO, "it sees 2 cuda"), ("gpu", 2, TWO, None), ("cpu", 8, NONE, None), ("auto", 2, NONE, None),
    ("gpu", 1, {"cpu": 4, "cuda": 0, "mps": 1}, None)])
def test_devices_that_are_not_there(accelerator, devices, there, message, monkeypatch):
    monkeypatch.setattr(module, "_devices_here", lambda: there)
    trainer = settings_from(BASE, {"trainer.accelerator": accelerator, "trainer.devices": devices}).trainer
    if message is None: trainer.check_devices()
    else:
        with pytest.raises(ValueError, match=message): trainer.check_devices()


@how(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NUMBERS), st.integers(-3, 50), max_size=4))
def test_numbers_are_taken_as_they_are_or_refused(changes):
    try: settings = settings_from(BASE, changes)
    except ValueError: return
    assert isinstance(settings, Settings) and all(settings.flat()[key] == value for key, value in changes.items())
    assert set(settings_from(BASE).differences(settings)) <= set(changes)
    read = yaml.safe_load(settings.to_yaml())
    assert settings_from(read) == settings
    plain = {key: value for key, value in settings.flat().items() if not isinstance(value, (list, dict))}
    words = [f"{key}={yaml.safe_dump(value).splitlines()[0]}" for key, value in plain.items()]
    assert settings_from(_parse_words(words)) == settings


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                   st.lists(st.integers(), max_size=3))


@given(VALUES, st.sampled_from([int, float, bool, str, int | None, float | str, tuple[int, int] | None]))
def test_what_is_typed_has_the_type(value, hint):
    try: found = module._as_typed("key", value, hint)
    except ValueError as error:
        assert str(error).startswith(f"key={value!r} is ")
        return
    kinds = (hint,) if typing.get_origin(hint) is tuple else typing.get_args(hint) or (hint,)
    assert isinstance(found, tuple(typing.get_origin(kind) or kind for kind in kinds))
    same = found == value or isinstance(value, int) and found == float(value)
    assert same or isinstance(value, str) or isinstance(value, list) and found == tuple(value)


def test_numbers_as_people_write_them_in_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("schedule: {lr: 1e-4, steps: 300}\nobjective:\n  temperature: 2\n")
    settings = settings_from(BASE, path, _parse_words(["objective.divergence_weight=3e-1"]))
    assert (settings.schedule.lr, settings.schedule.steps) == (1e-4, 300)
    assert (settings.objective.temperature, settings.objective.divergence_weight) == (2.0, 0.3)


@pytest.mark.parametrize("text, message", [
    ("a: [", "is not YAML"), ("- 1", "holds a list; expected a mapping"), ("", "holds null; expected a mapping"),
    ("\x00", "is not YAML"), ("!!python/object/apply:os.system ['echo no']", "is not YAML")])
def test_bad_settings_files(text, message, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message): settings_from(tmp_path / "bad.yaml")
    with pytest.raises(FileNotFoundError, match="is not a file"): settings_from(tmp_path / "none.yaml")


def test_another_set_of_images_sheds_the_options_of_the_first():
    own = {"data.set": "folders", "data.object_folder": "a", "data.background_folder": "b"}
    settings = settings_from("shipwrecks", own)
    assert set(settings.data.options) == {"object_folder", "background_folder"} and settings.schedule.target_clusters == 1
    asked = settings_from(gather(preset="shipwrecks", objects="a", backgrounds="b"))
    assert asked == settings and settings.data.own and os.path.isabs(settings.data.options["object_folder"])


def test_differences_name_what_one_of_them_lacks():
    assert settings_from(BASE).differences(settings_from(BASE)) == {}
    assert settings_from(BASE).differences(settings_from(BASE, {"data.n": 3})) == {"data.n": (None, 3)}


@pytest.mark.parametrize("name", SETS)
def test_each_set_names_what_it_lacks_and_takes_what_it_offers(name):
    options = set_options(name)
    assert "random_state" in options and not {"split", "progress", "options"} & set(options)
    lacking = {option for option, (_, default) in options.items() if default is inspect.Parameter.empty}
    assert bool(lacking) == (name in OWN)
    if lacking:
        with pytest.raises(ValueError, match="must be given"): Data(name)
    values = {option: "x" if option in lacking else default for option, (_, default) in options.items()}
    assert set(Data(name, values).options) == set(options)


def test_what_sets_take():
    assert set_options("MNISTOnTextures")["root"] == (str | None, None)
    assert set_options("MNISTOnTextures")["image_size"] == (int, 64) and set_options("Birds")["per_image"] == (int, 1)
    assert set_options("table")["presence"][1] == "presence" and set_options("hdf5")["masks"][1] is None
