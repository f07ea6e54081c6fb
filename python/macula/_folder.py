"""Feature folders: Parquet parts of features by row, with what they were made from."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _macula
from ._errors import make
from ._model import Model, spec_of
from ._progress import Progress

if TYPE_CHECKING:
    import polars
    import pyarrow


def extract(
    data: str | os.PathLike[str],
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    outputs: str | Sequence[str] | None = None,
    verbose: bool = False,
    **options: Any,
) -> FeatureFolder:
    """Writes the features of a source of images to a feature folder, as ``macula extract`` does.

    Args:
        data: the source: a folder, ``list.csv``, ``shards/{000..012}.tar``, ``sample:train`` and so on.
        model: a :class:`Model`, or what :func:`load` takes, or ``"pixels"`` or ``"hog"``.
        out: the folder to write.
        outputs: names of outputs; by default the model's.
        verbose: a line on stderr that says how far it is.
        options: those of :func:`load`, and ``batch_size`` (32), ``on_error`` (``"fail"``, ``"skip"``, ``"null"``), ``shard``
            (``"0/4"``), ``force``, ``resume``, ``layout`` (``"parquet"``, ``"npy"``, ``"safetensors"``), ``dtype`` (``"f32"``,
            ``"f16"``), ``fast_decode``.

    Raises:
        ExistsError: the folder exists and neither ``force`` nor ``resume`` is given.
        KeyboardInterrupt: after Ctrl-C; finished parts stay, and ``resume=True`` goes on after them.
    """
    if outputs is not None:
        options["outputs"] = [outputs] if isinstance(outputs, str) else list(outputs)
    spec, settings = spec_of(model, options)
    progress = Progress("images") if verbose else None
    _macula.extract(os.fspath(data), spec, os.fspath(out), json.dumps(settings), progress)
    if progress:
        progress.close()
    shard = settings.get("shard")
    if shard:
        index, count = (int(part) for part in shard.split("/"))
        return FeatureFolder(Path(out, f"shard-{index:05}-of-{count:05}"))
    return FeatureFolder(out)


class FeatureFolder:
    """A feature folder that is complete: one run, or all shards of one.

    Polars, pandas, DuckDB and pyarrow read it through the Arrow interface (``pl.DataFrame(folder)``,
    ``pyarrow.table(folder)``), one part at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._folder = _macula.Folder(self.path)
        #: ``meta.json``: model, preprocessing, outputs, source, counts.
        self.meta: dict[str, Any] = json.loads(self._folder.meta)
        #: Shape of one row by column.
        self.outputs: dict[str, tuple[int, ...]] = {o["name"]: tuple(o["shape"]) for o in self.meta["outputs"]}
        self._names: tuple[np.ndarray, list[str], list[str | None]] | None = None

    @property
    def column(self) -> str:
        """The column that is taken where none is named: ``cls``, or else the first."""
        return self._folder.default_column

    @property
    def n_failed(self) -> int:
        """Images that could not be read."""
        return self._folder.counts[1]

    def __len__(self) -> int:
        return self._folder.counts[0]

    def _named(self) -> tuple[np.ndarray, list[str], list[str | None]]:
        if self._names is None:
            _, _, rows, paths, labels, _ = self._folder.read(self.column)
            self._names = (np.asarray(rows), paths, labels)
        return self._names

    def to_numpy(self, column: str | None = None) -> np.ndarray:
        """Features as float32 ``[n, D]`` (``[n, N, D]`` for patch tokens), rows without features left out."""
        column = column or self.column
        values, _, rows, paths, labels, _ = self._folder.read(column)
        self._names = (np.asarray(rows), paths, labels)
        return np.asarray(values).reshape(len(paths), *self.outputs[column])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.to_numpy()
        return array if dtype is None else array.astype(dtype)

    @property
    def rows(self) -> np.ndarray:
        """Place of each row in the source, uint64 ``[n]``."""
        return self._named()[0]

    @property
    def paths(self) -> list[str]:
        """Path of each row."""
        return self._named()[1]

    @property
    def labels(self) -> list[str | None]:
        """Label of each row, None where there is none."""
        return self._named()[2]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._folder.table().__arrow_c_stream__(requested_schema)

    def to_polars(self) -> polars.DataFrame:
        """``row``, ``path``, ``label`` and the outputs, in the order of the source."""
        import polars

        return polars.DataFrame(self).sort("row", maintain_order=True)

    def to_arrow(self) -> pyarrow.Table:
        """The same as a pyarrow table, part by part."""
        import pyarrow

        return pyarrow.table(self)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name} {list(shape)}" for name, shape in self.outputs.items())
        return f"macula.FeatureFolder({str(self.path)!r}, {len(self)} rows, {outputs})"

    def _repr_html_(self) -> str:
        rows = {
            "folder": str(self.path),
            "rows": f"{len(self)} ({self.n_failed} failed)",
            "outputs": ", ".join(f"{name} {list(shape)}" for name, shape in self.outputs.items()),
            "model": str(self.meta["model"].get("file") or self.meta["model"].get("kind")),
            "source": json.dumps(self.meta["source"])[:200],
        }
        cells = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"


def collect(
    table: Any,
    out: str | os.PathLike[str],
    *,
    model: Model | None = None,
    columns: Sequence[str] | None = None,
    force: bool = False,
) -> FeatureFolder:
    """Makes a feature folder of rows that Ray, Spark or others computed, for ``macula eval`` and all the rest.

    Args:
        table: a folder or file of Parquet, or anything with the Arrow interface: ``path`` (text), where there are such
            ``row`` (whole numbers; without them rows are numbered in the order of their paths) and ``label``, and columns of
            lists of one width, fixed or not.
        out: the folder to write; replaced with ``force``.
        model: what the features are of, for ``meta.json`` and the notice where two folders are compared.
        columns: the columns of features; by default all lists.

    Raises:
        InputError: no features, lists of several widths, null or a row twice.
    """
    import pyarrow as pa

    source = {"kind": "collected", "from": str(table) if isinstance(table, (str, os.PathLike)) else type(table).__name__}
    if isinstance(table, (str, os.PathLike)):
        import pyarrow.parquet as pq

        table = pq.read_table(table)
    table = pa.table(table)

    def is_list(kind: Any) -> bool:
        return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))

    names = list(columns or [field.name for field in table.schema if is_list(field.type)])
    if not names or "path" not in table.column_names:
        raise make("input", f"{out}: expected a column path and columns of lists, found {', '.join(table.column_names)}")
    if "row" in table.column_names:
        table = table.sort_by("row")
        rows = [int(row) for row in table.column("row").to_pylist()]
        if len(set(rows)) != len(rows):
            raise make("input", f"{out}: column `row`: expected each once, found {len(rows) - len(set(rows))} twice")
    else:
        table = table.sort_by("path")
        rows = list(range(len(table)))
    outputs = []
    for name in names:
        column = table.column(name).combine_chunks()
        flat = column.flatten()
        width, rest = divmod(len(flat), max(len(column), 1))
        uneven = not pa.types.is_fixed_size_list(column.type) and any(n != width for n in column.value_lengths().to_pylist())
        if rest or column.null_count or flat.null_count or uneven or width == 0:
            raise make("input", f"{out}: column `{name}`: expected lists of one width without null, found others")
        values = np.ascontiguousarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32)
        shape = list(model.outputs[name]) if model is not None and name in model.outputs else [width]
        outputs.append((name, shape if int(np.prod(shape)) == width else [width], values.tobytes()))
    labels = table.column("label").to_pylist() if "label" in table.column_names else [None] * len(rows)
    described = (
        json.dumps(model.description if model is not None else {"kind": "unknown"}),
        json.dumps(model.preprocess if model is not None else {}),
        json.dumps(source),
    )
    texts = [None if label is None else str(label) for label in labels]
    _macula.collect(os.fspath(out), rows, table.column("path").to_pylist(), texts, outputs, described, force)
    return FeatureFolder(out)


def matrix(features: Any, column: str | None = None) -> np.ndarray:
    """Features as contiguous float32 ``[n, d]``: an array, a tensor, or a feature folder, whose rows are laid flat."""
    if isinstance(features, FeatureFolder):
        features = features.to_numpy(column).reshape(len(features), -1)
    if hasattr(features, "detach"):
        features = features.detach().cpu().numpy()
    array = np.ascontiguousarray(features, dtype=np.float32)
    if array.ndim != 2:
        raise make("setting", f"features: expected [n, d], found {list(array.shape)}")
    return array


def label_texts(labels: Iterable[Any]) -> tuple[list[str], Mapping[str, Any]]:
    """Labels as texts, and what each text stood for."""
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    values = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    return [str(value) for value in values], {str(value): value for value in values}
