"""Images and a small network that the tests share."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import macula

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "models/tests/fixtures/hf_reg4"
N = 24


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEGs of two classes, in folders of their names."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(N):
        label = ("cat", "dog")[number % 2]
        (folder / label).mkdir(exist_ok=True)
        base = np.linspace(0, 255 if label == "cat" else 90, 60 * 80 * 3).reshape(60, 80, 3)
        pixels = np.clip(base + random.normal(0, 20, (60, 80, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / label / f"{number:02}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def paths(photos: Path) -> list[str]:
    """The images in the order of the source."""
    return sorted(str(path) for path in photos.glob("*/*.jpg"))


@pytest.fixture(scope="session")
def labels(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


@pytest.fixture(scope="session")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small network as ONNX, with class and patch tokens."""
    out = tmp_path_factory.mktemp("models") / "small.onnx"
    return str(macula.export(CHECKPOINT, out, outputs=["cls", "patch"]))


@pytest.fixture(scope="session")
def model(onnx: str) -> macula.Model:
    return macula.load(onnx, device="cpu")


@pytest.fixture(scope="session")
def folder(photos: Path, model: macula.Model, tmp_path_factory: pytest.TempPathFactory) -> macula.FeatureFolder:
    return macula.extract(photos, model, tmp_path_factory.mktemp("features") / "f")


def command(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    run = [sys.executable, "-m", "macula", *map(str, args)]
    return subprocess.run(run, capture_output=True, text=True, env={**os.environ, **env}, timeout=120)


def python(text: str, *args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own."""
    run = [sys.executable, "-c", text, *map(str, args)]
    return subprocess.run(run, capture_output=True, text=True, timeout=timeout)


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()
