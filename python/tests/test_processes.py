"""Forks, spawns, signals, and a thousand models."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import python

import macula

_MODEL: macula.Model | None = None


def _embed_shared(path: str) -> np.ndarray:
    assert _MODEL is not None
    return _MODEL.embed(path)


def _embed_pickled(work: tuple[macula.Model, str]) -> np.ndarray:
    model, path = work
    return model.embed(path)


def test_a_fork_opens_the_model_again(model, paths):
    global _MODEL
    _MODEL = model
    expected = model.embed(paths, batch_size=1)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        found = np.concatenate(list(pool.map(_embed_shared, paths, timeout=100)))
    assert np.array_equal(found, expected)
    # The parent's is as it was.
    assert np.array_equal(model.embed(paths, batch_size=1), expected)


def test_a_fork_evaluates(folder):
    x, y = folder.to_numpy(), folder.labels
    expected = macula.knn(x, y, x, y, k=3).rows
    child = os.fork()
    if child == 0:
        same = macula.knn(x, y, x, y, k=3).rows == expected
        os._exit(0 if same else 1)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


def _features_of(path: Path) -> np.ndarray:
    return macula.FeatureFolder(path).to_numpy()


def _extract(photos: Path, model: str, out: Path) -> int:
    return len(macula.extract(photos, model, out))


def test_a_fork_of_a_process_that_wrote_reads_and_refuses_to_write(folder, photos, onnx, tmp_path):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        found = pool.submit(_features_of, folder.path).result(timeout=100)
        assert np.array_equal(found, folder.to_numpy())
        with pytest.raises(macula.RunError, match="found a fork of one that has written or trained already") as raised:
            pool.submit(_extract, photos, onnx, tmp_path / "f").result(timeout=100)
    # What was raised came through a pipe.
    assert raised.value.kind == "failed" and raised.value.exit_code == 1


def test_a_spawned_process_writes(photos, onnx, tmp_path):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_extract, photos, onnx, tmp_path / "f").result(timeout=100) == 24


def test_a_spawned_process_gets_a_pickled_model(model, paths):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_embed_pickled, (model, paths[0])).result(timeout=100)
    assert np.array_equal(found, model.embed(paths[0]))


class _Dataset:
    """For torch's DataLoader: embeds in the worker."""

    def __init__(self, model: macula.Model, paths: list[str]) -> None:
        self.model, self.paths = model, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.model.embed(self.paths[index])[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_data_loader_with_four_workers(onnx, paths, start):
    torch_data = pytest.importorskip("torch.utils.data")
    model = macula.load(onnx, threads=1)
    expected = model.embed(paths, batch_size=1)
    loader = torch_data.DataLoader(
        _Dataset(model, paths), batch_size=6, num_workers=4, multiprocessing_context=start, timeout=100
    )
    found = np.concatenate([batch.numpy() for batch in loader])
    assert np.array_equal(found, expected)


def test_ctrl_c_ends_a_long_embed(onnx, paths):
    code = f"""
import macula, sys, time
model = macula.load({onnx!r})
print("ready", flush=True)
begun = time.time()
try:
    model.embed({paths[:4]!r} * 200_000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    model.embed({paths[0]!r})
    print("goes on", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert out.split("\n")[:2] == ["interrupted", "goes on"]
    assert time.monotonic() - sent < 10


def test_a_thousand_models_leave_no_memory():
    # Of a network without ONNX Runtime: what is measured is this module's.
    from conftest import CHECKPOINT

    code = f"""
import macula, gc
def memory():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def threads():
    return int(next(line for line in open("/proc/self/status") if line.startswith("Threads")).split()[1])
def some(n):
    for _ in range(n):
        macula.load({str(CHECKPOINT)!r}, threads=1)
some(200)
before, threads_before = memory(), threads()
some(800)
print((memory() - before) >> 20, threads() - threads_before)
"""
    done = python(code)
    grown, threads = map(int, done.stdout.split())
    assert grown < 20 and threads < 8, done.stdout


def test_models_of_onnx_runtime_leave_no_memory(onnx):
    code = f"""
import macula
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def some(n):
    for _ in range(n):
        macula.load({onnx!r}, threads=1, device="cpu")
some(30)
before = memory()
some(120)
print((memory() - before) >> 20)
"""
    assert int(python(code).stdout) < 30


def test_onnx_runtime_keeps_no_records(onnx, paths, tmp_path):
    """Its makers' builds keep a number for the machine and what was run on it in the user's cache, unless they are asked not to."""
    code = f"import macula; macula.load({onnx!r}).embed({paths[0]!r})"
    said = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI"}
    env = {name: value for name, value in os.environ.items() if name not in said} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_other_threads_run_while_it_embeds(model, paths):
    import threading

    counted = 0
    ended = threading.Event()

    def count() -> None:
        nonlocal counted
        while not ended.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    begun = time.monotonic()
    model.embed(paths * 40)
    took = time.monotonic() - begun
    ended.set()
    thread.join()
    # With the lock held it would count once in the whole time.
    assert counted > 20 * took, (counted, took)
