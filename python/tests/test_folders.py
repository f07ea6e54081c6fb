"""Feature folders: written as the command writes them, read by everybody who reads Arrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import N, command

import macula


def test_extract_writes_what_the_command_writes(photos, onnx, folder, tmp_path):
    assert command("extract", "--model", onnx, "--data", photos, "--out", tmp_path / "f", "--device", "cpu").returncode == 0
    for part in sorted(tmp_path.glob("f/part-*.parquet")):
        assert part.read_bytes() == (folder.path / part.name).read_bytes()
    assert macula.FeatureFolder(tmp_path / "f").meta == folder.meta


def test_columns(folder, model, paths, labels):
    assert len(folder) == N and folder.n_failed == 0 and folder.column == "cls"
    assert np.array_equal(folder.to_numpy(), model.embed(paths))
    assert np.array_equal(np.asarray(folder), folder.to_numpy())
    assert folder.labels == labels and folder.rows.tolist() == list(range(N))
    assert [path.split("/")[0] for path in folder.paths] == labels
    with pytest.raises(macula.InputError, match="no column `patch`; the folder holds cls"):
        folder.to_numpy("patch")
    assert "24 rows" in repr(folder) and "<table>" in folder._repr_html_()


def test_arrow_readers(folder):
    frame = folder.to_polars()
    assert frame.columns == ["row", "path", "label", "cls"]
    assert frame.schema["cls"] == pl.Array(pl.Float32, folder.outputs["cls"][0])
    assert np.array_equal(frame["cls"].to_numpy(), folder.to_numpy())
    table = folder.to_arrow()
    assert pa.types.is_fixed_size_list(table.schema.field("cls").type)
    assert table.column("label").to_pylist() == folder.labels
    # A stream that nobody reads is released.
    for _ in range(3):
        folder.__arrow_c_stream__()


def test_several_parts_and_shards(model, tmp_path):
    for shard in range(2):
        macula.extract("sample:test", "pixels", tmp_path / "f", shard=f"{shard}/2")
    whole = macula.extract("sample:test", "pixels", tmp_path / "whole")
    shards = macula.FeatureFolder(tmp_path / "f")
    assert np.array_equal(shards.to_numpy(), whole.to_numpy()) and shards.labels == whole.labels
    assert shards.to_polars().equals(whole.to_polars())


def test_existing_folders_and_interrupts(photos, model, folder, tmp_path):
    with pytest.raises(macula.ExistsError) as raised:
        macula.extract(photos, model, folder.path)
    assert str(raised.value).endswith("exists already; give force=True to replace it")
    assert isinstance(raised.value, FileExistsError)
    again = macula.extract(photos, model, folder.path, resume=True)
    assert len(again) == N
    (tmp_path / "empty").mkdir()
    with pytest.raises(macula.InputError, match="found neither meta.json nor shards"):
        macula.FeatureFolder(tmp_path / "empty")


def test_verbose_says_how_far_it_is(photos, model, tmp_path, capsys):
    macula.extract(photos, model, tmp_path / "f", verbose=True)
    assert "24/24 images" in capsys.readouterr().err


def test_rows_of_others_become_a_folder(folder, model, tmp_path):
    expected = folder.to_numpy()
    table = folder.to_arrow()
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(N)))
    fixed = macula.collect(shuffled, tmp_path / "fixed", model=model)
    assert np.array_equal(fixed.to_numpy(), expected) and fixed.labels == folder.labels
    assert fixed.meta["model"] == folder.meta["model"]
    # As Spark writes it: no row, lists without a width.
    rows = [{"path": path, "cls": row} for path, row in zip(folder.paths, expected.tolist())]
    spark = pa.Table.from_pylist(rows, pa.schema([("path", pa.string()), ("cls", pa.list_(pa.float32()))]))
    loose = macula.collect(spark, tmp_path / "loose")
    assert np.array_equal(loose.to_numpy(), expected) and loose.paths == folder.paths
    done = command("inspect", tmp_path / "loose")
    assert done.returncode == 0, done.stderr
    uneven = pa.table({"path": ["a", "b"], "cls": pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))})
    with pytest.raises(macula.InputError, match="expected lists of one width"):
        macula.collect(uneven, tmp_path / "uneven")


def test_workers_of_ray_and_spark_give_the_same_rows(onnx, photos, paths, model, tmp_path):
    """The functions that the engines call, without the engines."""
    import macula.ray
    import macula.spark

    contents = [Path(path).read_bytes() for path in paths]
    expected = model.embed(paths)
    extractor = macula.ray.Extractor(onnx, threads=2, device="cpu")
    found = extractor(pa.table({"bytes": contents, "path": paths}))
    assert pa.types.is_fixed_size_list(found.schema.field("cls").type)
    assert np.array_equal(macula.collect(found, tmp_path / "ray").to_numpy(), expected)
    run = macula.spark.extractor(onnx, threads=2, device="cpu")
    batch = pa.RecordBatch.from_pydict({"content": contents, "path": paths})
    rows = pa.Table.from_batches(run(iter([batch.slice(0, 10), batch.slice(10)])))
    assert macula.spark.schema(onnx) == "path string, `cls` array<float>"
    assert np.allclose(macula.collect(rows, tmp_path / "spark").to_numpy(), expected, atol=1e-5)


def test_feature_dataset(folder):
    torch = pytest.importorskip("torch")
    import pickle

    from macula.torch import FeatureDataset

    data = FeatureDataset(folder)
    assert data.classes == ["cat", "dog"] and len(data) == N
    batch, targets = next(iter(torch.utils.data.DataLoader(data, batch_size=N)))
    assert np.array_equal(batch.numpy(), folder.to_numpy())
    assert [data.classes[t] for t in targets] == folder.labels
    assert torch.equal(pickle.loads(pickle.dumps(data)).features, data.features)


def test_a_vector_store(folder):
    qdrant = pytest.importorskip("qdrant_client")
    from macula.qdrant import push

    client = qdrant.QdrantClient(":memory:")
    assert push(folder, client, "photos") == N
    hits = client.query_points("photos", folder.to_numpy()[3].tolist(), limit=2).points
    assert hits[0].id == 3 and hits[0].payload == {"path": folder.paths[3], "label": folder.labels[3]}
