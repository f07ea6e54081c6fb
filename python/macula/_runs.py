"""Training, distillation and export, as the command does them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _macula
from ._progress import Progress

if TYPE_CHECKING:
    import polars

#: Called with a line of ``metrics.jsonl`` as a dict: ``step``, ``loss``, its parts, ``lr``, and so on.
OnStep = Callable[[dict[str, Any]], None]


class Run:
    """A run folder: settings, metrics, checkpoints, and the backbone to take away."""

    def __init__(self, path: str | os.PathLike[str], summary: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        #: Step reached, whether that was the last, online k-NN, images/s: what ``--json`` prints; empty for a run that was opened.
        self.summary: dict[str, Any] = dict(summary or {})

    @property
    def teacher(self) -> Path:
        """The backbone: ``teacher.safetensors``, which :func:`macula.load` and :func:`macula.export` take."""
        return self.path / "teacher.safetensors"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        with open(self.path / "metrics.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.endswith("\n")]

    def to_polars(self) -> polars.DataFrame:
        """The metrics as a table."""
        import polars

        return polars.DataFrame(self.metrics(), infer_schema_length=None)

    def __repr__(self) -> str:
        return f"macula.Run({str(self.path)!r}, {self.summary})"


class _Tail:
    """The lines that are new in a file that grows."""

    def __init__(self, path: Path, from_end: bool) -> None:
        self.path = path
        self.place = path.stat().st_size if from_end and path.exists() else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                # A resumed run cuts what came after its checkpoint.
                self.place = min(self.place, os.fstat(file.fileno()).st_size)
                file.seek(self.place)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.place += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)


def _settings(given: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Settings as ``--set`` takes them; a mapping within a mapping is a table within a table."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{within}{name}.")
        else:
            shown = json.dumps(list(value) if isinstance(value, tuple) else value) if isinstance(value, (bool, list, tuple)) else value
            yield f"{within}{name}={os.fspath(shown) if isinstance(shown, os.PathLike) else shown}"


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Options as flags: ``knn_data="x"`` becomes ``--knn-data x``."""
    flags = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            flags.append(flag)
        elif isinstance(value, Mapping):
            for setting in _settings(value):
                flags += [flag, setting]
        elif isinstance(value, (list, tuple)):
            flags.append(f"{flag}={','.join(str(one) for one in value)}")
        else:
            flags.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return flags


def _run(
    verb: str,
    out: str | os.PathLike[str],
    threads: int,
    on_step: OnStep | None,
    verbose: bool,
    resume: bool,
    options: Mapping[str, Any],
) -> Run:
    out = Path(out)
    tail = _Tail(out / "metrics.jsonl", resume)
    progress = Progress("steps") if verbose else None

    def tick() -> None:
        for line in tail:
            if progress and "step" in line:
                progress(line["step"], line.get("steps", line["step"]))
            if on_step:
                on_step(line)

    args = ["macula", verb, *_flags({"out": out, "resume": resume, **options}), "--json"]
    said = _macula.call(args, threads, tick if on_step or verbose else None)
    if progress:
        progress.close()
    return Run(out, json.loads(said.strip().splitlines()[-1]))


def train(
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "run",
    *,
    recipe: str | os.PathLike[str] | None = None,
    set: Mapping[str, Any] | None = None,
    resume: bool = False,
    threads: int = 0,
    on_step: OnStep | None = None,
    verbose: bool = False,
    **options: Any,
) -> Run:
    """Pretrains a vision transformer without labels, as ``macula train`` does.

    Args:
        data: the source of images; not needed to resume.
        out: the run folder.
        recipe: a recipe's name, or a TOML file.
        set: settings by name: ``{"epochs": 20, "image_size": 56, "monitor": {"log_every": 10}}``; ``"monitor.log_every"`` is
            the same field.
        resume: go on after the last checkpoint.
        threads: 0 for all cores.
        on_step: called with every line that the run logs. An exception that it raises ends the run after its step, with a
            checkpoint, and is raised here; so does Ctrl-C.
        verbose: a line on stderr that says how far it is.
        options: other flags of the command: ``knn_data``, ``knn_every``, ``seed``, ``force``, ``device``.
    """
    return _run("train", out, threads, on_step, verbose, resume, {"data": data, "recipe": recipe, "set": set, **options})


def distill(
    teacher: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "run",
    *,
    recipe: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    set: Mapping[str, Any] | None = None,
    resume: bool = False,
    threads: int = 0,
    on_step: OnStep | None = None,
    verbose: bool = False,
    **options: Any,
) -> Run:
    """Trains a student on the outputs of a frozen teacher (a run, a checkpoint or an ONNX file), as ``macula distill`` does.

    Args:
        teacher: the teacher; not needed to resume.
        arch: the student, for instance ``"vit-tiny/14"``.
        data, out, recipe, set, resume, threads, on_step, verbose, options: as :func:`train`.
    """
    given = {"teacher": teacher, "data": data, "recipe": recipe, "arch": arch, "set": set, **options}
    return _run("distill", out, threads, on_step, verbose, resume, given)


def export(
    model: str | os.PathLike[str] | Run, out: str | os.PathLike[str], *, threads: int = 0, **options: Any
) -> Path:
    """Writes a checkpoint or a run as ONNX, checked against the network before it gets its name.

    Args:
        model: a run, its folder, or a checkpoint.
        out: the ONNX file.
        options: flags of the command: ``outputs`` (``["cls", "patch"]``), ``image_size`` (``224``, ``"dynamic"``), ``dtype``
            (``"f16"``), ``arch``, ``force``.

    Returns:
        The file.
    """
    path = model.path if isinstance(model, Run) else model
    _macula.call(["macula", "export", os.fspath(path), *_flags({"out": out, **options})], threads)
    return Path(out)
