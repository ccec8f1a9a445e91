"""Data by seed, disjoint splits, labels that fit the pictures, and clear errors where data are missing or corrupt."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdcore import data
from kdcore.data import Arrays, benchmarks, dataset, graphs, text


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No data anywhere and no network."""
    import urllib.request

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("KDCORE_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_digits_are_scikit_learns_and_splits_are_disjoint_and_balanced():
    from sklearn.datasets import load_digits

    digits = data.digits(train_size=500, seed=3)
    assert len(digits.train) + len(digits.test) == 1797
    counts = torch.bincount(digits.train.labels)
    assert int(counts.max() - counts.min()) <= 5
    rows = {row.numpy().tobytes() for row in digits.train.inputs}
    assert not any(row.numpy().tobytes() in rows for row in digits.test.inputs)
    total = float(torch.cat([digits.train.inputs, digits.test.inputs]).double().sum()) * 16
    assert total == pytest.approx(load_digits().data.sum(), rel=1e-5)


_MAKERS = [
    lambda seed: data.digits(seed=seed).train,
    lambda seed: data.digit_domain("coloured", seed=seed).train,
    lambda seed: data.digit_domain("fonts", seed=seed).test,
    lambda seed: data.scenes(5, domain="foggy", seed=seed),
]


@pytest.mark.parametrize("make", _MAKERS)
def test_same_seed_same_data_and_another_seed_other_data(make):
    first, again, other = make(1), make(1), make(2)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in first)
    assert not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize("domain", data.DOMAINS)
def test_domains_have_shape_range_and_labels(domain):
    made = data.digit_domain(domain, half=1, size=12)
    for split in (made.train, made.test):
        assert split.inputs.shape[1:] == (3, 12, 12)
        assert 0 <= float(split.inputs.min()) <= float(split.inputs.max()) <= 1
        assert set(split.labels.tolist()) == set(range(10))


def test_domains_differ_from_one_another_and_strength_zero_is_plain():
    plain = data.digit_domain("plain").train.inputs
    pictures = {name: data.digit_domain(name).train.inputs for name in data.DOMAINS if name != "fonts"}
    for name, images in pictures.items():
        if name != "plain":
            assert float((images - plain).abs().mean()) > 0.02, name
    for name in ("inverted", "rotated", "thick"):
        torch.testing.assert_close(data.digit_domain(name, strength=0.0).train.inputs, plain, atol=1e-5, rtol=0)


def test_halves_share_no_digit():
    first, second = (data.digit_domain("plain", half=half) for half in (0, 1))
    seen = {row.numpy().tobytes() for split in (first.train, first.test) for row in split.inputs}
    assert not any(row.numpy().tobytes() in seen for split in (second.train, second.test) for row in split.inputs)


@given(seed=st.integers(0, 50), size=st.sampled_from([32, 48]))
def test_scenes_agree_with_themselves(seed, size):
    made = data.scenes(6, classes=(1, 4, 7), size=size, seed=seed)
    assert made.inputs.shape == (6, 3, size, size)
    assert torch.equal(made.labels > 0, made.instances > 0)
    for scene in range(6):
        for number in range(4):
            mask = made.instances[scene] == number + 1
            label = int(made.box_labels[scene, number])
            assert (label >= 0) == bool(mask.any())
            if label < 0:
                assert float(made.boxes[scene, number].abs().sum()) == 0
                continue
            assert set(made.labels[scene][mask].tolist()) == {label + 1}
            rows, columns = mask.nonzero(as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert made.boxes[scene, number].tolist() == [float(value) for value in tight]


def test_scene_masks_lie_on_bright_ink_and_frequencies_are_kept():
    made = data.scenes(400, classes=(1, 2), frequencies=(4.0, 1.0), seed=0)
    grey = made.inputs.mean(dim=1)
    assert float(grey[made.labels > 0].mean()) > 0.5 > 0.2 > float(grey[made.labels == 0].mean())
    kinds = torch.bincount(made.box_labels[made.box_labels >= 0])
    assert 3 < float(kinds[0] / kinds[1]) < 5.5


def test_scene_domains_share_masks_but_not_looks():
    clean, inverted = (data.scenes(4, domain=name, seed=1) for name in ("clean", "inverted"))
    assert torch.equal(clean.labels, inverted.labels)
    torch.testing.assert_close(clean.inputs, 1 - inverted.inputs)


def test_digits_graph_is_symmetric_without_loops_and_split_by_class():
    graph = data.digits_graph(labels_per_class=4, seed=2)
    pairs = {tuple(edge) for edge in graph.edges.T.tolist()}
    assert all((b, a) in pairs and a != b for a, b in pairs)
    assert len(pairs) == graph.edges.shape[1]
    assert torch.bincount(graph.labels[graph.train]).tolist() == [4] * 10
    nodes = torch.cat([graph.train, graph.validation, graph.test])
    assert torch.equal(nodes.sort().values, torch.arange(1797))


def test_nearest_neighbour_graph_of_points_on_a_line():
    edges = data.nearest_neighbour_graph(torch.tensor([[0.0], [1.0], [3.0], [3.5]]), neighbours=1)
    assert {tuple(edge) for edge in edges.T.tolist()} == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_arrays_index_split_and_refuse():
    arrays = Arrays(inputs=torch.arange(10.0), labels=torch.tensor([0, 1] * 5))
    assert arrays[torch.tensor([3, 1])].inputs.tolist() == [3.0, 1.0]
    assert arrays[arrays.labels == 1].inputs.tolist() == [1.0, 3.0, 5.0, 7.0, 9.0]
    first, second = arrays.split(4, 6, seed=1)
    assert sorted(first.inputs.tolist() + second.inputs.tolist()) == list(range(10))
    assert first.labels.float().mean() == 0.5
    with pytest.raises(ValueError, match="at most 10"):
        arrays.split(8, 8)
    with pytest.raises(ValueError, match="equally long"):
        Arrays(a=torch.zeros(2), b=torch.zeros(3))
    with pytest.raises(AttributeError, match="there are inputs, labels"):
        _ = arrays.missing
    with pytest.raises(AttributeError, match="with_"):
        arrays.inputs = torch.zeros(10)
    copied = pickle.loads(pickle.dumps(arrays))
    assert torch.equal(copied.inputs, arrays.inputs)


def test_shift_moves_whole_images_and_flip_mirrors():
    images = torch.rand(64, 2, 5, 5)
    moved = data.shift(1)(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, [1] * 4)
    for image, result in zip(padded, moved, strict=True):
        windows = [image[:, r : r + 5, c : c + 5] for r in range(3) for c in range(3)]
        assert sum(bool(torch.equal(window, result)) for window in windows) >= 1
    mirrored = data.flip(images, torch.Generator().manual_seed(0))
    changed = [torch.equal(a.flip(-1), b) for a, b in zip(images, mirrored, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(images, mirrored, strict=True)]
    assert all(a != b for a, b in zip(changed, kept, strict=True))
    assert 15 < sum(changed) < 50


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        data.load("minst")
    with pytest.raises(ValueError, match="Did you mean 'rotated'"):
        data.digit_domain("rotatd")
    with pytest.raises(ValueError, match="Did you mean 'foggy'"):
        data.scenes(2, domain="fogy")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "train-images-idx3-ubyte"),
        ("usps", "usps.bz2"),
        ("cifar10", "batches.meta"),
        ("cifar100", "cifar-100-python/train"),
    ],
)
def test_missing_data_without_network_say_what_to_put_where(offline, name, file):
    with pytest.raises(data.MissingDataError, match=rf"(?s){file}.*into {offline / 'here'}.*KDCORE_DATA"):
        data.load(name, offline / "here")


def test_missing_cora_says_what_to_put_where(offline):
    with pytest.raises(data.MissingDataError, match=r"ind.cora.x.*planetoid.*KDCORE_DATA"):
        data.cora()


def test_mnist_is_read_from_disk_and_corruption_is_named(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8), np.array([3, 9], dtype=np.uint8)
    hashes = {}
    for name in benchmarks._MNIST_FILES:
        array = images if "images" in name else labels
        head = (b"\x00\x00\x08" + bytes([array.ndim])) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (raw / name).write_bytes(head + array.tobytes())
        hashes[name] = __import__("hashlib").sha256((raw / name).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"-ubyte is corrupt \(SHA-256"):
        data.mnist(tmp_path)
    monkeypatch.setattr(benchmarks, "_MNIST_FILES", hashes)
    loaded = data.mnist(tmp_path)
    torch.testing.assert_close(loaded.train.inputs, torch.from_numpy(images).unsqueeze(1).float() / 255)
    assert loaded.test.labels.tolist() == [3, 9]


def _image_zip(path, count: int = 2) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in benchmarks.CIFAR10_CLASSES:
            for number in range(count):
                buffer = BytesIO()
                colour = (20 * benchmarks.CIFAR10_CLASSES.index(name), 10, number)
                Image.new("RGB", (32, 32), colour).save(buffer, format="PNG")
                archive.writestr(f"train/{name}/{number:04d}.png", buffer.getvalue())


def test_cifar10_is_read_from_zips_and_from_folders(tmp_path, monkeypatch):
    zips = {}
    for name in benchmarks._CIFAR10_ZIPS:
        _image_zip(tmp_path / name)
        zips[name] = __import__("hashlib").sha256((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="is corrupt"):
        data.cifar10(tmp_path)
    monkeypatch.setattr(benchmarks, "_CIFAR10_ZIPS", zips)
    loaded = data.cifar10(tmp_path)
    assert loaded.train.inputs.shape == (20, 3, 32, 32)
    torch.testing.assert_close((loaded.train.inputs[:, 0, 0, 0] * 255).round().long(), 20 * loaded.train.labels)
    folder = tmp_path / "unpacked"
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / "cifar10-jpeg-train.zip") as archive:
            archive.extractall(folder / "zip")
        (folder / "zip" / "train").rename(folder / part)
    unpacked = data.cifar10(folder)
    assert torch.equal(unpacked.test.inputs, loaded.train.inputs)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_as_torchvision_lays_it_out(tmp_path, monkeypatch, name):
    import hashlib
    import pickle

    from torchvision import datasets

    source = getattr(datasets, name.upper())
    folder, classes = tmp_path / source.base_folder, [f"class {number}" for number in range(3)]
    folder.mkdir()
    label, image = "labels" if name == "cifar10" else "fine_labels", np.arange(3 * 32 * 32) % 256

    def write(file: str, content: dict) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for part in ("train_list", "test_list"):
        rows = {"data": image.astype(np.uint8)[None], label: [2 if part == "train_list" else 1]}
        monkeypatch.setattr(source, part, [(file, write(file, rows)) for file, _ in getattr(source, part)])
    meta = source.meta | {"md5": write(source.meta["filename"], {source.meta["key"]: classes})}
    monkeypatch.setattr(source, "meta", meta)

    loaded = data.load(name, tmp_path)
    assert loaded.train.inputs.shape == (len(source.train_list), 3, 32, 32)
    torch.testing.assert_close(loaded.test.inputs[0], torch.from_numpy(image.reshape(3, 32, 32) / 255).float())
    assert loaded.train.labels.unique().tolist() == [2]
    assert loaded.test.labels.tolist() == [1]
    if name == "cifar100":
        assert loaded.classes == tuple(classes)
    (folder / source.test_list[0][0]).write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"is corrupt \(.*delete it and try again"):
        data.load(name, tmp_path)


def test_cora_reader_builds_the_graph_and_refuses_code(tmp_path, monkeypatch):
    import hashlib

    import scipy.sparse as sp

    folder = tmp_path / "planetoid"
    folder.mkdir()
    features, targets = np.eye(6, dtype=np.float32), np.eye(3)[[0, 1, 2, 0, 1, 2]].astype(np.int32)
    parts = {
        "allx": sp.csr_matrix(features[:4]),
        "ally": targets[:4],
        "x": sp.csr_matrix(features[:3]),
        "y": targets[:3],
        "tx": sp.csr_matrix(features[4:]),
        "ty": targets[4:],
        "graph": {0: [1, 1, 0], 1: [0], 5: [4]},
    }
    for name, value in parts.items():
        content = pickle.dumps(value, protocol=2)
        for new, old in (  # the published files name modules as they were called then
            (b"scipy.sparse._csr", b"scipy.sparse.csr"),
            (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        ):
            content = content.replace(new, old)
        (folder / f"ind.cora.{name}").write_bytes(content)
    (folder / "ind.cora.test.index").write_text("5\n4\n")

    def hashes() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    monkeypatch.setattr(graphs, "_CORA_FILES", hashes())
    graph = data.cora(tmp_path)
    assert graph.labels.tolist() == [0, 1, 2, 0, 2, 1]  # the test rows are stored in the order of the index file
    assert {tuple(edge) for edge in graph.edges.T.tolist()} == {(0, 1), (1, 0), (4, 5), (5, 4)}
    assert graph.test.tolist() == [4, 5]
    (folder / "ind.cora.graph").write_bytes(pickle.dumps(gzip.open))
    monkeypatch.setattr(graphs, "_CORA_FILES", hashes())
    with pytest.raises(ValueError, match=r"refused to unpickle gzip.open"):
        data.cora(tmp_path)


def test_data_folders_come_in_the_order_promised(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCORE_DATA", str(tmp_path / "variable"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_config.yml").write_text("")
    wanted = [tmp_path / "given", tmp_path / "variable", tmp_path / "data"]
    assert dataset.data_folders(tmp_path / "given") == wanted


def test_vocabulary_counts_words_and_orders_them():
    sentences = ["b a b", "A c", "d"]
    assert data.build_vocabulary(sentences) == {"a": 2, "b": 3, "c": 4, "d": 5}
    assert data.build_vocabulary(sentences, min_count=2) == {"a": 2, "b": 3}
    with pytest.raises(ValueError, match="min_count must be"):
        data.build_vocabulary(sentences, min_count=0)


def test_sentences_are_cut_padded_and_unknown_words_marked():
    tokens = data.encode(["one two three", "two", ""], {"one": 2, "two": 3}, length=2)
    assert tokens.tolist() == [[2, 3], [3, data.PADDING], [data.PADDING, data.PADDING]]
    assert data.encode(["nine"], {"one": 2}, 1).item() == data.UNKNOWN
    with pytest.raises(ValueError, match="at least one sentence"):
        data.encode([], {}, 4)
    with pytest.raises(ValueError, match="length must be"):
        data.encode(["one"], {}, 0)


def test_sst2_is_read_from_disk_its_words_come_from_training_only_and_corruption_is_named(tmp_path, monkeypatch):
    (tmp_path / "SST2").mkdir()
    lines = {"train": 'a "good film\t1\na bad film\t0\n', "dev": "good\t1\n", "test": "dreadful film\t0\n"}
    hashes = {}
    for part, content in lines.items():
        file = tmp_path / "SST2" / f"{part}.tsv"
        file.write_text(content, encoding="utf-8")
        hashes[f"SST2/{part}.tsv"] = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"train\.tsv is corrupt \(SHA-256"):
        data.sst2(tmp_path)
    monkeypatch.setattr(text, "_SST2_FILES", hashes)
    loaded = data.sst2(tmp_path, length=3, min_count=1)
    assert loaded.vocabulary == ("", "?", "a", "film", '"good', "bad")
    assert loaded.train.inputs.tolist() == [[2, 4, 3], [2, 5, 3]]
    assert loaded.train.labels.tolist() == [1, 0]
    assert loaded.test.inputs.tolist() == [[data.UNKNOWN, 3, data.PADDING]]
    assert loaded.validation.labels.tolist() == [1]
    assert loaded.read(1) == "a bad film"


def test_missing_sst2_says_what_to_put_where(offline):
    with pytest.raises(data.MissingDataError, match=rf"SST2/train\.tsv.*into {offline / 'here'}.*KDCORE_DATA"):
        data.sst2(offline / "here")


def test_rotations_are_a_group_and_come_image_by_image():
    images = torch.rand(3, 2, 5, 5)
    rotated = data.rotations(images).unflatten(0, (3, 4))
    assert torch.equal(rotated[:, 0], images)
    for turns in range(4):
        assert torch.equal(data.rotations(rotated[:, 1])[turns::4], rotated[:, (turns + 1) % 4])
    with pytest.raises(ValueError, match="must be square"):
        data.rotations(torch.rand(3, 2, 5, 4))


def test_long_tail_keeps_exponentially_fewer_of_later_classes_and_says_what_it_lacks():
    rows = Arrays(inputs=torch.arange(400.0), labels=torch.arange(4).repeat(100))
    tail = rows.long_tailed(largest=80, ratio=8, seed=3)
    assert tail.labels.bincount().tolist() == [80, 40, 20, 10]
    assert (tail.inputs % 4 == tail.labels).all()  # rows stay together
    assert len(tail.inputs.unique()) == len(tail)
    assert not torch.equal(tail.inputs, rows.long_tailed(largest=80, ratio=8, seed=4).inputs)
    assert rows.long_tailed(largest=5, ratio=1).labels.bincount().tolist() == [5] * 4
    for largest, ratio, message in [(101, 2, "class 0 has 100"), (4, 8, "class 3 .* 0 are"), (4, 0.5, "at least 1")]:
        with pytest.raises(ValueError, match=message):
            rows.long_tailed(largest, ratio)
    with pytest.raises(ValueError, match="needs labels"):
        Arrays(inputs=torch.zeros(3)).long_tailed(1, 1)
