"""Frozen visual features from Python: embed images, extract feature folders, evaluate, search, train.

>>> import macula
>>> model = macula.load("vits14.onnx")
>>> model.embed(["a.jpg", "b.jpg"])                      # numpy float32 [2, D]
>>> folder = macula.extract("photos/", model, "features")
>>> macula.knn(train_x, train_y, test_x, test_y).to_polars()

Everything here does what the command ``macula`` does, with the same numbers; the command comes with this package. Nothing is
printed unless ``verbose=`` asks for it, the interpreter's lock is released while anything computes, and Ctrl-C works.
"""

from __future__ import annotations

import importlib.util as _util
import os as _os
from pathlib import Path as _Path

# candle's own threads wait in busy loops beside macula's; as the command does.
_os.environ.setdefault("CANDLE_NUM_THREADS", "1")
# ONNX Runtime tells its makers what is run, unless it is asked not to before it is first used; as the command does.
_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _name_onnxruntime() -> None:
    """Names the library of this interpreter's ``onnxruntime`` (without importing it), unless one is named already."""
    if _os.environ.get("ORT_DYLIB_PATH"):
        return
    spec = _util.find_spec("onnxruntime")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(_Path(place, "capi").glob("libonnxruntime.*so*")) or sorted(
            [*_Path(place, "capi").glob("onnxruntime.dll"), *_Path(place, "capi").glob("libonnxruntime*.dylib")]
        )
        if found:
            _os.environ["ORT_DYLIB_PATH"] = str(found[0])


_name_onnxruntime()

from ._errors import Error, ExistsError, InputError, NotFoundError, RunError  # noqa: E402
from ._evaluate import Result, cluster, knn, linear_probe, logreg, retrieval  # noqa: E402
from ._folder import FeatureFolder, collect, extract  # noqa: E402
from ._index import Index  # noqa: E402
from ._macula import __version__  # noqa: E402
from ._macula import start_log as _start_log  # noqa: E402
from ._model import Model, load  # noqa: E402
from ._runs import Run, distill, export, train  # noqa: E402


def notices() -> None:
    """Lets macula's notices (what ``auto`` chose, what was left out) go to stderr from now on. ``MACULA_LOG`` filters them."""
    _start_log()


__all__ = [
    "Error",
    "ExistsError",
    "FeatureFolder",
    "Index",
    "InputError",
    "Model",
    "NotFoundError",
    "Result",
    "Run",
    "RunError",
    "__version__",
    "cluster",
    "collect",
    "distill",
    "export",
    "extract",
    "knn",
    "linear_probe",
    "load",
    "logreg",
    "notices",
    "retrieval",
    "train",
]
