"""The loaders, on small files in the published formats, and the few-shot sets and
episodes.
"""

import gzip
import pickle
import struct
from itertools import islice
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from fixedpoint_models.data import (
    TEST_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    DataError,
    Episodes,
    FewShot,
    affine_warps,
    celeba,
    cifar10,
    episode,
    glyphs,
    gray_images,
    mnist,
    official_runs,
    omniglot,
    patches_of,
    photographs,
    split_alphabets,
    split_classes,
    turned,
)
from fixedpoint_models.data import fonts as fonts_module
from fixedpoint_models.data import patches as patches_module

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 1], dtype=np.uint8)
IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array, magic=None):
    """An array of bytes in the IDX format."""
    magic = 0x800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    (tmp_path / IMAGES_FILE).write_bytes(idx(PIXELS))
    (tmp_path / LABELS_FILE).write_bytes(idx(LABELS))
    return tmp_path


def test_mnist_is_read_as_it_was_written(mnist_folder):
    images, labels = mnist(mnist_folder, "train")
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(np.rint(images * 255), PIXELS)
    np.testing.assert_array_equal(labels, LABELS)
    assert images.min() >= 0.0
    assert images.max() <= 1.0


def test_mnist_is_read_compressed_and_its_splits_are_two(tmp_path):
    for prefix, part in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        for name, array in (
            ("images-idx3", PIXELS[part]),
            ("labels-idx1", LABELS[part]),
        ):
            (tmp_path / f"{prefix}-{name}-ubyte.gz").write_bytes(
                gzip.compress(idx(array))
            )
    np.testing.assert_array_equal(mnist(str(tmp_path), "train")[1], LABELS[:3])
    np.testing.assert_array_equal(mnist(tmp_path, "test")[1], LABELS[3:])


@pytest.mark.parametrize(
    ("split", "part"),
    [
        ("train[:2]", slice(0, 2)),
        ("train[2:]", slice(2, 5)),
        ("train[1:-1]", slice(1, 4)),
    ],
)
def test_some_images_of_a_split(split, part, mnist_folder):
    images, labels = mnist(mnist_folder, split)
    np.testing.assert_array_equal(labels, LABELS[part])
    np.testing.assert_array_equal(np.rint(images * 255), PIXELS[part])


@pytest.mark.parametrize(
    ("split", "error"),
    [("train[5:]", DataError), ("train[2", ValueError), ("train[a:]", ValueError)],
)
def test_splits_that_are_none_are_named(split, error, mnist_folder):
    with pytest.raises(error, match=r"train\["):
        mnist(mnist_folder, split)


def test_relative_paths_are_looked_up_in_the_folder_of_data(mnist_folder, monkeypatch):
    monkeypatch.setenv("FIXEDPOINT_DATA", str(mnist_folder.parent))
    np.testing.assert_array_equal(mnist(mnist_folder.name, "train")[1], LABELS)
    with pytest.raises(DataError, match=r"nowhere: no such folder$"):
        mnist("nowhere", "train")
    monkeypatch.delenv("FIXEDPOINT_DATA")
    with pytest.raises(DataError, match="FIXEDPOINT_DATA is not set"):
        mnist("nowhere", "train")


BAD_MNIST = {
    "cut header": (IMAGES_FILE, idx(PIXELS)[:10], "header of 16 bytes, got 10"),
    "empty": (LABELS_FILE, b"", "header of 8 bytes, got 0"),
    "cut": (IMAGES_FILE, idx(PIXELS)[:-1], r"expected 3920 bytes.*got 3919"),
    "too long": (IMAGES_FILE, idx(PIXELS) + b"x", r"expected 3920 bytes.*got more"),
    "magic": (IMAGES_FILE, idx(PIXELS, magic=2049), "magic number 2051, got 2049"),
    "other set": (IMAGES_FILE, idx(PIXELS[:, :20, :20]), "28×28 pixels, got 20×20"),
    "no images": (IMAGES_FILE, idx(PIXELS[:0]), "sizes of 1 or more"),
    "fewer labels": (LABELS_FILE, idx(LABELS[:4]), "expected 5 labels.*got 4"),
    "labels of letters": (LABELS_FILE, idx(LABELS + 5), "from 0 to 9, got 14"),
    "cut gzip": (
        f"{IMAGES_FILE}.gz",
        gzip.compress(idx(PIXELS))[:-20],
        "cannot be read",
    ),
    "not gzip": (f"{IMAGES_FILE}.gz", idx(PIXELS), "cannot be read"),
}


@pytest.mark.parametrize("bad", BAD_MNIST.values(), ids=BAD_MNIST)
def test_bad_idx_files_are_named(mnist_folder, bad):
    name, content, message = bad
    (mnist_folder / name.removesuffix(".gz")).unlink()
    (mnist_folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        mnist(mnist_folder, "train")


@pytest.mark.parametrize("read", [mnist, cifar10])
def test_missing_files_and_splits_are_named(read, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path, "test")
    with pytest.raises(ValueError, match="'train' or 'test', got 'validation'"):
        read(tmp_path, "validation")


def cifar_records(number, seed):
    generator = np.random.default_rng(seed)
    records = generator.integers(0, 256, (number, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar_is_read_as_it_was_written(tmp_path, inner):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    batches = [cifar_records(number + 1, number) for number in range(5)]
    for number, records in enumerate(batches, start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(records.tobytes())
    (folder / "test_batch.bin").write_bytes(cifar_records(2, 9).tobytes())
    images, labels = cifar10(tmp_path, "train")
    expected = np.concatenate(batches)
    np.testing.assert_array_equal(labels, expected[:, 0])
    np.testing.assert_array_equal(
        np.rint(images * 255).reshape(len(images), -1), expected[:, 1:]
    )
    # Red comes first, and rows before columns.
    np.testing.assert_allclose(images[0, 0, 0, 1] * 255, expected[0, 2], rtol=1e-6)
    np.testing.assert_allclose(
        images[0, 1, 2, 0] * 255, expected[0, 1 + 1024 + 64], rtol=1e-6
    )
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    assert cifar10(tmp_path, "test")[0].shape == (2, 3, 32, 32)


def out_of_range():
    records = cifar_records(2, 0)
    records[1, 0] = 10
    return records.tobytes()


BAD_CIFAR = {
    "cut": (
        cifar_records(2, 0).tobytes()[:-1],
        "records of 3073 bytes, got 6145 bytes",
    ),
    "too long": (
        cifar_records(2, 0).tobytes() + b"x",
        "records of 3073 bytes, got 6147 bytes",
    ),
    "empty": (b"", "records of 3073 bytes, got 0 bytes"),
    "label": (out_of_range(), "labels from 0 to 9, got 10"),
}


@pytest.mark.parametrize("bad", BAD_CIFAR.values(), ids=BAD_CIFAR)
def test_bad_cifar_files_are_named(tmp_path, bad):
    (tmp_path / "test_batch.bin").write_bytes(bad[0])
    with pytest.raises(DataError, match=f"test_batch.bin: .*{bad[1]}"):
        cifar10(tmp_path, "test")


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_pickled_cifar_is_refused_unopened(tmp_path, inner):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    (folder / "test_batch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        DataError, match=r"version for Python.*binary version is needed"
    ):
        cifar10(tmp_path, "test")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("inner", ["", "img_align_celeba"])
def test_celeba_is_cropped_in_the_middle_and_resized(tmp_path, inner):
    photo = np.zeros((218, 178, 3), np.uint8)
    photo[20:198, :, 1] = (
        255  # the square in the middle is green, and what is cut is not
    )
    photo[:20, :, 0] = photo[198:, :, 0] = 255
    for number in range(3):
        save(tmp_path / inner / f"{number:06}.png", photo // (number + 1))
    (tmp_path / inner / "list.txt").write_text("not an image")
    faces = celeba(tmp_path, size=16)
    assert (faces.shape, faces.dtype) == ((3, 3, 16, 16), np.float32)
    # The filter looks a little beyond the edge.
    np.testing.assert_array_equal(faces[0, 1, 1:-1], 1.0)
    np.testing.assert_array_equal(faces[0, [0, 2], 1:-1], 0.0)
    np.testing.assert_allclose(faces[0, 1], 1.0, atol=0.1)
    np.testing.assert_allclose(faces[1, :, 8, 8], [0.0, 127 / 255, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(celeba(tmp_path, size=16, limit=2), faces[:2])


def test_celeba_in_grey_gets_three_channels(tmp_path):
    save(tmp_path / "gray.png", np.full((40, 30), 51, np.uint8))
    np.testing.assert_allclose(celeba(tmp_path, size=8), 0.2, rtol=1e-6)


def test_bad_folders_of_faces_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        celeba(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image files"):
        celeba(tmp_path)
    (tmp_path / "000001.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000001\.jpg: not an image"):
        celeba(tmp_path)
    for settings in ({"size": 0}, {"limit": 0}, {"limit": -1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            celeba(tmp_path, **settings)


def write_characters(folder, examples=3):
    """Black strokes on white: vertical in the first half of the classes, else
    horizontal.
    """
    for alphabet in ("Greek", "Korean"):
        for number in (1, 2):
            for example in range(examples):
                paper = np.ones((105, 105), bool)
                paper[
                    (slice(10, 95), slice(40, 60))[:: 1 if alphabet == "Greek" else -1]
                ] = False
                paper[:example] = False
                save(
                    folder / alphabet / f"character{number:02}" / f"{example:04}.png",
                    paper,
                )


@pytest.mark.parametrize("inner", ["", "images_background"])
def test_omniglot_is_read_with_ink_of_one(tmp_path, inner):
    write_characters(tmp_path / inner)
    few_shot = omniglot(tmp_path)
    assert few_shot.images.shape == (4, 3, 28, 28)
    assert few_shot.images.dtype == np.float32
    assert few_shot.names == tuple(
        f"{alphabet}/character0{number}"
        for alphabet in ("Greek", "Korean")
        for number in (1, 2)
    )
    np.testing.assert_allclose(few_shot.images[0, 0, 14, 12:15], 1.0)
    np.testing.assert_allclose(few_shot.images[:, 0, :, 0], 0.0)
    # Upright, and lying; bytes are rounded between the two passes of the filter.
    np.testing.assert_allclose(
        few_shot.images[0, 0], few_shot.images[2, 0].T, atol=0.05
    )
    assert omniglot(tmp_path, side=20).images.shape == (4, 3, 20, 20)


def test_bad_folders_of_characters_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        omniglot(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folders Alphabet/characterNN"):
        omniglot(tmp_path)
    write_characters(tmp_path)
    (tmp_path / "Korean" / "character02" / "0000.png").unlink()
    with pytest.raises(DataError, match=r"character02: expected 3 examples.*got 2"):
        omniglot(tmp_path)
    (tmp_path / "Korean" / "character02" / "0000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0000\.png: not an image"):
        omniglot(tmp_path)
    (tmp_path / "Korean" / "character03").mkdir()
    with pytest.raises(DataError, match="character03: no image files"):
        omniglot(tmp_path)


def zipped(folder, archive):
    with ZipFile(archive, "w") as stream:
        for file in sorted(folder.rglob("*.*")):
            stream.write(file, file.relative_to(folder.parent))
    return archive


def test_omniglot_is_read_from_archives_and_folders_of_folders(tmp_path):
    folder = tmp_path / "characters"
    write_characters(folder / "images_background_small1")
    expected = omniglot(folder / "images_background_small1", side=8)
    archive = zipped(folder / "images_background_small1", tmp_path / "small1.zip")
    for source in (folder, archive, [archive, folder]):  # the last has all of it twice
        found = omniglot(source, side=8)
        assert found.names == expected.names
        np.testing.assert_array_equal(found.images, expected.images)
    (tmp_path / "other.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        omniglot([archive, tmp_path / "other.zip"])


def test_alphabets_are_held_out_whole(tmp_path):
    write_characters(tmp_path)
    train, test = split_alphabets(omniglot(tmp_path, side=8), ["Korean"])
    assert train.names == ("Greek/character01", "Greek/character02")
    assert test.names == ("Korean/character01", "Korean/character02")
    for held_out, message in ((["Runes"], "Runes"), (["Greek", "Korean"], "not all")):
        with pytest.raises(ValueError, match=message):
            split_alphabets(omniglot(tmp_path, side=8), held_out)


def test_turned_classes_are_further_ones(tmp_path):
    write_characters(tmp_path)
    few_shot = omniglot(tmp_path, side=8)
    more = turned(few_shot)
    assert len(more) == 16
    assert len(set(more.names)) == 16
    for name, quarters in (("Greek/character02", 0), ("Greek/character02/270", 3)):
        found = more.images[more.names.index(name)]
        np.testing.assert_array_equal(
            found[2], np.rot90(few_shot.images[1, 2], quarters)
        )


def write_run(folder):
    """Three classes, a bar at a height of its own each, and one query of each, in
    another order.
    """
    lines = []
    for number, asked in enumerate((2, 0, 1)):
        for name, height in (
            (f"training/class{number}", number),
            (f"test/item{number}", asked),
        ):
            paper = np.ones((30, 30), bool)
            paper[10 * height : 10 * height + 5] = False
            save(folder / "run01" / f"{name}.png", paper)
        lines.append(f"run01/test/item{number}.png run01/training/class{asked}.png")
    (folder / "run01" / "class_labels.txt").write_text("\n".join(lines))


def test_official_runs_are_read_as_their_labels_say(tmp_path):
    write_run(tmp_path / "all_runs")
    archive = tmp_path / "all_runs.zip"
    with ZipFile(archive, "w") as stream:
        for file in (tmp_path / "all_runs").rglob("*.*"):
            stream.write(file, file.relative_to(tmp_path / "all_runs"))
    for source in (tmp_path / "all_runs", archive):
        (run,) = official_runs(source, side=30)
        np.testing.assert_array_equal(run.query_labels, [2, 0, 1])
        np.testing.assert_array_equal(run.support_labels, [0, 1, 2])
        np.testing.assert_array_equal(run.query, run.support[run.query_labels])


def test_bad_runs_are_named(tmp_path):
    with pytest.raises(DataError, match="no folders runNN"):
        official_runs(tmp_path)
    write_run(tmp_path)
    labels = tmp_path / "run01" / "class_labels.txt"
    for text in ("run01/test/item0.png", "run01/test/item9.png run01/test/item0.png"):
        labels.write_text(text)
        with pytest.raises(DataError, match=r"class_labels\.txt|item9"):
            official_runs(tmp_path)


def test_photographs_of_a_folder_are_cut_whatever_their_size(tmp_path):
    for name, shape in (("a", (20, 32)), ("b", (16, 17)), ("c", (9, 40))):
        save(tmp_path / f"{name}.png", RNG.integers(0, 256, shape, dtype=np.uint8))
    images = gray_images(tmp_path)
    assert [image.shape for image in images] == [(20, 32), (16, 17), (9, 40)]
    cut = patches_of(images, size=16, stride=4)
    assert cut.shape == (2 * 5 + 1, 16, 16)
    np.testing.assert_array_equal(cut[1], images[0][:16, 4:20])
    with pytest.raises(DataError, match="64×64"):
        patches_of(images, size=64)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        gray_images(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def patches():
    return photographs()


def test_photographs_are_patches_from_zero_to_one(patches):
    for part, least in zip(patches, (400, 150), strict=True):
        assert part.dtype == np.float32
        assert part.shape[1:] == (64, 64)
        assert len(part) >= least
        assert part.min() >= 0.0
        assert part.max() <= 1.0
        assert part.std(axis=(1, 2)).min() > 0.03


def rows_in(part):
    return {row.tobytes() for row in part.reshape(len(part), -1)}


def test_no_photograph_is_cut_for_training_and_for_testing(monkeypatch):
    assert not set(TRAIN_PHOTOGRAPHS) & set(TEST_PHOTOGRAPHS)
    # Each photograph is painted with a value of its own, which its patches then show.
    values = {
        name: i / 100 for i, name in enumerate(TRAIN_PHOTOGRAPHS + TEST_PHOTOGRAPHS)
    }

    def painted(name):
        return np.tile(np.array([0.5, values[name]], np.float32), (64, 64))

    monkeypatch.setattr(patches_module, "_photograph", painted)
    monkeypatch.setattr(patches_module, "SMOOTH", -1.0)
    for part, names in zip(
        photographs(32), (TRAIN_PHOTOGRAPHS, TEST_PHOTOGRAPHS), strict=True
    ):
        shown = {round(100 * float(value)) for value in part[:, 0, 1]}
        assert shown == {round(100 * values[name]) for name in names}


def test_no_patch_is_in_both_parts_nor_twice_in_one(patches):
    train, test = (rows_in(part) for part in patches)
    assert not train & test
    assert (len(train), len(test)) == tuple(len(part) for part in patches)


def test_the_order_of_patches_is_of_the_seed_and_the_split_is_not(patches):
    for part, again, other in zip(
        patches, photographs(), photographs(seed=1), strict=True
    ):
        np.testing.assert_array_equal(part, again)
        assert not np.array_equal(part, other)
        assert rows_in(part) == rows_in(other)


def test_patches_are_limited_and_overlap_with_a_stride(patches):
    limited = photographs(limit=7)
    for part, few in zip(patches, limited, strict=True):
        np.testing.assert_array_equal(part[:7], few)
    assert len(photographs(stride=32)[0]) > 3 * len(patches[0])
    for settings in ({"size": 0}, {"stride": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            photographs(**settings)
    with pytest.raises(DataError, match="5000×5000"):
        photographs(size=5000)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("absent_package", "a.png"), "a.png: absent_package is not installed"),
        (("skimage.data", "absent.png"), r"absent.png: not in skimage\.data"),
    ],
)
def test_photographs_that_are_not_installed_are_named(monkeypatch, entry, message):
    monkeypatch.setitem(patches_module._FILES, "brick", entry)
    with pytest.raises(DataError, match=message):
        photographs()


@pytest.fixture(scope="module")
def characters():
    return glyphs()


def test_glyphs_are_hundreds_of_classes_of_many_alphabets(characters):
    assert characters.images.dtype == np.float32
    assert characters.images.shape[1:] == (12, 28, 28)
    assert len(characters) > 400
    assert len(set(characters.names)) == len(characters)
    assert characters.images.min() >= 0.0
    assert characters.images.max() == 1.0
    for letters in ("ABC", "ΓΔΞ", "ЖФЯ", "ԱԲԳ", "აბგ", "123"):
        assert set(letters) <= set(characters.names), letters


def test_no_two_classes_of_glyphs_look_alike(characters):
    means = (
        characters.images.mean(axis=1).reshape(len(characters), -1).astype(np.float64)
    )
    square = (means**2).sum(axis=1)
    distances = square[:, None] + square - 2.0 * means @ means.T
    np.fill_diagonal(distances, np.inf)
    assert np.sqrt(distances.min() / means.shape[1]) > 0.0999
    # Latin, Greek and Cyrillic.
    for same in ("AΑА", "HΗН", "OΟО", "PΡР", "oοо"):
        assert len(set(same) & set(characters.names)) <= 1, same


def test_every_glyph_is_drawn_by_every_font_and_by_each_in_its_own_way(characters):
    ink = characters.images.sum(axis=(2, 3))
    assert ink.min() > 10.0
    for images in characters.images:
        assert len(rows_in(images)) == len(images)


def test_a_character_that_a_font_lacks_is_noticed():
    font = fonts_module._font("DejaVuSans")
    blank = fonts_module._drawn(fonts_module.MISSING, font)

    def rendered(character):
        return fonts_module._renderings(character, [font], [blank], 28)

    assert rendered("A").shape == (1, 28, 28)
    assert rendered("\u0905") is None  # Devanagari, for which a box is drawn
    assert rendered("\U0001f9ff") is None
    assert rendered(" ") is None


def test_a_missing_font_is_named(monkeypatch):
    with pytest.raises(DataError, match=r"Absent\.ttf: no such font"):
        fonts_module._font("Absent")


def test_the_order_of_glyphs_is_of_the_seed(characters):
    again, other = glyphs(), glyphs(seed=1)
    assert again.names == characters.names != other.names
    np.testing.assert_array_equal(again.images, characters.images)
    assert set(other.names) == set(characters.names)
    index = other.names.index(characters.names[0])
    np.testing.assert_array_equal(other.images[index], characters.images[0])
    again.images[:] = 0.0  # a caller's copy is its own
    np.testing.assert_array_equal(glyphs().images, characters.images)


def numbered(classes=8, examples=6, side=5):
    """Images whose value tells their class and example."""
    values = np.arange(1, classes * examples + 1, dtype=np.float32) / (
        classes * examples
    )
    images = np.ones((classes, examples, side, side), np.float32)
    return FewShot(
        images * values.reshape(classes, examples, 1, 1),
        tuple(str(i) for i in range(classes)),
    )


def test_a_few_shot_set_checks_its_shape():
    with pytest.raises(ValueError, match="images must be"):
        FewShot(np.zeros((3, 5, 5), np.float32), ("a", "b", "c"))
    with pytest.raises(ValueError, match="names must be 3, got 2"):
        FewShot(np.zeros((3, 2, 5, 5), np.float32), ("a", "b"))


@pytest.mark.parametrize(
    ("fraction", "train"), [(0.5, 4), (0.75, 6), (0.01, 1), (0.99, 7)]
)
def test_classes_are_split_without_a_rest_and_without_an_overlap(fraction, train):
    few_shot = numbered()
    parts = split_classes(few_shot, fraction, seed=0)
    assert [len(part) for part in parts] == [train, 8 - train]
    assert sorted(parts[0].names + parts[1].names) == sorted(few_shot.names)
    for part in parts:
        for name, images in zip(part.names, part.images, strict=True):
            np.testing.assert_array_equal(images, few_shot.images[int(name)])
    again, other = (
        split_classes(few_shot, fraction, seed=seed)[0].names for seed in (0, 4)
    )
    assert again == parts[0].names != other


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5])
def test_fractions_that_leave_no_class_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        split_classes(numbered(), fraction, seed=0)


def told(images, few_shot):
    """The class and the example of unwarped images of `numbered`."""
    numbers = np.rint(
        images[:, 0, 0] * few_shot.images.shape[0] * few_shot.examples
    ).astype(int)
    return np.divmod(numbers - 1, few_shot.examples)


def test_labels_are_of_the_classes_and_support_and_query_share_no_example():
    few_shot = numbered()
    for seed in range(20):
        drawn = episode(few_shot, 4, 2, 3, np.random.default_rng(seed), warp=False)
        (classes, examples), (query_classes, query_examples) = (
            told(images, few_shot) for images in (drawn.support, drawn.query)
        )
        np.testing.assert_array_equal(drawn.support_labels, np.arange(4).repeat(2))
        np.testing.assert_array_equal(drawn.query_labels, np.arange(4).repeat(3))
        meant = classes[::2]
        assert len(set(meant)) == 4
        np.testing.assert_array_equal(classes, meant[drawn.support_labels])
        np.testing.assert_array_equal(query_classes, meant[drawn.query_labels])
        shown = [*zip(classes, examples, strict=True)]
        asked = [*zip(query_classes, query_examples, strict=True)]
        assert len(set(shown + asked)) == len(shown) + len(asked)


def test_all_classes_and_examples_are_drawn():
    few_shot, generator = numbered(), np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        drawn = episode(few_shot, 2, 1, 1, generator, warp=False)
        seen |= {*zip(*told(drawn.query, few_shot), strict=True)}
    assert len(seen) == 8 * 6


def test_with_warps_more_queries_than_examples_are_all_different(characters):
    drawn = episode(characters, 5, 4, 30, np.random.default_rng(0))
    assert drawn.query.shape == (150, 28, 28)
    assert drawn.query.dtype == drawn.support.dtype == np.float32
    assert len(rows_in(drawn.support) | rows_in(drawn.query)) == 20 + 150
    assert (drawn.support_labels.dtype, drawn.query_labels.dtype) == (
        np.int64,
        np.int64,
    )


def test_warped_queries_are_told_by_their_nearest_support(characters):
    """Of five classes far more than one in five, or warps would leave nothing to learn
    from.
    """
    right = []
    for drawn in islice(Episodes(characters, 5, 5, 5, seed=0), 20):
        support, query = (
            part.reshape(len(part), -1) for part in (drawn.support, drawn.query)
        )
        nearest = ((query[:, None] - support) ** 2).sum(axis=-1).argmin(axis=1)
        right.append(drawn.support_labels[nearest] == drawn.query_labels)
    assert 0.6 < np.mean(right) < 0.999


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_episodes_are_those_of_the_seed(characters):
    first = [*islice(Episodes(characters, 3, 1, 2, seed=5), 3)]
    again = [*islice(Episodes(characters, 3, 1, 2, seed=5), 3)]
    other = [*islice(Episodes(characters, 3, 1, 2, seed=6), 3)]
    assert all(same(*pair) for pair in zip(first, again, strict=True))
    assert not any(same(*pair) for pair in zip(first, other, strict=True))
    assert not same(first[0], first[1])
    generator = np.random.default_rng(5)
    assert same(first[0], episode(characters, 3, 1, 2, generator))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 9}, "ways must be at most the 8 classes, got 9"),
        ({"ways": 0}, "ways must be an integer"),
        ({"shots": 0}, "shots must be an integer"),
        ({"queries": 0}, "queries must be an integer"),
        ({"shots": 6}, "need 7 examples or more"),
        ({"shots": 4, "queries": 3, "warp": False}, "need 7 examples or more"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(settings, message):
    settings = {"ways": 2, "shots": 1, "queries": 1} | settings
    with pytest.raises(ValueError, match=message):
        episode(numbered(), **settings, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        Episodes(numbered(), **settings)


def disc(side=41, radius=10):
    rows, columns = np.mgrid[:side, :side] - side // 2
    return (rows**2 + columns**2 <= radius**2).astype(np.float32)


def test_warps_leave_values_in_range_and_the_callers_images_alone(characters):
    images = characters.images[:10, 0]
    before = images.copy()
    warped = affine_warps(images, np.random.default_rng(0))
    np.testing.assert_array_equal(images, before)
    assert warped.min() >= 0.0
    assert warped.max() <= 1.0
    assert not np.array_equal(warped, images)


def test_warps_move_the_middle_by_the_shift_alone():
    """Rotation, stretch and shear are about the middle of the image."""
    warped = affine_warps(np.stack([disc()] * 200), np.random.default_rng(0))
    mass = warped.sum(axis=(1, 2))
    grid = np.arange(41) - 20
    middles = np.stack([(warped.sum(axis=axis) @ grid) / mass for axis in (2, 1)])
    assert np.abs(middles).max() < 0.08 * 41 + 0.1
    assert np.abs(middles).max() > 0.06 * 41
    assert np.abs(middles.mean(axis=1)).max() < 0.3
    ratio = mass / disc().sum()
    assert np.exp(-0.32) < ratio.min() < 0.85
    assert 1.2 < ratio.max() < np.exp(0.32)
