"""Protocols on arrays: features and labels in, a table with intervals out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _macula
from ._errors import make
from ._folder import FeatureFolder, label_texts, matrix
from ._images import given_array

if TYPE_CHECKING:
    import pandas
    import polars


class Result:
    """What an evaluation found: a table of numbers from 0 to 1, and the predictions of the test rows.

    Printed, it is the table of the command; Polars, pandas, DuckDB and pyarrow read it through the Arrow interface.
    """

    def __init__(self, outcome: _macula.Outcome, meant: Mapping[str, Any]) -> None:
        self._outcome = outcome
        found = json.loads(outcome.json)
        #: Name of the protocol.
        self.task: str = found["task"]
        #: What it was run with.
        self.settings: dict[str, Any] = found["settings"]
        #: Rows of the table, as dicts by column.
        self.rows: list[dict[str, Any]] = found["rows"]
        self.n_train: int = found["n_train"]
        self.n_test: int = found["n_test"]
        #: Classes, in the order that the numbers of classes count.
        self.classes: list[Any] = [meant.get(name, name) for name in outcome.classes]
        self._predictions: dict[int | None, np.ndarray] = {k: np.asarray(numbers) for k, numbers in outcome.predictions}

    def __getitem__(self, column: str) -> Any:
        """A column's value in the first row: ``result["top1"]``."""
        return self.rows[0][column]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the first row's first measure."""
        first = self.rows[0]
        for low, high in (("top1_low", "top1_high"), ("accuracy_low", "accuracy_high"), ("low", "high")):
            if low in first:
                return first[low], first[high]
        raise make("setting", f"interval: {self.task} has none")

    def predictions(self, k: int | None = None) -> np.ndarray:
        """The predicted label of each test row, as labels were given; None where there is none. k-NN has them for each ``k``, by
        default the first."""
        if not self._predictions:
            raise make("setting", f"predictions: {self.task} has none here")
        key = next(iter(self._predictions)) if k is None else k
        if key not in self._predictions:
            known = ", ".join(str(one) for one in self._predictions)
            raise make("setting", f"k: expected one of {known}, found {k}")
        numbers = self._predictions[key]
        if (numbers < 0).any() or not all(isinstance(c, (int, float, str)) for c in self.classes):
            return np.array([None if n < 0 else self.classes[n] for n in numbers], dtype=object)
        named: np.ndarray = np.asarray(self.classes)[numbers]
        return named

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._outcome.table.__arrow_c_stream__(requested_schema)

    def to_polars(self) -> polars.DataFrame:
        """The table."""
        import polars

        return polars.DataFrame(self)

    def to_pandas(self) -> pandas.DataFrame:
        """The table."""
        import pandas

        return pandas.DataFrame(self.rows)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Keeps ``result.json``, ``table.parquet``, ``table.csv`` and ``table.md``, which ``macula report`` reads."""
        self._outcome.save(os.fspath(folder))
        return Path(folder)

    def __str__(self) -> str:
        return self._outcome.text

    def __repr__(self) -> str:
        return f"macula.Result({self.task}, {self.rows[0]})"

    def _repr_html_(self) -> str:
        import html

        def cell(value: Any) -> str:
            return f"{value:.4f}" if isinstance(value, float) else html.escape(str(value))

        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.rows[0])
        body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row.values()) + "</tr>" for row in self.rows)
        caption = f"<caption>{html.escape(self.task)}: {self.n_train} train, {self.n_test} test</caption>"
        return f"<table>{caption}<tr>{head}</tr>{body}</table>"


def _side(x: Any, y: Any, what: str) -> tuple[tuple[Any, list[str]], Mapping[str, Any]]:
    if y is None and isinstance(x, FeatureFolder):
        features = matrix(x)
        y = x.labels
        if any(label is None for label in y):
            raise make("input", f"{x.path}: expected a label for each row, found rows without")
    elif y is None:
        raise make("setting", f"{what}: expected labels beside an array")
    else:
        features = matrix(x)
    texts, meant = label_texts(y)
    return (given_array(features), texts), meant


def _several(given: Any) -> list[Any]:
    """One number, or several, as a list."""
    several: list[Any] = np.atleast_1d(np.asarray(given)).tolist()
    return several


def _settings(k: Any = None, **settings: Any) -> str:
    if k is not None:
        settings["k"] = _several(k)
    return json.dumps({name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in settings.items()})


def _pair(run: Any, train: tuple[Any, Any], test: tuple[Any, Any], settings: str) -> Result:
    (train_side, train_meant), (test_side, test_meant) = _side(*train, "train_y"), _side(*test, "test_y")
    return Result(run(train_side, test_side, settings), {**test_meant, **train_meant})


def knn(
    train_x: Any,
    train_y: Any = None,
    test_x: Any = None,
    test_y: Any = None,
    k: int | Sequence[int] | None = None,
    *,
    temperature: float = 0.07,
    n_per_class: int | None = None,
    n_tries: int = 1,
    seed: int = 0,
    bootstrap_resamples: int = 1000,
    allow_unknown_labels: bool = False,
    threads: int = 0,
) -> Result:
    """Weighted k-nearest-neighbour classification by cosine similarity, as in DINOv2.

    Args:
        train_x, test_x: features ``[n, d]``: arrays, tensors, or feature folders, whose labels are theirs where none are
            given (``knn(train_folder, test_x=test_folder)``).
        train_y, test_y: one label a row: numbers or texts.
        k: numbers of neighbours; by default those of 10, 20, 100, 200 that the train rows allow.
        temperature: of the votes.
        n_per_class, n_tries: few-shot: train rows a class, and draws to average over.
        seed, bootstrap_resamples: of the draws and the 95 % intervals; 0 resamples for none.
        allow_unknown_labels: test rows of labels that train lacks count as wrong, instead of an error.

    Returns:
        A table with ``k``, ``temperature``, ``top1``, ``top5``, ``top1_low``, ``top1_high``, ``mean_per_class``: the command's.
    """
    settings = _settings(
        k,
        temperature=temperature,
        n_per_class=n_per_class,
        n_tries=n_tries,
        seed=seed,
        bootstrap_resamples=bootstrap_resamples,
        allow_unknown_labels=allow_unknown_labels,
        threads=threads,
    )
    return _pair(_macula.knn, (train_x, train_y), (test_x, test_y), settings)


def linear_probe(
    train_x: Any, train_y: Any = None, test_x: Any = None, test_y: Any = None, *, threads: int = 0, **settings: Any
) -> Result:
    """A linear classifier trained by SGD, its learning rate chosen on held-out train rows.

    Args:
        train_x, train_y, test_x, test_y: as :func:`knn`.
        settings: ``learning_rates``, ``epochs`` or ``steps``, ``batch_size`` (128), ``val_fraction`` (0.1), ``seed``,
            ``bootstrap_resamples``, ``allow_unknown_labels``.
    """
    return _pair(_macula.linear_probe, (train_x, train_y), (test_x, test_y), _settings(threads=threads, **settings))


def logreg(
    train_x: Any,
    train_y: Any = None,
    test_x: Any = None,
    test_y: Any = None,
    c: float | Sequence[float] | None = None,
    *,
    threads: int = 0,
    **settings: Any,
) -> Result:
    """Logistic regression by L-BFGS, its C chosen on held-out train rows.

    Args:
        train_x, train_y, test_x, test_y: as :func:`knn`.
        c: inverse strength of the regularisation, or several to choose among; by default the paper's 45.
        settings: ``max_iterations``, ``val_fraction``, ``n_per_class``, ``n_tries``, ``seed``, ``bootstrap_resamples``,
            ``allow_unknown_labels``.
    """
    if c is not None:
        settings["c"] = _several(c)
    return _pair(_macula.logreg, (train_x, train_y), (test_x, test_y), _settings(threads=threads, **settings))


def retrieval(
    x: Any,
    y: Any = None,
    database_x: Any = None,
    database_y: Any = None,
    k: int | Sequence[int] | None = None,
    *,
    threads: int = 0,
    **settings: Any,
) -> Result:
    """Ranking by cosine similarity, where a match is a row of the same label.

    Args:
        x, y: features ``[n, d]`` and labels of the queries; without a database each row is a query against all others.
        database_x, database_y: what is searched.
        k: cut-offs of ``R@k`` and ``mP@k``; 1, 5 and 10 by default.
        settings: ``seed``, ``bootstrap_resamples``.
    """
    queries, meant = _side(x, y, "y")
    base = None if database_x is None else _side(database_x, database_y, "database_y")[0]
    return Result(_macula.retrieval(queries, base, _settings(k, threads=threads, **settings)), meant)


def cluster(
    x: Any, y: Any = None, k: int | Sequence[int] | None = None, *, threads: int = 0, **settings: Any
) -> Result:
    """k-means, and how well its clusters match the labels: ``nmi``, ``ari``, ``accuracy`` (Hungarian).

    Args:
        x, y: features ``[n, d]`` and labels.
        k: numbers of clusters; by default the number of classes.
        settings: ``iterations``, ``seed``, ``bootstrap_resamples``.
    """
    side, meant = _side(x, y, "y")
    return Result(_macula.cluster(side, _settings(k, threads=threads, **settings)), meant)
