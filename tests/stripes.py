"""Images of three kinds of background, and clusters of them, for the tests of plane, editor and explorer."""
import numpy as np

from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.images import from_arrays

KINDS = 3


def images(n_objects=60, n_backgrounds=90, channels=1, size=16, seed=0, **columns):
    "Stripes, dots and noise, every third one each; object images have a bright square in the middle."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    n = n_objects + n_backgrounds
    kinds = np.stack([(x // 2 % 2), ((x % 4 == 0) & (y % 4 == 0)), (x + y) // 3 % 2]).astype(float)
    pixels = kinds[np.arange(n) % KINDS][:, None] * 0.5 + 0.3 * rng.random((n, channels, size, size))
    pixels[:n_objects, :, 6:10, 6:10] = 1
    pixels = (pixels * 0.99).astype(np.float32)
    return from_arrays(pixels[:n_objects], pixels[n_objects:], channel_axis=1, **columns)


def fitted(data, k=KINDS + 1, **settings):
    return BackgroundClusterer(k, encoder="pca", progress=False, **settings).fit(data)


def agrees(editor):
    "The editor's clusters are those that the clusterer gives these images."
    predicted = editor.clusterer.predict(editor.data).numpy()[editor.points.numbers]
    assert (editor.clusters == predicted).all()
