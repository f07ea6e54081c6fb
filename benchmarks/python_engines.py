#!/usr/bin/env python3
"""Extracts in Ray or in Spark, one worker killed on the way, and compares the rows with those of macula alone.

    python_engines.py ray|spark MODEL.onnx FOLDER [--workers 2]
    python_engines.py images FOLDER [--count 4000]        writes JPEGs to extract

Workers write their process numbers to a folder; once one has begun its second batch it is ended by SIGKILL, and the engine computes
its rows again. Prints the time of both, how many workers there were, and whether the feature folders agree.

Needs: macula, pyarrow; ray, or pyspark, pandas and Java 17; pillow for `images`.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time

import numpy as np


def images(folder, count):
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize((160, 128), Image.BICUBIC).save(folder / f"{number:05}.jpg", quality=90)


def begun(workers):
    """Notes that this process has begun a batch."""
    with open(pathlib.Path(workers, str(os.getpid())), "a", encoding="ascii") as file:
        file.write("batch\n")


def kill_one(workers):
    """Ends the first worker that has begun its second batch."""
    while True:
        time.sleep(0.02)
        for note in workers.iterdir():
            if note.stat().st_size > len("batch\n"):
                os.kill(int(note.name), signal.SIGKILL)
                print(f"killed worker {note.name}", flush=True)
                return


def with_ray(arguments, workers, out):
    import ray

    import macula.ray

    class Noted(macula.ray.Extractor):
        def __call__(self, batch):
            begun(workers)
            return super().__call__(batch)

    # The folder of the package, where it is not installed.
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}
    ray.init(num_cpus=arguments.workers, include_dashboard=False, runtime_env=environment, log_to_driver=False)
    ready = time.monotonic()
    files = ray.data.read_binary_files(str(arguments.folder), include_paths=True)
    files.map_batches(
        Noted,
        fn_constructor_kwargs={"model": str(arguments.model), "device": "cpu"},
        batch_format="pyarrow",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=arguments.workers),
        num_cpus=1,
    ).write_parquet(str(out))
    return time.monotonic() - ready, ray.shutdown


def with_spark(arguments, workers, out):
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    from pyspark.sql import SparkSession

    import macula.spark

    # Four tries a task: a local Spark has one.
    spark = SparkSession.builder.master(f"local[{arguments.workers},4]").config("spark.sql.execution.arrow.maxRecordsPerBatch", 64)
    spark = spark.config("spark.ui.enabled", False).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    ready = time.monotonic()
    extract = macula.spark.extractor(str(arguments.model), threads=1, device="cpu")
    folder = str(workers)

    def noted(batches):
        def each():
            for batch in batches:
                begun(folder)
                yield batch

        return extract(each())

    files = spark.read.format("binaryFile").load(str(arguments.folder)).select("path", "content")
    files = files.repartition(4 * arguments.workers)
    files.mapInArrow(noted, macula.spark.schema(str(arguments.model))).write.parquet(str(out))
    return time.monotonic() - ready, spark.stop


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("ray", "spark"):
        engine = verbs.add_parser(verb)
        engine.add_argument("model", type=lambda text: pathlib.Path(text).resolve())
        engine.add_argument("folder", type=lambda text: pathlib.Path(text).resolve())
        engine.add_argument("--workers", type=int, default=2)
    make = verbs.add_parser("images")
    make.add_argument("folder", type=pathlib.Path)
    make.add_argument("--count", type=int, default=4000)
    arguments = parser.parse_args()
    if arguments.verb == "images":
        images(arguments.folder, arguments.count)
        return
    import macula

    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        start = time.monotonic()
        alone = macula.extract(arguments.folder, arguments.model, work / "alone", device="cpu")
        print(f"macula alone: {len(alone)} images in {time.monotonic() - start:.1f} s", flush=True)
        workers = work / "workers"
        workers.mkdir()
        threading.Thread(target=kill_one, args=(workers,), daemon=True).start()
        took, end = (with_ray if arguments.verb == "ray" else with_spark)(arguments, workers, work / "rows")
        found = macula.collect(work / "rows", work / "features", model=macula.load(arguments.model, "cpu"))
        n_workers = len(list(workers.iterdir()))
        print(f"{arguments.verb}: {len(found)} rows in {took:.1f} s by {n_workers} workers, of which one was killed", flush=True)
        expected, features = alone.to_numpy(), found.to_numpy()
        names = [path.split("/")[-1] for path in found.paths]
        assert names == [path.split("/")[-1] for path in alone.paths], "rows are missing or twice"
        print(f"largest difference of a feature: {np.abs(expected - features).max():.2e}", flush=True)
        end()


if __name__ == "__main__":
    main()
