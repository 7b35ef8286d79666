"""The six real sets of the benchmarks, cut into patches by one function, with the same defaults for all.

The data is not part of the project: it is looked for where the environment variable `BGCS_DATA` says.
"""
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from bgcs.data.datasets import MNISTOnTextures, outside_fan
from bgcs.data.images import ImageSet
from bgcs.data.patches import cut_patches

PLACE = Path(os.environ.get("BGCS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def _number(file): return int(re.findall(r"\d+", file.stem)[-1])


# folder; what an image's source is; object patches and background-only patches of an image; side that is cut
_CUTS = {
    "tiles": ("real/magnetic_tile", lambda file: re.search(r"num_(\d+)", file.name)[1], (3, 2), None),
    "steel": ("real/steel", lambda file: _number(file) // 100, (3, 3), None),
    "ships": ("real/ships", lambda file: file.stem.split("_")[0], (5, 2), None),
    "nuclei": ("real/nuclei", lambda file: file.stem, (10, 10), None),
    "sonar": ("fls_sonar", lambda file: _number(file) // 80, (4, 4), 96),
}
_SONAR = dict(label_values=range(1, 11), exclude_values=(11,), invalid=outside_fan)  # the tank's wall is no object
SETS = (*_CUTS, "digits")


def _test_sources(sources):
    "A quarter of the sources, drawn by a seed."
    dealt = sorted(set(sources), key=str)
    np.random.default_rng(0).shuffle(dealt)
    return set(dealt[: max(1, len(dealt) // 4)])


def patches(name: str, part: str | None = None, size: int = 48) -> ImageSet:
    "Patches of one part, 'train' or 'test', or of both, as an image set with masks. Digits come in parts only."
    if name == "digits":
        n = {"train": 2500, "test": 300}[part]
        return MNISTOnTextures(PLACE / "mnist_t10k", part, image_size=32, random_state=0, textures=PLACE / "brodatz",
                               n=n).packed(progress=False)
    folder, source_of, (n_objects, n_backgrounds), side = _CUTS[name]
    files = sorted((PLACE / folder / "images").iterdir())
    sources = [source_of(file) for file in files]
    test = _test_sources(sources)
    kept = [(file, source) for file, source in zip(files, sources) if part in (None, "test" if source in test else "train")]
    side = side or size
    return cut_patches(
        [file for file, _ in kept], side, labels=[PLACE / folder / "masks" / f"{file.stem}.png" for file, _ in kept],
        n_objects=n_objects, n_backgrounds=n_backgrounds, object_share=(0.01, 0.6), resize=None if side == size else size,
        color="rgb" if name == "ships" else "gray", source=[str(source) for _, source in kept], on_bad="skip",
        progress=False, **(_SONAR if name == "sonar" else {}),
    ).packed(progress=False)


def _as_png(values): return Image.fromarray((255 * values).round().byte().permute(1, 2, 0).squeeze(-1).numpy())


def written(name: str, folder) -> dict:
    "Settings of one set; its patches of both parts as files in a folder, where they aren't there."
    if name == "digits":
        return {"data.set": "MNISTOnTextures", "data.root": str(PLACE / "mnist_t10k"), "data.image_size": 32,
                "data.textures": str(PLACE / "brodatz"), "data.n": 2500}
    folder = Path(folder)
    table = folder / "table.csv"
    if not table.is_file():
        data, rows = patches(name), []
        for part in ("images", "masks"): (folder / part).mkdir(parents=True, exist_ok=True)
        for i, there in enumerate(data.presence.tolist()):
            file = f"{i:05}.png"
            _as_png(data.images[i]).save(folder / "images" / file)
            if there: _as_png(data.masks[i].to(torch.float32)).save(folder / "masks" / file)
            rows.append((f"images/{file}", int(there), data.source[i], f"masks/{file}" if there else ""))
        pd.DataFrame(rows, columns=["file", "presence", "source", "mask"]).to_csv(table, index=False)
    val = 0.3 if name == "ships" else 0.15  # few ports, of which some show no ship
    return {"data.set": "table", "data.table": str(table), "data.val": val, "data.test": 0.25}
