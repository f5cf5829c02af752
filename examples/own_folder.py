"""Learn codes of your own images, one folder a class, and find images by them.

    photos/train/<class>/….jpg      the database
    photos/test/<class>/….jpg       the queries, never trained on

    python examples/own_folder.py photos --output runs/photos

Without a folder it draws one: six fabrics, told apart by their motif alone. The small backbone and the few epochs suit
those; for photographs take a ResNet with weights and the published settings:

    agmh-fast train --dataset folder --root photos --weights IMAGENET1K_V2 --output runs/photos
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import agmh_fast as af

SIZE = 48
MOTIFS = ("crosses", "discs", "rings", "squares", "stripes", "triangles")


def draw_fabrics(root, each):
    """Folders train and test of one folder a motif, with `each` images for training and half as many to ask for."""
    rng = np.random.default_rng(0)
    for split, count in (("train", each), ("test", each // 2)):
        for motif in MOTIFS:
            folder = Path(root, split, motif)
            folder.mkdir(parents=True)
            for number in range(count):
                fabric(rng, motif).save(folder / f"{number:02}.jpg", quality=90)


def fabric(rng, motif):
    """An image of a cloth printed with a motif, at some angle and size, in some colours."""
    dark, light = (tuple(int(level) for level in rng.integers(*levels, 3)) for levels in ((0, 100), (130, 256)))
    cloth = Image.new("RGB", (4 * SIZE, 4 * SIZE), dark)
    draw = ImageDraw.Draw(cloth)
    step = int(rng.integers(22, 32))
    size, half = int(0.7 * step), step // 3
    for x in range(0, 4 * SIZE, step):
        for y in range(0, 4 * SIZE, step):
            box = (x, y, x + size, y + size)
            if motif == "crosses":
                draw.line((x, y, x + size, y + size), light, half)
                draw.line((x, y + size, x + size, y), light, half)
            elif motif == "discs":
                draw.ellipse(box, light)
            elif motif == "rings":
                draw.ellipse(box, outline=light, width=half // 2)
            elif motif == "squares":
                draw.rectangle(box, light)
            elif motif == "stripes":
                draw.rectangle((x, 0, x + half, 4 * SIZE), light)
            else:
                draw.polygon((x, y + size, x + size, y + size, x + size // 2, y), light)
    turned = cloth.rotate(rng.uniform(0, 360), resample=Image.Resampling.BILINEAR)
    return turned.crop((SIZE, SIZE, 3 * SIZE, 3 * SIZE)).resize((SIZE, SIZE))


def main(root, output):
    data = af.data.load("folder", root, size=SIZE)
    print(f"{len(data.class_names)} classes, {len(data.database)} images in the database, {len(data.query)} queries")

    config = af.train.TrainConfig(
        dataset="folder",
        root=root,
        output=output,
        bits=24,
        backbone="small",
        num_descriptors=4,
        descriptor_dim=32,
        num_heads=2,
        memory_size=16,
        max_iter=6,
        max_epoch=3,
        batch_size=8,
        lr=0.03,
        gamma=5.0,  # published for databases of thousands: 200
        schedule="cosine",
        select="last",
        device="cpu",
    )
    result = af.train.fit(config, data)
    print(f"mAP {result.map:.3f} after {result.seconds:.0f} s; chance is {1 / len(data.class_names):.3f}")

    # As a program that serves searches would begin: the model and the codes of the database from the run's folder.
    model = af.train.load_run(output, which="final")
    index = af.HammingIndex(bits=model.bits)
    index.add(af.train.load_codes(output, which="final"))
    queries = af.train.encode_set(model, data.query)
    found = index.search(queries, k=5)
    names = np.array(data.class_names)
    right = names[data.database.labels[found.ids]] == names[data.query.labels][:, None]
    print(f"of the 5 nearest, {right.mean():.0%} are of the query's class; for the first query:")
    for item, distance in zip(found.ids[0], found.distances[0], strict=True):
        print(f"  {data.database.paths[item]}  {distance} bits")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", help="folder with train and test; without one, fabrics are drawn")
    parser.add_argument("--images", type=int, default=16, help="fabrics a motif that are drawn")
    parser.add_argument("--output", help="folder for the run; without one it is not kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.root is None:
            options.root = Path(scratch, "fabrics")
            draw_fabrics(options.root, options.images)
        main(options.root, options.output or Path(scratch, "run"))
