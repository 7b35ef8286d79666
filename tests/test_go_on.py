"Trainings that go on elsewhere, on other devices, longer, or from another's weights."
import shutil

import lightning as L
import pytest
import torch
from skimage.io import imsave

from bgcs import train
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.runs.cli import main
from bgcs.runs.runs import load_run

SMALL = {"network.base_width": 4, "network.depth": 1, "schedule.steps": 8, "schedule.rounds": 2, "schedule.save_every": 2,
         "clusters.n_clusters": 2, "clusters.encoder": "pixels", "trainer.accelerator": "cpu"}


class StopAt(L.Callback):
    def __init__(self, step): self.step = step

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step: module.model.stop()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root, data = tmp_path_factory.mktemp("images"), digits_on_textures(n=80, image_size=24)
    for kind, part in (("with", data.objects), ("without", data.backgrounds)):
        (root / kind).mkdir()
        for i, image in enumerate(part.images):
            imsave(root / kind / f"{kind}{i:03}.png", (image[0] * 255).round().byte().numpy(), check_contrast=False)
    return root


def at(root): return {"objects": root / "with", "backgrounds": root / "without"}


def begun(images, folder):
    "A run that was stopped after five of eight steps."
    with pytest.warns(UserWarning, match="stopped after 5 of 8 steps"):
        return train(**at(images), folder=folder, settings=SMALL, callbacks=[StopAt(5)], progress=False)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    return train(**at(images), folder=tmp_path_factory.mktemp("whole") / "run", settings=SMALL, progress=False)


def masks_of(run): return run.segmenter.predict(digits_on_textures(n=8, image_size=24).objects)


def test_a_run_goes_on_where_its_images_have_moved_to(images, whole, tmp_path):
    begun(images, tmp_path / "run")
    shutil.copytree(images, tmp_path / "moved")
    run = train(**at(tmp_path / "moved"), folder=tmp_path / "run", settings=SMALL, progress=False)
    assert run.status["state"] == "finished" and torch.equal(masks_of(run), masks_of(whole))
    assert str(tmp_path / "moved") in (tmp_path / "run" / "settings.yaml").read_text()


def test_it_does_not_go_on_with_other_images(images, tmp_path):
    begun(images, tmp_path / "run")
    shutil.copytree(images, tmp_path / "moved")
    changed = tmp_path / "moved" / "without" / "without003.png"
    imsave(changed, torch.zeros(24, 24).byte().numpy(), check_contrast=False)
    with pytest.raises(ValueError, match="content of the images|other images"):
        train(**at(tmp_path / "moved"), folder=tmp_path / "run", settings=SMALL, progress=False)


def test_it_goes_on_with_another_setting_of_the_device(images, whole, tmp_path):
    begun(images, tmp_path / "run")
    other = SMALL | {"trainer.accelerator": "auto", "trainer.devices": 1}
    run = train(**at(images), folder=tmp_path / "run", settings=other, progress=False)
    assert run.status["state"] == "finished"
    if not torch.cuda.is_available(): assert torch.equal(masks_of(run), masks_of(whole))


def test_a_finished_run_is_trained_on_in_another_folder(images, whole, tmp_path, capsys):
    longer = SMALL | {"schedule.steps": 12}
    with pytest.raises(ValueError, match="schedule.steps: 8 there, 12 now.*--from"):
        train(**at(images), folder=whole.folder, settings=longer, progress=False)
    words = [f"{key}={value}" for key, value in longer.items()]
    folders = ["--objects", str(images / "with"), "--backgrounds", str(images / "without")]
    assert main(["train", *folders, "--from", str(whole.folder), "--folder", str(tmp_path / "on"), "--quiet", *words]) == 0
    assert load_run(tmp_path / "on").status["state"] == "finished"


def test_training_begins_with_the_weights_that_are_given():
    data = digits_on_textures(n=80, image_size=24)
    def fit(lr, start=None, width=4):
        segmenter = Segmenter(base_width=width, depth=1, lr=lr, distances=False)
        given = dict(batches=Batches(4, 20), held_out=None, progress=False, start=start)
        return segmenter.fit(data, data.background_class, steps=2, rounds=1, **given)
    first = fit(1e-2)
    on = fit(1e-9, first)
    before, after = (dict(model._kept.named_parameters()) for model in (first, on))
    assert all(torch.allclose(value, after[name], atol=1e-6) for name, value in before.items())
    assert first.objective.opening > 0 == on.objective.opening  # what was learned is not to be forgotten
    with pytest.raises(ValueError, match="base_width: 4 there, 8 here"): fit(1e-3, first, width=8)
    with pytest.raises(ValueError, match="expected a trained Segmenter"): fit(1e-3, Segmenter())
