"""Settings: what is refused, with the nearest right name; what survives YAML; presets of which every value has a source."""
import dataclasses
import typing

import pytest
import yaml
from hypothesis import given, settings as how, strategies as st

from bgcs.masks.criteria import FOLDS
from bgcs.data.files import ImageSetError
from bgcs.runs.settings import OWN, PAPER, PRESETS, SECTIONS, SETS, Data, Settings, as_typed, describe_preset, differences, flatten, load_images, parse_words, preset, read_settings, set_options, settings_from
from bgcs.masks.segment import Segmenter

BASE = {"data.set": "digits_on_textures"}
NUMBERS = [f"{section}.{f.name}" for section, cls in SECTIONS.items() for f in dataclasses.fields(cls) if typing.get_type_hints(cls)[f.name] in (int, float)]


def own(name): return preset(name) | ({} if PRESETS[name].get("data.set") else {"data.set": "sprites_on_textures"})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml_and_every_value_has_a_source(name):
    settings = settings_from(own(name))
    assert settings_from(flatten(yaml.safe_load(settings.to_yaml()))) == settings and settings.preset == name
    table = describe_preset(name)
    assert set(settings.flat()) - {"preset"} <= set(table.index) | {"data.set"} and (table.source.str.len() > 3).all()
    assert all(source.split(":")[0].split(";")[0] in ("paper", "code", "ours", "made by this library", "paper counts passes") for _, source in PRESETS[name].values())


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_presets_are_the_published_recipe(name):
    settings = settings_from(preset(name))
    o, s = settings.objective, settings.schedule
    assert (o.opening, o.recomposition_weight, o.patch_size, o.divergence, o.n_projections, o.temperature) == (0, 0, 0, "energy-sliced", 1000, "paper")
    assert o.background_weight == settings.data.options["image_size"] ** 2 and s.target_clusters == 1 and s.per_cluster == s.n_real and not s.average
    Segmenter(1, settings.network.base_width, settings.network.depth, s.lr, o, s.lr_schedule, s.average)
    assert s.steps_for(70_000, 5) == -(-s.passes * 70_000 // (2 * s.per_cluster))


@pytest.mark.parametrize("name", [name for name in PRESETS if "standin" in (set_options(PRESETS[name]["data.set"][0]) if "data.set" in PRESETS[name] else ())])
def test_presets_of_published_sets_read_their_stand_in_and_name_what_is_missing(name, tmp_path):
    _, parts = load_images(settings_from(preset(name), {"data.standin": True}).data)
    side = PRESETS[name]["data.image_size"][0]
    assert all(part.shape[1:] == (side, side) and len(part.objects) and len(part.backgrounds) for part in (parts.train, parts.val, parts.test))
    with pytest.raises(ImageSetError, match="found no") as error: load_images(settings_from(preset(name), {"data.root": tmp_path}).data)
    assert str(tmp_path) in str(error.value) and "data.root=FOLDER" in str(error.value) and "data.standin=true" in str(error.value)


@pytest.mark.parametrize("name", ["digits-quick", "sprites-quick"])
def test_quick_presets_need_no_download_and_have_enough_to_judge_by(name):
    settings = settings_from(preset(name), {"data.n": 100})
    _, parts = load_images(settings.data)
    assert len(parts.val.objects) >= FOLDS * settings.clusters.n_clusters


BAD = {
    "unknown section": ({"shedule.steps": 3}, "did you mean 'schedule.steps'"), "unknown key": ({"objective.divergenc": "sliced"}, "did you mean 'objective.divergence'"), "last part alone": ({"base_width": 3}, "did you mean 'network.base_width'"),
    "option of another set": ({"data.root": "x"}, "data.root is no setting of digits_on_textures"), "unknown option": ({"data.imagesize": 32}, "did you mean 'image_size'"), "unknown set": ({"data.set": "MNIST"}, "did you mean 'MNISTOnTextures'"),
    "word for a number": ({"schedule.steps": "many"}, "'many' is a word; expected a whole number"), "part of a step": ({"schedule.steps": 2.5}, "2.5 is a number; expected a whole number"), "true for a number": ({"network.depth": True}, "true or false; expected a whole number"),
    "list for a number": ({"schedule.lr": [1]}, "is a list; expected a number"), "nothing for a number": ({"schedule.lr": None}, "is null; expected a number"), "number for a word": ({"clusters.encoder": 3}, "is a whole number; expected a word"),
    "no steps": ({"schedule.steps": 0}, "schedule.steps=0; expected at least 1"), "steps and passes": ({"schedule.passes": 3}, "expected one of them"), "batch too small": ({"schedule.per_cluster": 1}, "at least 2 images of each target cluster"),
    "nothing to compare with": ({"schedule.n_real": 1}, "at least 2 images of each target cluster"), "more targets than clusters": ({"clusters.n_clusters": 3, "schedule.target_clusters": 4}, "expected at most 3"), "one cluster": ({"clusters.n_clusters": 1}, "expected at least 2"),
    "negative weight": ({"objective.divergence_weight": -1}, "objective.divergence_weight=-1.0"), "unknown divergence": ({"objective.divergence": "wasserstein"}, "objective: "), "unknown way": ({"clusters.assign": "nearst"}, "did you mean 'nearest'"),
    "unknown precision": ({"trainer.precision": "bf16"}, "did you mean 'bf16-mixed'"), "no device": ({"trainer.devices": 0}, "trainer.devices=0; expected at least 1"), "infinite": ({"schedule.lr": float("inf")}, "expected a number"),
    "a mapping for a value": ({"schedule.steps.more": 3}, "there is no setting 'schedule.steps.more'"), "a value for a section": ({"schedule": 3}, "there is no setting 'schedule'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_with_what_was_expected(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError) as error: settings_from(BASE, changes)
    assert message in str(error.value)


@pytest.mark.parametrize("accelerator, devices, there, message", [
    ("gpu", 1, {"cpu": 4, "cuda": 0, "mps": 0}, "sees no such device"), ("cuda", 3, {"cpu": 4, "cuda": 2, "mps": 0}, "there are 2 here"), ("mps", 1, {"cpu": 4, "cuda": 1, "mps": 0}, "it sees 1 cuda"),
    ("gpu", "auto", {"cpu": 4, "cuda": 0, "mps": 0}, "sees no such device"), ("cpu", 8, {"cpu": 4, "cuda": 0, "mps": 0}, None), ("gpu", 1, {"cpu": 4, "cuda": 0, "mps": 1}, None), ("auto", 2, {"cpu": 4, "cuda": 0, "mps": 0}, None)])
def test_devices_that_are_not_there(accelerator, devices, there, message, monkeypatch):
    monkeypatch.setattr("bgcs.runs.settings.devices_here", lambda: there)
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
    assert set(differences(settings_from(BASE), settings)) <= set(changes)
    assert settings_from(read := flatten(yaml.safe_load(settings.to_yaml()))) == settings and settings_from(parse_words(f"{key}={yaml.safe_dump(value).splitlines()[0]}" for key, value in read.items() if not isinstance(value, (list, dict)))) == settings


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)), st.sampled_from([int, float, bool, str, int | None, float | str, tuple[int, int] | None]))
def test_what_is_typed_has_the_type(value, hint):
    try: found = as_typed("key", value, hint)
    except ValueError as error: assert str(error).startswith(f"key={value!r} is ")
    else:
        kinds = tuple(typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if typing.get_origin(hint) is not tuple and typing.get_args(hint) else (hint,)))
        assert isinstance(found, kinds) and (found == value or isinstance(value, int) and found == float(value) or isinstance(value, str) or isinstance(value, list) and found == tuple(value))


def test_numbers_as_people_write_them_in_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("schedule: {lr: 1e-4, steps: 300}\nobjective:\n  temperature: 2\n")
    settings = settings_from(BASE, read_settings(tmp_path / "a.yaml"), parse_words(["objective.divergence_weight=3e-1"]))
    assert (settings.schedule.lr, settings.schedule.steps, settings.objective.temperature, settings.objective.divergence_weight) == (1e-4, 300, 2.0, 0.3)


@pytest.mark.parametrize("text, message", [("a: [", "is not YAML"), ("- 1", "holds a list; expected a mapping"), ("", "holds null; expected a mapping"), ("\x00", "is not YAML"), ("!!python/object/apply:os.system ['echo no']", "is not YAML")])
def test_bad_settings_files(text, message, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message): read_settings(tmp_path / "bad.yaml")


def test_another_set_of_images_sheds_the_options_of_the_first():
    settings = settings_from(preset("shipwrecks"), {"data.set": "folders", "data.object_folder": "a", "data.background_folder": "b"})
    assert set(settings.data.options) == {"object_folder", "background_folder"} and settings.schedule.target_clusters == 1


@pytest.mark.parametrize("name", SETS)
def test_each_set_names_what_it_lacks_and_takes_what_it_offers(name):
    lacking = {option for option, (_, default) in set_options(name).items() if default is set_options("folders")["object_folder"][1]}
    assert bool(lacking) == (name in OWN)
    if lacking:
        with pytest.raises(ValueError, match="must be given"): Data(name)
    values = {option: "x" for option in lacking} | {option: default for option, (hint, default) in set_options(name).items() if option not in lacking}
    assert set(Data(name, values).options) == set(set_options(name))
