"""Protocols on arrays give the command's table, indexes the exact neighbours."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from conftest import command

import macula


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Pixels of the bundled sample: folders of 600 train rows and 1,000 test rows."""
    out = tmp_path_factory.mktemp("sample")
    train = macula.extract("sample:train", "pixels:gray", out / "train", shard="0/10")
    test = macula.extract("sample:test", "pixels:gray", out / "test", shard="0/5")
    for part, name, n in ((train, "train", 10), (test, "test", 5)):
        macula.collect(part, out / f"{name}-whole")
    return macula.FeatureFolder(out / "train-whole"), macula.FeatureFolder(out / "test-whole")


def _of_command(task, sample, *flags):
    train, test = sample
    done = command("eval", task, "--train", train.path, "--test", test.path, "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_knn(sample):
    train, test = sample
    result = macula.knn(train, test_x=test)
    assert result.rows == _of_command("knn", sample)
    x, y = train.to_numpy(), [int(label) for label in train.labels]
    numbered = macula.knn(x, np.array(y), test.to_numpy(), [int(label) for label in test.labels], k=20)
    assert numbered["top1"] == next(row["top1"] for row in result.rows if row["k"] == 20)
    predicted = numbered.predictions()
    assert predicted.dtype.kind == "i"
    assert np.mean(predicted == np.array([int(label) for label in test.labels])) == pytest.approx(numbered["top1"])
    low, high = numbered.interval
    assert low < numbered["top1"] < high
    assert result.predictions(k=100).tolist() != []
    few = macula.knn(train, test_x=test, n_per_class=5, n_tries=3, seed=4)
    assert few.rows == _of_command("knn", sample, "--n-per-class", 5, "--n-tries", 3, "--seed", 4)


def test_linear_probe_and_logreg(sample):
    train, test = sample
    probe = macula.linear_probe(train, test_x=test, steps=50, learning_rates=[0.01, 0.1])
    assert probe.rows == _of_command("linear-probe", sample, "--steps", 50, "--learning-rates", "0.01,0.1")
    fitted = macula.logreg(train, test_x=test, c=0.1)
    assert fitted.rows == _of_command("logreg", sample, "--c", 0.1)
    assert np.mean(fitted.predictions() == np.array(test.labels)) == pytest.approx(fitted["top1"])


def test_retrieval_and_cluster(sample):
    _, test = sample
    for task, result in (("retrieval", macula.retrieval(test)), ("cluster", macula.cluster(test, k=[5, 10]))):
        flags = ["--k", "5,10"] if task == "cluster" else []
        done = command("eval", task, "--features", test.path, "--json", *flags)
        assert result.rows == json.loads(done.stdout)["rows"], done.stderr
        with pytest.raises(macula.InputError):
            result.predictions()
    train, _ = sample
    against = macula.retrieval(test, database_x=train, k=1)
    done = command("eval", "retrieval", "--query", test.path, "--database", train.path, "--k", 1, "--json")
    assert against.rows == json.loads(done.stdout)["rows"]


def test_a_result_is_a_table(sample, tmp_path):
    train, test = sample
    result = macula.knn(train, test_x=test, k=[5, 1])
    frame = result.to_polars()
    assert frame["k"].to_list() == [1, 5] and frame.to_dicts() == result.rows
    assert "top1" in str(result) and "<table>" in result._repr_html_()
    result.save(tmp_path / "kept")
    assert pl.read_parquet(tmp_path / "kept/table.parquet").to_dicts() == result.rows
    done = command("report", tmp_path / "kept")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x, y: macula.knn(x, y[:-1], x, y), "train: expected one label a row, found 9 labels of 10 rows"),
        (lambda x, y: macula.knn(x, y, x, ["z"] * 10), "test labels: expected labels that train has"),
        (lambda x, y: macula.knn(x, y, x), "test_y: expected labels beside an array"),
        (lambda x, y: macula.knn(x, ["a"] * 10, x, ["a"] * 10), "expected at least two classes, found only `a`"),
        (lambda x, y: macula.knn(x[0], y, x, y), "features: expected [n, d], found [4]"),
        (lambda x, y: macula.knn(x, y, x, y, k=11), "k: k = 11 is more than the 10 training rows"),
        (lambda x, y: macula.logreg(x, y, x, y, no_such=1), "no_such: expected a known setting"),
        (lambda x, y: macula.knn(x * np.nan, y, x, y), "finite"),
        (lambda x, y: macula.linear_probe(x, y, x, y, epochs=1, steps=1), "expected either epochs or steps"),
        (lambda x, y: macula.Index.build(x, "tree"), "kind: expected exact or hnsw, found `tree`"),
        (lambda x, y: macula.Index.build(x).search(x[:, :2]), "expected the index's width 4, found 2"),
    ],
)
def test_bad_arguments_are_one_line(call, expected):
    x = np.random.default_rng(0).normal(size=(10, 4))
    with pytest.raises(macula.InputError) as raised:
        call(x, ["a", "b"] * 5)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_unknown_labels_count_as_wrong():
    x = np.eye(4)
    result = macula.knn(x, ["a", "a", "b", "b"], x, ["a", "a", "b", "c"], k=1, allow_unknown_labels=True)
    assert result["top1"] == 0.75 and result.predictions().tolist() == ["a", "a", "b", "b"]


def test_index(sample, tmp_path):
    train, test = sample
    x, q = train.to_numpy(), test.to_numpy()
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    cosines = unit(q) @ unit(x).T
    similarities, rows = macula.Index.build(x).search(q, 5)
    assert similarities.shape == rows.shape == (len(q), 5)
    assert np.allclose(similarities, -np.sort(-cosines, axis=1)[:, :5], atol=1e-5)
    assert np.allclose(np.take_along_axis(cosines, rows, 1), similarities, atol=1e-5)
    graph = macula.Index.build(train, "hnsw", recall=0.9, threads=1)
    assert graph.kind == "hnsw" and graph.ef and len(graph) == len(train)
    found = graph.search(q, 5)[1]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, rows)]) > 0.8
    command("index", "build", "--features", train.path, "--out", tmp_path / "i")
    opened = macula.Index.open(tmp_path / "i")
    assert opened.paths == train.paths and opened.labels == train.labels
    assert np.array_equal(opened.search(q, 5)[1], rows)
