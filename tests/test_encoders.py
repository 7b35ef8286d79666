"""Encoders: one protocol for all, kept without pickles, told apart textures, bad input refused. A minute at most on one thread."""
import copy
import json
import os
import signal
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from skimage import data as skdata
from torch import nn

from bgcs.training.checkpoints import _Checkpoints, read_checkpoint, write_checkpoint
from bgcs.backgrounds.encoders import (
    _POSITIVES, ENCODERS, AutoEncoder, ContrastiveEncoder, Encoder, ModuleEncoder, PCAEncoder, PixelEncoder, _random_crops,
    load_encoder, make_encoder,
)
from bgcs.data.intensity import Normalization
from bgcs.data.stores import ArrayStore, LazyImages

SHORT = {"epochs": 2, "batch_size": 8, "progress": False, "accelerator": "cpu"}
SIZE = 12


def images(channels=1, n=24, height=33, width=47, seed=0): return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def network(channels=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.resnet18(weights=None)
        net.fc = nn.Linear(512, 6)
        if channels not in (1, 3): net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return net


def build(name, channels=1):
    if name == "module": return ModuleEncoder(network(channels), channels, SIZE, resize=32, repeat_channels=3 if channels == 1 else None, mean=0.45, std=0.25)
    kind, _, architecture = name.partition(" ")
    if architecture: return ENCODERS[kind](channels, 5, 4, patch_size=SIZE, architecture=architecture)
    return make_encoder(kind, channels, SIZE, 5)


NAMES = [*ENCODERS, "contrastive residual", "autoencoder residual", "module"]


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_protocol(name, channels, tmp_path):
    encoder, data = build(name, channels), images(channels)
    with pytest.raises(NotFittedError): encoder.embed(data[:, :, :SIZE, :SIZE])
    assert encoder.fit(data, **SHORT) is encoder
    patches = _random_crops(data, SIZE, torch.Generator().manual_seed(1))
    z = encoder.embed(patches)
    assert z.dtype == torch.float32 and z.shape == (24, {"pixels": channels * SIZE ** 2, "module": 6}.get(name, 5)) and z.isfinite().all() and not encoder.training
    assert z.std(0).max() > 0
    torch.testing.assert_close(encoder.embed(patches, batch_size=7), z, rtol=1e-4, atol=1e-4)
    if encoder.on_sphere: torch.testing.assert_close(z.norm(dim=1), torch.ones(24))
    assert torch.equal(build(name, channels).fit(data, **SHORT).embed(patches), z)  # same seed
    back = load_encoder(encoder.save(tmp_path / "kept"), network(channels) if name == "module" else None)
    assert torch.equal(back.embed(patches), z) and json.loads(json.dumps(encoder.settings)) == back.settings
    assert os.listdir(tmp_path / "kept") == ["encoder.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_lazy_images_give_the_same(name):
    data = images()
    lazy = LazyImages(ArrayStore(data.numpy()), Normalization())
    patches = _random_crops(data, SIZE)
    assert torch.equal(build(name).fit(lazy, **SHORT).embed(patches), build(name).fit(data, **SHORT).embed(patches))


@pytest.mark.parametrize("size", [8, 9, 13, 33])
@pytest.mark.parametrize("architecture", ["plain", "residual"])
def test_any_size(size, architecture):
    data = images(2)
    for cls in (ContrastiveEncoder, AutoEncoder):
        encoder = cls(2, 3, 4, patch_size=size, architecture=architecture).fit(data, **SHORT)
        z = encoder.embed(data[:, :, :size, :size])
        assert z.shape == (24, 3)
    assert encoder.decode(z).shape == (24, 2, size, size)
    ContrastiveEncoder(patch_size=8, width=4).fit(images(1, 4, 8, 8), **SHORT)  # the smallest


def test_positives():
    found = []
    for positives in _POSITIVES:
        encoder = ContrastiveEncoder(width=4, patch_size=SIZE, positives=positives).fit(images(), **SHORT)
        assert encoder.embed(images()).isfinite().all() and encoder.settings["positives"] == positives
        found.append(weights(encoder))
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2]) and not torch.equal(found[1], found[2])


def small(**settings): return ContrastiveEncoder(**{"width": 4, "patch_size": SIZE} | settings)


def test_seeds():
    torch.manual_seed(5)  # must not matter
    first = small().fit(images(), **SHORT)
    before = torch.get_rng_state()
    again = small().fit(images(), **SHORT)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(weights(first), weights(again))
    assert torch.equal(weights(first), weights(copy.deepcopy(first).fit(images(), **SHORT)))  # fitted anew
    assert not torch.equal(weights(first), weights(small().fit(images(), random_state=1, **SHORT)))
    assert not torch.equal(weights(first), weights(small(random_state=1).fit(images(), **SHORT)))
    torch.manual_seed(7)
    assert torch.equal(*(weights(AutoEncoder(width=4, patch_size=SIZE).fit(images(), **SHORT)) for _ in range(2)))


def test_embeddings_of_nothing():
    encoder = small().fit(images(), **SHORT)
    assert encoder.embed(images()[:0]).shape == (0, 20) and not encoder.embed(images()).requires_grad


def test_an_autoencoder_of_little_contrast_and_of_an_even_channel():
    dark = 0.5 + images(n=60) / 100
    encoder = AutoEncoder(patch_size=8, width=8, dim=40).fit(dark, epochs=8, batch_size=16, progress=False, accelerator="cpu")
    patches = _random_crops(dark, 8, torch.Generator().manual_seed(1))
    assert (encoder.decode(encoder.embed(patches)) - patches).pow(2).mean() < patches.var()
    even = torch.cat([images(), torch.full_like(images(), 0.3)], 1)
    assert AutoEncoder(2, width=4, patch_size=8).fit(even, **SHORT).embed(even[:, :, :8, :8]).isfinite().all()
    small_patches = AutoEncoder(1, 6, 4, 5).fit(images(), **SHORT)  # too small to be halved
    assert small_patches.decode(small_patches.embed(images()[:3, :, :5, :5])).shape == (3, 1, 5, 5)


def test_pixels_are_standardised_and_components_whitened():
    data = images(n=60)
    pixels = PixelEncoder(patch_size=SIZE).fit(data)
    scaled = pixels.scale(data)
    assert abs(scaled.mean()) < 1e-4 and abs(scaled.std() - 1) < 1e-3
    patches = _random_crops(data.repeat_interleave(20, 0), SIZE, torch.Generator().manual_seed(1))
    white = PCAEncoder(patch_size=SIZE, dim=5, patches_per_image=20, whiten=True).fit(data).embed(patches)
    assert (white.std(0) - 1).abs().max() < 0.3
    with pytest.raises(ValueError, match="2 images give 16; expected a smaller dim"): PCAEncoder(patch_size=SIZE).fit(data[:2])


def test_every_encoder_by_name():
    assert set(ENCODERS) == {"contrastive", "autoencoder", "pixels", "pca"}
    assert [name for name in ENCODERS if make_encoder(name, 1, SIZE).on_sphere] == ["contrastive"]
    assert make_encoder("pca", 2, 9, 7, 3).settings == {
        "name": "pca", "channels": 2, "dim": 7, "patch_size": 9, "patches_per_image": 8, "whiten": False, "random_state": 3,
    }
    assert make_encoder(network(), 3, 16).settings["module"] == "ResNet"


# textures

def texture_images(names, n, seed, left):
    "Crops of 32×32 from the left or the right half of textures, and their numbers."
    rng, crops, kinds = np.random.default_rng(seed), [], []
    for k, name in enumerate(names):
        texture = getattr(skdata, name)().astype(np.float32) / 255
        half = texture[:, :256] if left else texture[:, 256:]
        for y, x in zip(rng.integers(480, size=n), rng.integers(224, size=n)): crops.append(half[y:y + 32, x:x + 32]); kinds.append(k)
    return torch.from_numpy(np.stack(crops))[:, None], np.array(kinds)


@pytest.fixture(scope="module")
def textures(): return texture_images(("brick", "grass"), 250, 0, True), texture_images(("brick", "grass"), 150, 1, False)


def separation(encoder, train, test, size):
    (a, ka), (b, kb) = train, test
    a, b = (encoder.embed(_random_crops(t, size, torch.Generator().manual_seed(2))) for t in (a, b))
    mean, std = a.mean(0), a.std(0) + 1e-9
    return LogisticRegression(C=0.1, max_iter=500).fit((a - mean) / std, ka).score((b - mean) / std, kb)


@pytest.mark.parametrize("name, least", [("contrastive", 0.97), ("autoencoder", 0.7), ("pca", 0.55), ("pixels", 0.5)])
def test_separates_brick_from_grass(name, least, textures):
    train, test = textures
    encoder = make_encoder(name, 1, 16).fit(train[0], epochs=8, progress=False)
    assert separation(encoder, train, test, 16) >= least


# training

class Stop(Exception): pass


def breaking(encoder, step, how):
    "Its loss is counted, and does something else at one step."
    loss, encoder.calls = encoder.loss, []
    def counted(images, generator=None):
        encoder.calls.append(encoder.training)
        if len(encoder.calls) == step: how()
        return loss(images, generator)
    encoder.loss = counted
    return encoder


def stop(): raise Stop


def interrupt(): os.kill(os.getpid(), signal.SIGINT)


def weights(encoder): return torch.cat([value.flatten().double() for value in encoder.state_dict().values()])


def test_early_stopping_keeps_the_best():
    data = images(n=40)
    encoder = breaking(ContrastiveEncoder(width=4, patch_size=SIZE), -1, stop).fit(data, epochs=60, batch_size=8, patience=2, progress=False)
    assert 2 < encoder.epochs_trained < 60
    assert sum(encoder.calls) == 4 * encoder.epochs_trained  # 36 images train, 4 are held out
    best = ContrastiveEncoder(width=4, patch_size=SIZE).fit(data, epochs=60, batch_size=8, patience=60, progress=False)
    assert best.epochs_trained == 60
    everyone = breaking(ContrastiveEncoder(width=4, patch_size=SIZE), -1, stop).fit(data, **SHORT)
    assert everyone.calls == [True] * 10  # no patience: all images train


@pytest.mark.parametrize("cls", [ContrastiveEncoder, AutoEncoder])
@pytest.mark.parametrize("patience", [None, 3])
@pytest.mark.parametrize("how", [stop, interrupt])
def test_resume_ends_as_if_never_cut_off(cls, patience, how, tmp_path):
    options = {**SHORT, "epochs": 6, "patience": patience}
    make = lambda: cls(width=4, patch_size=SIZE, dim=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how is stop:
            with pytest.raises(Stop): breaking(make(), 7, how).fit(images(), folder=tmp_path, **options)
        else: breaking(make(), 7, how).fit(images(), folder=tmp_path, **options)
    resumed = breaking(make(), -1, stop).fit(images(), folder=tmp_path, **options)
    whole = breaking(make(), -1, stop).fit(images(), **options)
    assert torch.equal(weights(resumed), weights(whole))
    assert 0 < len(resumed.calls) < len(whole.calls) and resumed.epochs_trained == whole.epochs_trained
    done = breaking(make(), 1, stop).fit(images(), folder=tmp_path, **options)  # already trained: no step is taken
    assert torch.equal(weights(done), weights(whole))


def test_checkpoints_of_others_are_refused(tmp_path):
    options = {**SHORT, "folder": tmp_path}
    ContrastiveEncoder(width=4, patch_size=SIZE).fit(images(), **options)
    for encoder, data, changed, text in ((ContrastiveEncoder(width=4, patch_size=SIZE), images(), {"epochs": 3}, "epochs: 2 there, 3 now"), (ContrastiveEncoder(width=4, patch_size=SIZE), images(seed=1), {}, "content of the images"),
                                         (ContrastiveEncoder(width=5, patch_size=SIZE), images(), {}, "width: 4 there, 5 now"), (AutoEncoder(patch_size=SIZE), images(), {}, "name: 'contrastive' there")):
        with pytest.raises(ValueError, match=text): encoder.fit(data, **{**options, **changed})
    ran = tmp_path / "ran"
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(ran),)
    torch.save({"bomb": Bomb()}, tmp_path / "forged")
    good, forged = _Checkpoints(tmp_path).paths[0].read_bytes(), (tmp_path / "forged").read_bytes()
    for content in (good[:-20], good[:50], b"", b"junk", forged):
        for path in _Checkpoints(tmp_path).paths: path.write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged"), pytest.raises(ValueError, match="Delete them to train anew"): ContrastiveEncoder(width=4, patch_size=SIZE).fit(images(), **options)
    assert not ran.exists()


def test_interrupt_leaves_a_usable_encoder():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="stopped after 1 of 50 epochs; the encoder is usable"):
        encoder = breaking(ContrastiveEncoder(width=4, patch_size=SIZE), 5, interrupt).fit(images(), **{**SHORT, "epochs": 50})
    assert signal.getsignal(signal.SIGINT) is handler and encoder.embed(images()).isfinite().all()


# files

@pytest.fixture
def kept(tmp_path): return ContrastiveEncoder(width=4, patch_size=SIZE).fit(images(), **SHORT).save(tmp_path / "kept")


FILE = "encoder.safetensors"


def tamper(folder, weights=None, **changes):
    "Other settings and weights, in a file that is whole."
    stored = read_checkpoint(folder / FILE)
    stored["settings"] |= changes
    write_checkpoint(folder / FILE, stored if weights is None else {**stored, "weights": weights})


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_truncated_file(kept, share):
    content = (kept / FILE).read_bytes()
    (kept / FILE).write_bytes(content[:int(share * len(content))])
    with pytest.raises(ValueError, match=f"{FILE} is damaged"): load_encoder(kept)


def test_flipped_bit(kept):
    content = bytearray((kept / FILE).read_bytes())
    content[-3] ^= 1
    (kept / FILE).write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"): load_encoder(kept)


@pytest.mark.parametrize("changes", [{"name": "contrastve"}, {"name": "posix.system"}, {"name": None}, {"width": 10 ** 9}, {"width": 10 ** 40}, {"width": "8"}, {"dim": -1}, {"dim": True}, {"lr": None}, {"architecture": ["plain"]}, {"surprise": 1}, {"channels": 3}, {"name": "pixels"}, {"name": "module", "module": "ResNet"}])
def test_forged_settings(kept, changes):
    tamper(kept, **changes)
    with pytest.raises(ValueError, match=FILE): load_encoder(kept)


def test_a_pickle(kept):
    import pickle
    (kept / FILE).write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(ValueError, match="is no checkpoint"): load_encoder(kept)


def test_tensors_of_another(kept):
    good = read_checkpoint(kept / FILE)["weights"]
    for change in ({"more": torch.zeros(1)}, {"log_temperature": torch.zeros(2)}, {"log_temperature": torch.zeros((), dtype=torch.half)}, {"log_temperature": torch.tensor(float("inf"))}, {"log_temperature": "cold"}):
        tamper(kept, {**good, **change})
        with pytest.raises(ValueError, match=f"{FILE} (belongs|holds)"): load_encoder(kept)


def test_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved encoder"): load_encoder(tmp_path)
    with pytest.raises(NotFittedError, match="call fit before saving it"): PixelEncoder().save(tmp_path)


def test_module_must_be_given_again(tmp_path):
    encoder = ModuleEncoder(network(), 3, SIZE).fit(images(3))
    encoder.save(tmp_path)
    with pytest.raises(ValueError, match="give such a network"): load_encoder(tmp_path)
    with pytest.raises(ValueError, match="Linear was given"): load_encoder(tmp_path, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="other settings"): load_encoder(tmp_path, torchvision.models.resnet18(weights=None))


def test_a_loaded_encoder_is_as_it_was(kept):
    encoder, back = ContrastiveEncoder(width=4, patch_size=SIZE), load_encoder(kept)
    for ours, theirs in zip(back.parameters(), encoder.parameters()):
        assert ours.requires_grad == theirs.requires_grad and ours.device.type == "cpu"
    before = weights(back)
    assert torch.equal(weights(back.fit(images(), **SHORT)), before)  # fitted anew


def test_one_encoder_over_another(kept):
    fitted = ModuleEncoder(network(), 3, SIZE).fit(images(3))
    fitted.save(kept)
    with pytest.raises(ValueError, match="of a ResNet, and a Identity was given"): load_encoder(kept, nn.Identity())
    contrastive = small().fit(images(), **SHORT)
    contrastive.save(kept)
    with pytest.raises(ValueError, match="takes no module"): load_encoder(kept, network())
    assert load_encoder(kept).settings == contrastive.settings and os.listdir(kept) == [FILE]


@pytest.mark.parametrize("says, changes", [
    ("'bgcs.Encoder/9'; was it written by another version", {"encoder": "bgcs.Encoder/9"}), ("names no encoder", {"settings": 3}), ("holds no weights", {"weights": 3}),
])
def test_forged_parts(says, changes, kept):
    write_checkpoint(kept / FILE, read_checkpoint(kept / FILE) | changes)
    with pytest.raises(ValueError, match=says): load_encoder(kept)


@pytest.mark.parametrize("says, changes", [
    ("did you mean", {"name": "contrastiv"}), ("not known", {"name": "os.system"}), ("other settings", {"width": 16}), ("other settings", {"width": 10 ** 8}),
    ("dim='20'", {"dim": "20"}), ("holds settings that this encoder doesn't have", {"new": 1}), ("doesn't have", {"name": "pca"}), ("give such a network", {"name": "module", "module": "ResNet"}),
])
def test_forged_settings_are_named(says, changes, kept):
    tamper(kept, **changes)
    with pytest.raises(ValueError, match=says): load_encoder(kept)


# bad input

NAN = images()
NAN[5, 0, 3, 3] = float("nan")


@pytest.mark.parametrize("error, says, bad", [
    (ValueError, "there are 0 images", images(n=0)), (ValueError, "torch.uint8", (255 * images()).byte()), (TypeError, "images are a ndarray", images().numpy()),
    (ValueError, "NaN or infinity in 1 of 24", LazyImages(ArrayStore(NAN.numpy()), torch.from_numpy)),
])
def test_more_bad_images(error, says, bad):
    with pytest.raises(error, match=says): small().fit(bad, **SHORT)


@pytest.mark.parametrize("says, settings", [
    ("epochs=0", {"epochs": 0}), ("epochs=2.5", {"epochs": 2.5}), ("batch_size=1", {"batch_size": 1}), ("patience=0", {"patience": 0}),
    ("random_state=-1", {"random_state": -1}),
])
def test_bad_settings_of_fit(says, settings):
    with pytest.raises(ValueError, match=says): small().fit(images(), **SHORT | settings)


def test_too_few_to_hold_out():
    with pytest.raises(ValueError, match="at least 4, or patience=None"): small().fit(images(n=3), patience=1, **SHORT)


def test_bad_patches():
    encoder, auto = small().fit(images(), **SHORT), AutoEncoder(width=4, patch_size=SIZE).fit(images(), **SHORT)
    with pytest.raises(ValueError, match="patches hold NaN or infinity"): encoder.embed(NAN)
    with pytest.raises(ValueError, match="patches have 2 channels"): encoder.embed(images(2))
    with pytest.raises(ValueError, match="patches are 33×47; this encoder takes 12×12"): auto.embed(images())
    with pytest.raises(NotFittedError, match="call fit first"): AutoEncoder().decode(torch.zeros(2, 20))

@pytest.mark.parametrize("name", NAMES)
def test_bad_images(name):
    nan = images()
    nan[5, 0, 3, 3] = float("nan")
    for bad, text in ((images(2), "2 channels"), (nan, "NaN or infinity in 1"), (images(n=1), "at least 2"), (images(height=9), "larger than the images, 9×47"), (images()[0], r"expected \(n, 1, h, w\)"), (images() * 255, r"expected \[0, 1\]"), (images().long(), "dtype")):
        with pytest.raises(ValueError, match=text): build(name).fit(bad, **SHORT)
    with pytest.raises(TypeError, match="list"): build(name).fit([1, 2])


@pytest.mark.parametrize("make, text", [
    (lambda: small(dim=0), "dim=0; expected a whole number, at least 1"), (lambda: small(architecture="residul"), r"\(did you mean 'residual'\?\)"), (lambda: small(positives="none"), "'augment'"),
    (lambda: small(lr=float("nan")), "lr=nan"), (lambda: make_encoder("x", 1, 16), "expected one of 'contrastive'"), (lambda: make_encoder(PixelEncoder(3, 16), 1, 16), "takes 3 channels"),
    (lambda: make_encoder("autoencoder", 1, 16, 0), "dim=0"),
    (lambda: make_encoder("contrastiv", 1, 16), "did you mean 'contrastive'"), (lambda: make_encoder("PCA ", 1, 16), "expected one of 'contrastive', 'autoencoder', 'pca', 'pixels'"), (lambda: make_encoder("pca", 1, 16, 0), "dim=0"),
    (lambda: make_encoder("contrastive", 1, 7), "at least 8"), (lambda: PCAEncoder(1, 50, 4), "only 16 values"), (lambda: AutoEncoder(architecture="resnet"), "'plain', 'residual'"), (lambda: make_encoder(PixelEncoder(1, 9), 1, 16), "say patch_size=9")])
def test_bad_settings(make, text):
    with pytest.raises(ValueError, match=text): make()


def test_modules_that_give_no_table():
    body = nn.Sequential(*list(network().children())[:-2])
    with pytest.raises(ValueError, match=r"Sequential gave \(2, 512, 1, 1\), features at 1×1 places"): ModuleEncoder(body, 3, SIZE).fit(images(3))
    pooled = make_encoder(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, SIZE).fit(images(3))
    assert isinstance(pooled, Encoder) and pooled.embed(images(3)).shape == (24, 512)
    with pytest.raises(ValueError, match="ResNet cannot take patches of 1×12×12.*repeat_channels=3"): ModuleEncoder(network(), 1, SIZE).fit(images())


class Wrapped(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, images): return self.made(images)


@pytest.mark.parametrize("says, made", [
    ("Wrapped gave a tuple", lambda x: (x,)), (r"gave \(2, 1, 144\) for 2 patches", lambda x: x.flatten(2)), (r"gave \(1, 144\)", lambda x: x.flatten(1)[:1]),
    ("finite", lambda x: x.flatten(1) / 0), ("int64", lambda x: x.flatten(1).long()),
])
def test_what_a_module_may_not_give(says, made):
    with pytest.raises(ValueError, match=says): ModuleEncoder(Wrapped(made), 1, SIZE).fit(images())


def test_a_module_gets_patches_as_it_was_said():
    encoder = ModuleEncoder(Wrapped(lambda x: x.flatten(1)), resize=(4, 6), mean=0.5, std=0.5).fit(images())
    expected = (F.interpolate(images(), (4, 6), mode="bilinear", antialias=True).flatten(1) - 0.5) / 0.5
    torch.testing.assert_close(encoder.embed(images()), expected)


@pytest.mark.parametrize("error, says, make", [
    (ValueError, "these have 2", lambda: ModuleEncoder(network(), 2, repeat_channels=3)), (ValueError, r"mean=\[0.1, 0.2\]; expected one number, or 3", lambda: ModuleEncoder(network(), repeat_channels=3, mean=(0.1, 0.2))),
    (ValueError, "above 0", lambda: ModuleEncoder(network(), std=0)), (TypeError, "is a type", lambda: ModuleEncoder(nn.Identity)), (ValueError, "resize=0", lambda: ModuleEncoder(network(), resize=0)),
    (ValueError, r"resize=\(4, 6, 8\); expected a side", lambda: ModuleEncoder(network(), resize=(4, 6, 8))), (TypeError, "expected a name", lambda: make_encoder(PixelEncoder, 1, 16)), (TypeError, "encoder=3", lambda: make_encoder(3, 1, 16)),
])
def test_bad_settings_of_a_module(error, says, make):
    with pytest.raises(error, match=says): make()
