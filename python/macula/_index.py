"""Nearest neighbours by cosine similarity."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from . import _macula
from ._folder import matrix
from ._images import given_array


class Index:
    """An index over the rows of a matrix: exact, or an HNSW graph. Made by :meth:`build` or :meth:`open`."""

    def __init__(self, index: _macula.Index) -> None:
        self._index = index
        self.kind, self._n, self.dim, self.ef = index.facts
        named = index.named
        #: Place of each row in the source, its path and label; None for an index that was built here.
        self.rows = None if named is None else np.asarray(named[0], dtype=np.uint64)
        self.paths: list[str] | None = None if named is None else named[1]
        self.labels: list[str | None] | None = None if named is None else named[2]

    @classmethod
    def build(
        cls,
        x: Any,
        kind: str = "exact",
        *,
        m: int = 16,
        ef_construction: int = 200,
        recall: float | None = None,
        seed: int = 0,
        threads: int = 0,
    ) -> Index:
        """Builds an index over features ``[n, d]`` (an array, a tensor or a feature folder), which are L2-normalised.

        Args:
            kind: ``"exact"`` or ``"hnsw"``.
            m, ef_construction: links of a row in the graph, and the width of the walk that finds them.
            recall: choose the width of searches that finds this share of the 10 nearest, measured on held-out rows.
        """
        settings = {"kind": kind, "m": m, "ef_construction": ef_construction, "recall": recall, "seed": seed, "threads": threads}
        return cls(_macula.Index.build(given_array(matrix(x)), json.dumps(settings)))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Index:
        """Opens a folder that ``macula index build`` wrote."""
        return cls(_macula.Index.open(os.fspath(path)))

    def search(self, queries: Any, k: int = 10, ef: int | None = None, *, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` most similar rows of each query ``[n, d]``, best first.

        Returns:
            Cosine similarities, float32 ``[n, k]``, and numbers of rows of the index, int64 ``[n, k]``; NaN and -1 where a
            graph reached fewer.
        """
        similarities, rows = self._index.search(given_array(matrix(queries)), k, ef, threads)
        return np.asarray(similarities).reshape(-1, k), np.asarray(rows).reshape(-1, k)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"macula.Index({self.kind}, {len(self)} rows of width {self.dim})"
