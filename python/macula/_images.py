"""What users call images, as the module takes them: paths, bytes, or something whose ``tobytes()`` are pixels ``[H, W, 3]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ._errors import make

#: One image, or several.
Images = Any


def _is(value: Any, module: str, name: str) -> bool:
    """Whether ``value`` is of a class of a module, which is not imported for that."""
    loaded = sys.modules.get(module)
    kind = getattr(loaded, name, None)
    return kind is not None and isinstance(value, kind)


def _wrong(expected: str, found: str) -> Exception:
    return make("setting", f"images: expected {expected}, found {found}")


def _pixels(array: np.ndarray) -> tuple[np.ndarray, int, int]:
    """uint8 ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]`` as ``[H, W, 3]``, H and W; alpha is dropped."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise _wrong("uint8 pixels [H, W, 3] (or 1 or 4 channels)", f"shape {list(array.shape)}")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array[:, :, :3], array.shape[0], array.shape[1]


def _as_array(value: Any) -> tuple[np.ndarray, bool] | None:
    """An array or a tensor as numpy, and whether its channels come before height and width; None for anything else."""
    if isinstance(value, np.ndarray):
        return value, False
    if _is(value, "torch", "Tensor"):
        return value.detach().cpu().numpy(), True
    return None


def prepared(images: Images) -> np.ndarray | None:
    """Network input ``[n, 3, H, W]`` where ``images`` is a floating-point array or tensor; None for images."""
    found = _as_array(images)
    if found is None:
        if isinstance(images, (list, tuple)) and images and _as_array(images[0]) is not None:
            first = _as_array(images[0])
            if first is not None and np.issubdtype(first[0].dtype, np.floating):
                return prepared(np.stack([np.asarray(_as_array(one)[0]) for one in images]))  # type: ignore[index]
        return None
    array = found[0]
    if not np.issubdtype(array.dtype, np.floating):
        return None
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise _wrong("network input [n, 3, H, W] where numbers are floating-point", f"shape {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _of_array(array: np.ndarray, channels_first: bool) -> list[tuple[np.ndarray, int, int]]:
    if array.dtype != np.uint8:
        raise _wrong("uint8 pixels, or floating-point network input", f"{array.dtype}")
    if channels_first and array.ndim >= 3:
        array = np.moveaxis(array, -3, -1)
    if array.ndim == 4:
        return [_pixels(one) for one in array]
    return [_pixels(array)]


def _one(image: Any) -> Any:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, (bytes, bytearray)):
        return bytes(image) if isinstance(image, bytearray) else image
    if isinstance(image, memoryview):
        return image.tobytes()
    if _is(image, "PIL.Image", "Image"):
        rgb = image.convert("RGB")
        return rgb, rgb.height, rgb.width
    found = _as_array(image)
    if found is not None:
        made = _of_array(*found)
        if len(made) != 1:
            raise _wrong("one image in each place of a list", f"shape {list(found[0].shape)}")
        return made[0]
    raise _wrong("a path, bytes, a PIL image, a numpy array or a torch tensor", type(image).__name__)


def items(images: Images) -> list[Any]:
    """Images, one or several, as the module takes them."""
    found = _as_array(images)
    if found is not None and found[0].dtype.kind not in "OSU":
        return _of_array(*found)
    alone = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)) or _is(images, "PIL.Image", "Image")
    if alone:
        return [_one(images)]
    if not isinstance(images, Iterable):
        raise _wrong("images", type(images).__name__)
    return [_one(image) for image in images]


def given_array(array: np.ndarray) -> tuple[bytes, list[int]]:
    """float32 as the module takes it: its bytes, and its shape."""
    return np.asarray(array, dtype=np.float32).tobytes(), list(array.shape)
