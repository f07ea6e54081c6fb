"""Features in a Ray cluster.

>>> files = ray.data.read_binary_files("photos/", include_paths=True)
>>> files.map_batches(
...     macula.ray.Extractor,
...     fn_constructor_kwargs={"model": "vits14.onnx"},
...     batch_format="pyarrow",
...     batch_size=256,
...     compute=ray.data.ActorPoolStrategy(size=8),
...     num_cpus=4,
... ).write_parquet("rows/")
>>> macula.collect("rows/", "features")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ._workers import embedded, opened


class Extractor:
    """For ``map_batches``: a table with images in, their features out, as lists of fixed width.

    Args:
        model: the path of an ONNX file or checkpoint, the same on every node.
        image: the column of images: encoded bytes, or paths.
        keep: columns to keep beside the features.
        outputs, options: as :func:`macula.load`.
        threads: by default ``num_cpus`` of the actor, which Ray sets as ``OMP_NUM_THREADS``.
        batch_size: images per run of the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        image: str = "bytes",
        keep: Sequence[str] = ("path",),
        outputs: str | Sequence[str] | None = None,
        threads: int | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> None:
        self.model = opened(os.fspath(model), outputs, threads, options)
        self.image = image
        self.keep = list(keep)
        self.batch_size = batch_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``keep`` and one column an output, ``fixed_size_list<float>[D]``."""
        found = embedded(self.model, batch.column(self.image).to_pylist(), self.batch_size)
        columns = {name: batch.column(name) for name in self.keep}
        for name, values in found.items():
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        return pa.table(columns)
