"""What workers of Ray and Spark share: one model a process, and columns of Arrow."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from typing import Any

from ._model import Model, load


@functools.lru_cache(maxsize=4)
def _open(path: str, settings: str) -> Model:
    return load(path, **json.loads(settings))


def worker_threads(threads: int | None) -> int:
    """Threads of a worker: as asked for, else what the engine says in ``OMP_NUM_THREADS`` (Ray sets it to ``num_cpus``)."""
    if threads is not None:
        return threads
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() else 0


def opened(path: str, outputs: str | Sequence[str] | None, threads: int | None, options: dict[str, Any]) -> Model:
    """The model of this process."""
    names = [outputs] if isinstance(outputs, str) else None if outputs is None else list(outputs)
    settings = {"outputs": names, "threads": worker_threads(threads), **options}
    return _open(os.fspath(path), json.dumps(settings, sort_keys=True))


def embedded(model: Model, images: list[Any], batch_size: int) -> dict[str, Any]:
    """Features ``[n, width]`` by output."""
    found = model.embed(images, batch_size)
    found = found if isinstance(found, dict) else {next(iter(model.outputs)): found}
    return {name: values.reshape(len(images), -1) for name, values in found.items()}
