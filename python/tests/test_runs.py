"""Training, distillation and export with callbacks, and the command itself."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from conftest import command

import macula

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The least network of a recipe, as settings."""
    return {
        "batch_size": 8,
        "steps": 6,
        "image_size": 28,
        "local_size": 14,
        "backbone": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 7},
        "loss.head": {"hidden": 32, "bottleneck": 16, "prototypes": 64},
        "crops.local.count": 2,
        "monitor": {"log_every": 1},
    }


def _train(out, settings, **more):
    return macula.train("sample:test", out, set=settings, seed=1, **more)


def test_train_calls_back_and_export_follows(small, paths, tmp_path):
    lines = []
    run = _train(tmp_path / "run", small, on_step=lines.append)
    assert run.summary["finished"] and run.summary["step"] == 6
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and lines == run.metrics()
    assert "loss" in run.to_polars().columns and run.teacher.is_file()
    onnx = macula.export(run, tmp_path / "m.onnx")
    assert macula.load(onnx).embed(paths[:2]).shape[0] == 2
    with pytest.raises(macula.ExistsError):
        _train(tmp_path / "run", small)
    student = macula.distill(run.path, "sample:test", tmp_path / "student", set={"steps": 2, "batch_size": 8})
    assert student.summary["step"] == 2


def test_what_a_callback_raises_ends_the_run_with_a_checkpoint(small, tmp_path):
    class Enough(Exception):
        pass

    def stop(line):
        if line["step"] >= 3:
            raise Enough

    with pytest.raises(Enough):
        _train(tmp_path / "run", {**small, "steps": 500}, on_step=stop)
    assert (tmp_path / "run/checkpoints/last").exists()


def test_ctrl_c_ends_a_run_with_a_checkpoint(small, tmp_path):
    code = f"""
import macula
def told(line):
    print("step", flush=True)
try:
    macula.train("sample:test", {str(tmp_path / "run")!r}, set={ {**small, "steps": 5000}!r}, on_step=told)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.strip().splitlines()[-1] == "interrupted"
    assert (tmp_path / "run/checkpoints/last").exists()


def test_errors_of_verbs_are_exceptions(tmp_path):
    with pytest.raises(macula.InputError, match="--no-such"):
        macula.train("sample:test", tmp_path / "run", no_such=1)
    with pytest.raises(macula.InputError, match="no/such"):
        macula.export("no/such.pth", tmp_path / "m.onnx")


def test_the_command(onnx, tmp_path):
    version = command("--version")
    assert version.stdout.split() == ["macula", macula.__version__] and version.returncode == 0
    wrong = command("inspect", tmp_path / "none")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ")
    assert command("inspect", onnx).returncode == 0
