"What every method of the registry promises."
import warnings
from dataclasses import replace

import lightning as L
import pytest
import torch

from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import ImageSet
from bgcs.masks.criteria import hold_out
from bgcs.masks.method import METHODS, load_method, method_class
from bgcs.masks.witness import train_witness
from bgcs.objective.batches import Batches

SMALL = {  # settings that make a test short, where the method has such
    "divergence": dict(base_width=4, depth=1), "refined": dict(base_width=4, depth=1, copies=2),
}
FIT = {"divergence": dict(batches=Batches(4, 20))}


@pytest.fixture(scope="module")
def data(): return digits_on_textures("train", n=150)


@pytest.fixture(scope="module")
def test(): return digits_on_textures("test", n=6)


@pytest.fixture(scope="module")
def judges(data, test):
    held = digits_on_textures("test", n=40)
    return hold_out(held, held.background_class, witness=train_witness(data, 20))


def some_masks(data):
    "True masks of five object images, or made-up ones, as a user would give them."
    there = data.presence.nonzero().flatten()[:5].tolist()
    half = torch.arange(data.shape[2]).expand(data.shape[1:]) < data.shape[2] // 2
    return {i: half.byte() if data.masks is None else data.masks[i, 0].byte() for i in there}


def fitted(name, data, clusters=None, seed=0, channels=None, steps=4, **given):
    method = method_class(name)(channels=channels, random_state=seed, **SMALL.get(name, {}))
    if "masks" in method.needs: given = {"masks": some_masks(data)} | given
    taken = dict(steps=steps, rounds=2) if method.default_steps else {}
    clusters = data.background_class if clusters is None else clusters
    return method.fit(data, clusters, progress=False, **taken, **FIT.get(name, {}), **given)


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_masks_and_truth_is_never_read(name, data, test, judges):
    first = fitted(name, data, held_out=judges).predict(test)
    assert first.shape == (len(test), 1, *data.shape[1:]) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    poisoned = replace(data, masks=torch.rand(data.masks.shape) > 0.5, background_class=data.background_class.flip(0))
    same = {"masks": some_masks(data)} if "masks" in method_class(name).needs else {}
    assert torch.equal(fitted(name, poisoned, data.background_class, held_out=judges, **same).predict(test), first)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_gives_the_same_masks(name, data, test, judges, tmp_path):
    method = fitted(name, data, held_out=judges)
    loaded = load_method(method.save(tmp_path / "model"))
    assert type(loaded) is type(method) is method_class(name)
    assert (loaded.settings, loaded.threshold_, loaded.card_) == (method.settings, method.threshold_, method.card_)
    assert loaded.verdict_ == method.verdict_ and method.verdict_ is not None
    assert torch.equal(loaded.predict(test), method.predict(test))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("channels", (1, 3))
def test_any_size_and_constant_images(name, channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, channels, 33, 47, generator=generator)
    data = ImageSet(images, torch.arange(60) < 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = fitted(name, data, torch.arange(60) % 2, steps=2)
    for asked in (images[:3], torch.zeros(2, channels, 33, 47), torch.ones(2, channels, 20, 50)):
        masks = method.predict(asked)
        assert masks.shape == (len(asked), 1, *asked.shape[2:]) and masks.isfinite().all()
    with pytest.raises(ValueError, match="images have shape"): method.predict(images[:, :1].repeat(1, 2, 1, 1))


class StopAt(L.Callback):
    def __init__(self, step): self.step = step

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step: module.model.stop()


@pytest.mark.parametrize("name", [name for name in METHODS if method_class(name).default_steps])
def test_a_training_that_was_cut_short_ends_with_the_same_masks(name, data, test, judges, tmp_path):
    whole = fitted(name, data, steps=6, held_out=judges).predict(test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted(name, data, steps=6, held_out=judges, folder=tmp_path, save_every=2, callbacks=[StopAt(4)])
    assert torch.equal(fitted(name, data, steps=6, held_out=judges, folder=tmp_path, save_every=2).predict(test), whole)


@pytest.mark.parametrize("name", [name for name in METHODS if not method_class(name).default_steps])
def test_methods_that_learn_at_once_refuse_steps(name, data):
    with pytest.raises(ValueError, match="give no steps"): method_class(name)().fit(data, steps=3)


@pytest.mark.parametrize("name", [name for name in METHODS if method_class(name).needs == {"backgrounds"}])
def test_methods_of_backgrounds_alone_do_not_learn_from_object_images(name, data, test):
    clusters, shown = data.background_class, data.presence
    others = data.images[:].clone()
    others[shown] = torch.rand(others[shown].shape, generator=torch.Generator().manual_seed(1))
    changed = ImageSet(others, shown)
    masks = [fitted(name, images, clusters, held_out=None).predict(test) for images in (data, changed)]
    assert torch.equal(*masks)
