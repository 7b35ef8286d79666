"The plain network: from given masks, and from those that another method made."
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bgcs.data.annotations import read_labels
from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import from_folders
from bgcs.data.splits import held_out_images
from bgcs.masks.evaluate import mask_metrics
from bgcs.masks.method import _fitting
from bgcs.methods.supervised import Supervised, pseudo_labels, segmentation_loss
from bgcs.objective.labels import LabelledImages, Labels


@pytest.fixture(scope="module")
def data(): return digits_on_textures("train", n=80)


def given(masks, threshold=0.4):
    "A method that predicts these masks, image by image of the object images in order."
    left = list(masks.split(1))
    def predict(images, flip="none"): return torch.cat([left.pop(0) for _ in range(len(images))])
    return SimpleNamespace(predict=predict, threshold_=threshold)


def test_pseudo_labels_are_what_is_sure(data):
    n = int(data.presence.sum())
    masks = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32).repeat(n, 1, 1, 1)
    labels = pseudo_labels(given(masks), data, sure=0.5, held_out=None)
    assert list(labels) == data.presence.nonzero().flatten().tolist()
    for known in labels.values():
        assert ((known == 1) == (masks[0, 0] >= 0.7)).all() and ((known == 0) == (masks[0, 0] < 0.2)).all()
    whole = pseudo_labels(given(masks), data, sure=0, held_out=None)
    assert all(((known == 1) == (masks[0, 0] >= 0.4)).all() and (known < 2).all() for known in whole.values())


def test_images_that_will_be_held_out_and_those_without_object_get_none(data):
    n = int(data.presence.sum())
    masks = torch.ones(n, 1, 32, 32)
    aside = held_out_images(data, 0.25, 3)
    labels = pseudo_labels(given(masks), data, held_out=0.25, random_state=3)
    assert set(labels) == set((data.presence & ~aside).nonzero().flatten().tolist())
    masks[:2] = 0.3
    with pytest.warns(UserWarning, match="in 2 object images nothing is surely object"):
        assert len(pseudo_labels(given(masks), data, held_out=None)) == n - 2
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="lower sure=0.9"): pseudo_labels(given(0 * masks + 0.9), data, sure=0.9, held_out=None)
    with pytest.raises(ValueError, match="sure=1; expected a share"): pseudo_labels(given(masks), data, sure=1)


def test_the_second_stage_mends_mistakes_that_do_not_repeat_and_is_judged(data):
    noise = torch.rand(data.masks.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    noisy = (data.masks ^ noise).float()[data.presence]
    labels = pseudo_labels(given(noisy[~held_out_images(data, 0.3, 0)[data.presence]], 0.5), data, held_out=0.3)
    second, clusters = Supervised(base_width=8, depth=1), data.background_class.clamp_max(1)
    second.fit(data, clusters, steps=50, rounds=2, held_out=0.3, masks=labels, progress=False)
    assert second.verdict_ is not None and len(second.history_) == 2
    assert second.threshold_ in _fitting(second)
    truth = data.objects.masks
    before, after = mask_metrics(noisy, truth, 0.5)["iou"], mask_metrics(second.predict(data.objects), truth, second.threshold_)["iou"]
    assert before < 0.6 and after > before + 0.08


def test_thresholds_to_choose_from_keep_to_the_masks_that_are_given():
    left = (torch.arange(8) < 4).expand(8, 8)
    images = torch.where(left, 0.25, 0.15).expand(300, 1, 8, 8)
    def fitting(**labels):
        labels = Labels(**labels)
        return list(_fitting(SimpleNamespace(_labelled=LabelledImages(images[labels.images], labels), predict=lambda images: images)))
    assert fitting(masks={i: left for i in range(300)}) == [0.2]
    sure = torch.where(torch.arange(8) < 2, 1, torch.where(torch.arange(8) > 5, 0, 255)).expand(8, 8)
    images = torch.where(torch.arange(8) == 5, 0.95, images)  # of which nothing is known
    assert fitting(scribbles={4: sure}) == [0.2]
    everything = list(_fitting(SimpleNamespace(_labelled=None)))
    assert len(everything) > 5 and fitting(boxes={0: [(0, 0, 8, 4)]}) == fitting(masks={0: left * 0}) == everything


def test_unknown_pixels_do_not_teach(data):
    images = data.presence.nonzero().flatten()[:6].tolist()
    masks = {i: torch.where(torch.arange(32) < 16, data.masks[i, 0].byte(), 255) for i in images}
    other = {i: torch.where(mask == 255, 7, mask) for i, mask in masks.items()}
    fit = dict(steps=4, rounds=1, held_out=None, progress=False)
    found = [Supervised(base_width=4, depth=1).fit(data, data.background_class, masks=given, **fit).predict(data.images[:4])
             for given in (masks, other, {i: data.masks[i, 0].byte() for i in images})]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_loss_of_nothing_known_and_of_empty_images_is_finite():
    logits = torch.tensor([-40.0, 40.0]).repeat(8).view(1, 1, 4, 4).requires_grad_()
    for known in (torch.full((1, 1, 4, 4), -1.0), torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)):
        loss = segmentation_loss(logits, known)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()
    assert segmentation_loss(logits, torch.full((1, 1, 4, 4), -1.0)) == 0


def test_labels_from_files_teach(tmp_path):
    "The way from two folders and a few PNGs to masks."
    digits = digits_on_textures("train", n=60)
    for kind, images in (("with", digits.objects.images), ("without", digits.backgrounds.images), ("masks", digits.objects.masks.float()[:9])):
        (tmp_path / kind).mkdir()
        for i, image in enumerate(images): Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / kind / f"{i:03}.png")
    data = from_folders(tmp_path / "with", tmp_path / "without", progress=False)
    labels = read_labels(tmp_path / "masks", data)
    assert len(labels["masks"]) == 9
    method = Supervised(base_width=8, depth=1).fit(data, torch.zeros(len(data), dtype=torch.long), steps=50, rounds=1, held_out=None,
                                                   progress=False, **labels)
    test = digits_on_textures("test", n=40).objects
    assert mask_metrics(method.predict(test), test.masks, 0.5)["iou"] > 0.4


def test_numbers_that_would_move_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("with", "without"):
        (tmp_path / kind).mkdir()
        for i in range(6): Image.fromarray(rng.integers(0, 255, (24, 24)).astype(np.uint8)).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "with/0.png").write_bytes(b"no image")
    data = from_folders(tmp_path / "with", tmp_path / "without", on_bad="skip", lazy=True, progress=False)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="1 images of this set can't be used, so that numbers would move"):
        Supervised().fit(data, masks={1: torch.ones(24, 24)}, progress=False)
    packed = data.packed(progress=False)
    assert len(packed) == len(data) - 1
    fit = dict(steps=1, rounds=1, held_out=None, progress=False)
    Supervised(base_width=4, depth=1).fit(packed, torch.zeros(len(packed), dtype=torch.long), masks={1: torch.ones(24, 24)}, **fit)


@pytest.mark.parametrize(("labels", "text"), [({}, "nothing was given"), ({"boxes": {0: [(0, 0, 5, 5)]}}, "boxes alone was given")])
def test_it_needs_masks(data, labels, text):
    with pytest.raises(ValueError, match=text): Supervised().fit(data, data.background_class, **labels)


def test_other_methods_say_which_take_labels(data):
    from bgcs.methods.presence import PresenceMap
    with pytest.raises(ValueError, match="these take labels: divergence, supervised"):
        PresenceMap().fit(data, data.background_class, masks={0: data.masks[0, 0]})
