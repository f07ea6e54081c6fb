"""Models: images in, features out."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _macula
from ._errors import make
from ._images import Images, given_array, items, prepared


def load(
    model: str | os.PathLike[str],
    device: str = "auto",
    threads: int = 0,
    outputs: str | Sequence[str] | None = None,
    *,
    normalize: bool = False,
    **options: Any,
) -> Model:
    """Opens a model: an ONNX file, a checkpoint (official, timm, transformers, a run's) or a run folder.

    Args:
        model: where it is.
        device: ``auto``, ``cpu`` or ``cuda[:N]``; for ONNX files ``openvino`` or ``tensorrt[:N]`` too.
        threads: threads of this model, for decoding and for the network; 0 for all cores.
        outputs: ``"cls"``, ``"patch"``, ``"patch_mean"``, ``"reg"``, or several; side by side with a plus
            (``"cls+patch_mean"``). By default ``cls``, or else the first that there is.
        normalize: bring every vector to length 1.
        options: what the model's file does not say, under the names of the command's flags: ``resize`` (pixels of the
            shorter side, or ``(height, width)``), ``crop``, ``interpolation`` (``"bicubic"``, ``"bilinear"``), ``mean``,
            ``std`` (three numbers in [0, 1]), ``sample_range``, ``exif``, ``background``, ``max_pixels``, ``heads``, ``arch``,
            ``position_rule``, ``activation``, ``compute`` (``"f32"``, ``"bf16"``, ``"f16"``), ``ort_lib``.

    Raises:
        InputError: a file that is missing or no model, or a setting out of range.
        RunError: what the runtime says.
    """
    return Model(model, device, threads, outputs, normalize=normalize, **options)


class Model:
    """A model that is open. Made by :func:`load`, with its arguments.

    It may be used from several threads (one call runs at a time), pickled (by its path: the file must be where it was), and
    used after a fork, where it is opened again on the first call.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str = "auto",
        threads: int = 0,
        outputs: str | Sequence[str] | None = None,
        *,
        normalize: bool = False,
        **options: Any,
    ) -> None:
        names = [] if outputs is None else [outputs] if isinstance(outputs, str) else list(outputs)
        self.path = os.fspath(model)
        self._settings = {
            "device": device,
            "threads": threads,
            "outputs": names,
            "normalize": normalize,
            **{name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in options.items()},
        }
        self._model = _macula.Model(self.path, json.dumps(self._settings))
        #: Shape of one image's features by output: ``(D,)``, or ``(N, D)`` of patch tokens.
        self.outputs: dict[str, tuple[int, ...]] = {n: tuple(shape) for n, shape in self._model.outputs}
        #: Pixels to network input: ``resize``, ``crop``, ``interpolation``, ``mean``, ``std``.
        self.preprocess: dict[str, Any] = json.loads(self._model.preprocess)
        #: What the model is: kind, file, SHA-256, and what its file says of itself.
        self.description: dict[str, Any] = json.loads(self._model.description)

    @property
    def dim(self) -> int:
        """Width D of the first output."""
        return next(iter(self.outputs.values()))[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the network input, in pixels."""
        height, width = self.preprocess["crop"]
        return height, width

    @property
    def patch_size(self) -> int | None:
        """Side of a patch in pixels, where the file says; None where it does not."""
        return _find_patch_size(self.description)

    def embed(
        self, images: Images, batch_size: int = 32, *, on_error: str = "fail", verbose: bool = False
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Features of images.

        Args:
            images: one or a list of: a path, the bytes of an image file, a PIL image, a numpy array of uint8 ``[H, W, 3]``
                (``[H, W]`` is grey), a torch tensor of uint8 ``[3, H, W]``. Or one array of several: numpy uint8
                ``[n, H, W, 3]``, torch uint8 ``[n, 3, H, W]``. Floating-point arrays and tensors ``[n, 3, H, W]`` are network
                input already (resized, cropped and normalised) and go to the model as they are.
            batch_size: images per run of the model.
            on_error: ``"fail"`` raises at the first image that cannot be read; ``"null"`` gives it a row of NaN.
            verbose: a line on stderr at the end of the call that says how fast it was.

        Returns:
            float32 ``[n, D]``, ``[n, N, D]`` for patch tokens; with several outputs a dict of these by name. The numbers are those
            that ``macula extract`` writes for the same files, to the bit on the same number of threads.

        Raises:
            RunError: an image that cannot be read, by its path and row.
            InputError: images of a kind or shape that is not taken.
        """
        network_input = prepared(images)
        if network_input is not None:
            n = len(network_input)
            flat = self._model.run(given_array(network_input), batch_size) if n else [np.empty(0, np.float32)] * len(self.outputs)
        else:
            given = items(images)
            n = len(given)
            flat, failed = self._model.embed(given, batch_size, on_error)
            if verbose and failed:
                import sys

                print(f"{len(failed)} of {n} images failed, first {failed[0][1]}", file=sys.stderr)
        shaped = {name: np.asarray(values).reshape(n, *shape) for (name, shape), values in zip(self.outputs.items(), flat)}
        return shaped if len(shaped) > 1 else next(iter(shaped.values()))

    __call__ = embed

    def pixel_values(self, images: Images) -> np.ndarray:
        """What the network sees of images: float32 ``[n, 3, H, W]``, resized, cropped and normalised."""
        given = items(images)
        flat, (height, width) = self._model.pixel_values(given)
        return np.asarray(flat).reshape(len(given), 3, height, width)

    def with_outputs(self, outputs: str | Sequence[str]) -> Model:
        """The same model, opened for other outputs."""
        settings = {**self._settings, "outputs": outputs}
        return load(self.path, **settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (self.path, self._settings)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name} {list(shape)}" for name, shape in self.outputs.items())
        return f"macula.Model({self.path!r}, {outputs}, images {self.image_size[0]}x{self.image_size[1]})"

    def _repr_html_(self) -> str:
        rows = {
            "model": self.path,
            "outputs": ", ".join(f"{name} {list(shape)}" for name, shape in self.outputs.items()),
            "preprocess": json.dumps(self.preprocess),
        }
        cells = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"


def _load_again(path: str, settings: dict[str, Any]) -> Model:
    return load(path, **settings)


def _find_patch_size(description: dict[str, Any]) -> int | None:
    metadata = description.get("metadata") or {}
    found = metadata.get("macula.patch_size") or description.get("patch_size")
    if found is None and isinstance(description.get("config"), dict):
        found = description["config"].get("patch_size")
    return int(found) if found else None


def spec_of(model: Model | str | os.PathLike[str], settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a model is, and its own settings below ``settings``."""
    if isinstance(model, Model):
        return model.path, {**model._settings, **settings}
    if not isinstance(model, (str, os.PathLike)):
        raise make("setting", f"model: expected a Model or a path, found {type(model).__name__}")
    return os.fspath(model), settings
