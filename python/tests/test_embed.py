"""Images in, features out: every kind of image, equal to the command's Parquet to the bit."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import CHECKPOINT, N, command
from PIL import Image

import macula


def test_embed_equals_the_command_s_parquet_to_the_bit(onnx, photos, paths, tmp_path):
    done = command("extract", "--model", onnx, "--data", photos, "--out", tmp_path / "f", "--output", "cls,patch")
    assert done.returncode == 0, done.stderr
    frame = pl.concat([pl.read_parquet(part) for part in sorted((tmp_path / "f").glob("part-*.parquet"))])
    model = macula.load(onnx, outputs=["cls", "patch"])
    found = model.embed(paths)
    assert found["cls"].dtype == np.float32 and found["cls"].shape == (N, model.dim)
    assert [str(photos / path) for path in frame["path"]] == paths
    for name, values in found.items():
        written = frame[name].to_numpy().reshape(values.shape)
        assert values.tobytes() == np.ascontiguousarray(written).tobytes(), name


def test_a_checkpoint_embeds_as_the_command_extracts(photos, paths, tmp_path):
    done = command("extract", "--model", CHECKPOINT, "--data", photos, "--out", tmp_path / "f", "--threads", 2)
    assert done.returncode == 0, done.stderr
    written = macula.FeatureFolder(tmp_path / "f").to_numpy()
    assert np.array_equal(macula.load(CHECKPOINT, threads=2).embed(paths), written)


def test_every_kind_of_image_gives_the_same(model, paths):
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    expected = model.embed(paths)
    for images in (
        [Path(path) for path in paths],
        [Path(path).read_bytes() for path in paths],
        [bytearray(Path(path).read_bytes()) for path in paths],
        [Image.open(path) for path in paths],
        pixels,
        [np.asfortranarray(one) for one in pixels],
        np.stack(pixels),
        (path for path in paths),
        [paths[0], Path(paths[1]).read_bytes(), pixels[2], *paths[3:]],
    ):
        assert np.array_equal(model.embed(images), expected)
    assert np.array_equal(model.embed(paths[0]), expected[:1])
    assert np.array_equal(model.embed(Image.open(paths[0])), expected[:1])
    assert np.array_equal(model.embed(pixels[0]), expected[:1])
    assert model.embed([]).shape == (0, model.dim)


def test_grey_and_alpha_are_read_as_rgb(model):
    grey = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    three = np.repeat(grey[:, :, None], 3, axis=2)
    expected = model.embed(three)
    four = np.concatenate([three, np.full((40, 50, 1), 7, np.uint8)], axis=2)
    for image in (grey, grey[:, :, None], four, Image.fromarray(grey)):
        assert np.array_equal(model.embed(image), expected)


def test_network_input_goes_to_the_model_as_it_is(model, paths):
    values = model.pixel_values(paths[:5])
    assert values.shape == (5, 3, *model.image_size) and values.dtype == np.float32
    assert np.array_equal(model.embed(values), model.embed(paths[:5]))
    assert np.array_equal(model.embed(list(values)), model.embed(paths[:5]))
    with pytest.raises(macula.InputError, match=r"expected network input \[n, 3, "):
        model.embed(values[:, :, 1:])


def test_torch_tensors(model, paths):
    torch = pytest.importorskip("torch")
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    tensors = [torch.from_numpy(one.copy()).permute(2, 0, 1) for one in pixels]
    expected = model.embed(paths)
    assert np.array_equal(model.embed(tensors), expected)
    assert np.array_equal(model.embed(torch.stack(tensors)), expected)
    assert np.array_equal(model.embed(torch.from_numpy(model.pixel_values(paths))), expected)


def test_batches_change_only_the_last_bits(model, paths):
    assert np.allclose(model.embed(paths, batch_size=1), model.embed(paths, batch_size=7), atol=1e-5)


def test_facts(model, onnx):
    assert model.outputs == {"cls": (model.dim,)}
    assert model.patch_size == 14 and model.image_size[0] % 14 == 0
    assert model.description["kind"] == "onnx" and len(model.preprocess["mean"]) == 3
    both = model.with_outputs(["cls", "patch"])
    patches = (model.image_size[0] // 14) * (model.image_size[1] // 14)
    assert both.outputs == {"cls": (model.dim,), "patch": (patches, model.dim)}
    assert onnx in repr(model) and "<table>" in model._repr_html_()


def test_normalised_features_have_length_one(onnx, paths):
    lengths = np.linalg.norm(macula.load(onnx, normalize=True).embed(paths), axis=1)
    assert np.allclose(lengths, 1, atol=1e-6)


def test_options_reach_the_preprocessing(onnx):
    model = macula.load(onnx, resize=(40, 42), interpolation="bilinear", mean=[0.5, 0.5, 0.5])
    assert model.preprocess["resize"] == [40, 42]
    assert model.preprocess["interpolation"] == "bilinear" and model.preprocess["mean"] == [0.5] * 3


def test_a_pickled_model_is_opened_by_its_path(model, paths):
    again = pickle.loads(pickle.dumps(model))
    assert again.path == model.path
    assert np.array_equal(again.embed(paths), model.embed(paths))


def test_threads_of_a_process_share_a_model(model, paths):
    from concurrent.futures import ThreadPoolExecutor

    expected = model.embed(paths)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.embed(paths), range(8)):
            assert np.array_equal(found, expected)


def test_an_image_that_cannot_be_read(model, paths, tmp_path):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(Path(paths[0]).read_bytes()[:200])
    images = [paths[0], damaged, paths[1]]
    with pytest.raises(macula.RunError) as raised:
        model.embed(images)
    # The line of the command.
    (tmp_path / "photos").mkdir()
    done = command("extract", "--model", model.path, "--data", tmp_path, "--out", tmp_path / "f")
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: damaged.jpg: ") and done.returncode == raised.value.exit_code == 1
    reason = line.removeprefix("error: damaged.jpg: ").removesuffix(" (row 0)")
    assert str(raised.value) == f"{damaged}: {reason} (row 1)"
    found = model.embed(images, on_error="null")
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[[0, 2]], model.embed([paths[0], paths[1]]))
    missing = model.embed(["no/such.jpg", paths[0], b""], on_error="null")
    assert np.isnan(missing[[0, 2]]).all() and np.isfinite(missing[1]).all()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m: macula.load("no/such.onnx"), "no/such.onnx: no such file"),
        (lambda m: macula.load(m.path, device="gpu"), "device: expected auto, cpu, openvino"),
        (lambda m: macula.load(m.path, threads=5000), "threads: expected at most 1024"),
        (lambda m: macula.load(m.path, outputs="nothing"), "no output `nothing`; it has cls, patch"),
        (lambda m: macula.load(m.path, no_such=1), "no_such: expected a known setting"),
        (lambda m: macula.load(m.path, mean=[1, 2]), "mean: "),
        (lambda m: macula.load("pixels"), "pixels and hog take their size from images"),
        (lambda m: m.embed([3]), "images: expected a path, bytes, a PIL image"),
        (lambda m: m.embed(np.zeros((3, 4), np.int64)), "images: expected uint8 pixels"),
        (lambda m: m.embed(np.zeros((3, 40, 50), np.uint8)), "images: expected uint8 pixels"),
        (lambda m: m.embed(["a"], batch_size=0), "batch_size: expected at least 1, found 0"),
        (lambda m: m.embed(["a"], on_error="skip"), "on_error: expected fail or null, found `skip`"),
    ],
)
def test_bad_arguments_are_one_line(model, call, expected):
    with pytest.raises(macula.InputError) as raised:
        call(model)
    assert expected in str(raised.value) and "\n" not in str(raised.value)
    assert isinstance(raised.value, ValueError) and raised.value.exit_code == 2


def test_nothing_is_printed(model, paths, capfd):
    macula.load(model.path, device="cpu").embed(paths)
    assert capfd.readouterr() == ("", "")


def test_importing_brings_numpy_alone():
    from conftest import python

    code = "import sys, macula; print([m for m in ('torch','polars','pyarrow','sklearn','onnxruntime','PIL') if m in sys.modules])"
    assert python(code).stdout.strip() == "[]", sys.executable
