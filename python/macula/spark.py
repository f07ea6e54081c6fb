"""Features in Spark.

>>> files = spark.read.format("binaryFile").load("photos/*.jpg").select("path", "content")
>>> extractor = macula.spark.extractor("vits14.onnx", threads=1)
>>> files.mapInArrow(extractor, macula.spark.schema("vits14.onnx")).write.parquet("rows")
>>> macula.collect("rows", "features")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ._model import load

if TYPE_CHECKING:
    import pyarrow


def extractor(
    model: str | os.PathLike[str],
    content: str = "content",
    keep: Sequence[str] = ("path",),
    outputs: str | Sequence[str] | None = None,
    threads: int | None = None,
    batch_size: int = 32,
    **options: Any,
) -> Callable[[Iterator[pyarrow.RecordBatch]], Iterator[pyarrow.RecordBatch]]:
    """A function for ``mapInArrow``.

    Args:
        model: the path of an ONNX file or checkpoint, the same on every node; it is opened once a worker process.
        content: the column of encoded images, or of paths.
        keep: columns to keep beside the features.
        threads: of a worker; by default ``OMP_NUM_THREADS``, else all cores: give ``spark.task.cpus``.
        outputs, options: as :func:`macula.load`.
    """
    path, kept = os.fspath(model), list(keep)

    def extract(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        import pyarrow as pa

        from macula._workers import embedded, opened

        network = opened(path, outputs, threads, options)
        for batch in batches:
            found = embedded(network, batch.column(content).to_pylist(), batch_size)
            columns = [batch.column(name) for name in kept]
            for values in found.values():
                offsets = pa.array(range(0, values.size + 1, values.shape[1]), pa.int32())
                columns.append(pa.ListArray.from_arrays(offsets, pa.array(values.ravel())))
            yield pa.RecordBatch.from_arrays(columns, [*kept, *found])

    return extract


def schema(
    model: str | os.PathLike[str],
    keep: str = "path string",
    outputs: str | Sequence[str] | None = None,
    **options: Any,
) -> str:
    """What the function gives, in Spark's words: ``path string, cls array<float>``."""
    names = load(model, outputs=outputs, **options).outputs
    return ", ".join([keep, *(f"`{name}` array<float>" for name in names)])
