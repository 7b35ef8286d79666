"""Plain implementations that the library's faster ones are compared with."""
import numpy as np

from bgcs.data.patches import blending_window


def lay_back(patches, places, shape, blend="mean"):
    "Predictions `(p, a, b)` of windows at places `(p, 2)` of an image `(h, w)`: their weighted mean, NaN where there is none."
    height, width = patches.shape[1:]
    weights = np.outer(blending_window(height, blend), blending_window(width, blend))
    total, weight = np.zeros(shape), np.zeros(shape)
    for patch, (top, left) in zip(patches, places):
        part = np.s_[top:top + height, left:left + width]
        total[part] += patch * weights
        weight[part] += weights
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)


def masks_of_images(masks, data, shape):
    "Masks `(n, 1, a, b)` of the patches that `cut_patches` gave, as masks `(h, w)` of the images they were cut from, by name."
    import torch.nn.functional as F
    image_of = np.array([name.rsplit(" [", 1)[0] for name in data.names])
    found = {}
    for image in dict.fromkeys(image_of.tolist()):
        own, places = masks[image_of == image].float(), data.places[image_of == image]
        resized = F.interpolate(own, size=tuple(places[0, 2:4].tolist()), mode="bilinear", align_corners=False)[:, 0].numpy()
        upright = np.where(places[:, 4, None, None] > 0, resized[:, :, ::-1], resized)
        found[image] = lay_back(upright, places[:, :2], shape)
    return found
