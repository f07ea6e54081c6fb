#!/usr/bin/env python3
"""Features of 4,000 images by Ray or Spark: with a worker killed while it computes, and with the whole job killed and started again.

    python3 -m venv ray && ray/bin/pip install 'ray[data]' pillow wheels/macula-*.whl
    ray/bin/python benchmarks/python_engines.py ray vit.onnx /usr/share/datasets/fashion-mnist

    python3 -m venv spark && spark/bin/pip install pyspark 'pandas<3' pyarrow pillow wheels/macula-*.whl     # and Java 17 or later
    spark/bin/python benchmarks/python_engines.py spark vit.onnx /usr/share/datasets/fashion-mnist

Any model of one output does. The one whose numbers docs/python.md has:

    macula train --data idx:/usr/share/datasets/fashion-mnist#train --out run --set steps=60 --set backbone.embed_dim=192 \\
        --set backbone.num_heads=3 --set backbone.depth=12
    macula export run --out vit.onnx --image-size 56 --outputs cls

The images are Fashion-MNIST's first, as PNGs in Parquet parts with row, path and label. Each job has two workers of one thread, which
note in a journal which rows they have begun and ended. A worker is killed (SIGKILL) between the two, when a third of the rows are done;
then its rows must have been begun again by another. In the second job the driver and all that it started are killed there, and a third
goes on with what lacks. Rows of every job are compared with those of `macula extract` on one thread; `macula eval knn` reads both.
Prints one line a question and fails when an answer is wrong.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# A whole number of batches in a part: then the model runs on the same batches as in one process, and its sums are the same to the bit.
BATCH, PART = 32, 160
WORKERS = 2

wrong = 0


def say(question, good, answer):
    global wrong
    wrong += not good
    print(f"{'ok   ' if good else 'WRONG'} {question}: {answer}", flush=True)


# The data


def write_parts(idx, split, count, folder):
    """The first `count` images of an IDX pair as Parquet: row, path, label, and the bytes of a PNG."""
    from PIL import Image

    pixels = np.frombuffer(gzip.decompress((idx / f"{split}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(gzip.decompress((idx / f"{split}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    folder.mkdir()
    for first in range(0, count, PART):
        rows = range(first, min(first + PART, count))
        images = []
        for row in rows:
            file = io.BytesIO()
            Image.fromarray(pixels[row]).convert("RGB").save(file, "PNG")
            images.append(file.getvalue())
        table = pa.table({
            "row": pa.array(rows, pa.int64()),
            "path": [f"{row:05}.png" for row in rows],
            "label": [str(labels[row]) for row in rows],
            "bytes": images,
        })
        pq.write_table(table, folder / f"part-{first // PART:05}.parquet")


# The jobs, each in a process of its own


@contextlib.contextmanager
def at_work(journal, rows):
    """Notes in the file of this process that it has begun `rows`, and that it has ended them."""
    first = rows[0].as_py()
    with open(pathlib.Path(journal, str(os.getpid())), "a", buffering=1) as notes:
        notes.write(f"begin {first}\n")
        yield
        notes.write(f"end {first}\n")


def ray_job(model, parts, out, journal):
    import ray
    from ray.data.checkpoint import CheckpointConfig

    import macula.ray

    class Watched(macula.ray.Extractor):
        def __call__(self, batch):
            with at_work(journal, batch.column("row")):
                return super().__call__(batch)

    # Two for the actors, as many for reading and writing.
    ray.init(num_cpus=2 * WORKERS, include_dashboard=False)
    # Blocks that are written are noted there, and left out by a job that is started again.
    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig("row", f"{out}-done", delete_checkpoint_on_success=False)
    # Files this small would be read as one block.
    ray.data.read_parquet(parts).repartition(target_num_rows_per_block=PART).map_batches(
        Watched,
        fn_constructor_kwargs={"model": model, "keep": ["row", "path", "label"], "batch_size": BATCH, "device": "cpu"},
        batch_format="pyarrow",
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
        num_cpus=1,
    ).write_parquet(out)


def spark_job(model, parts, out, journal):
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import input_file_name

    import macula.spark

    extract = macula.spark.extractor(model, "bytes", ["row", "path", "label"], threads=1, batch_size=BATCH, device="cpu")

    def watched(batches):
        for batch in batches:
            with at_work(journal, batch.column("row")):
                found = list(extract(iter([batch])))
            yield from found

    files = sorted(str(file) for file in pathlib.Path(parts).iterdir())
    spark = (
        # Four tries of a task: on one machine the default is one.
        SparkSession.builder.master(f"local[{WORKERS},4]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", BATCH)
        # A file a partition.
        .config("spark.sql.files.minPartitionNum", len(files))
        # A partition that is written stays when the job is killed.
        .config("spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version", "2")
        .getOrCreate()
    )
    if pathlib.Path(out).exists():
        rows = spark.read.parquet(*files).select("row", input_file_name().alias("file"))
        lacking = rows.join(spark.read.parquet(out), "row", "left_anti").select("file").distinct().collect()
        files = [row.file for row in lacking]
    schema = macula.spark.schema(model, "row bigint, path string, label string")
    spark.read.parquet(*files).mapInArrow(watched, schema).write.mode("append").parquet(out)


JOBS = {"ray": ray_job, "spark": spark_job}


class Job:
    """A job that runs, seen from outside by its journal."""

    def __init__(self, arguments, parts, out):
        self.journal = pathlib.Path(f"{out}-journal-{time.time_ns()}")
        self.journal.mkdir()
        self.log = out.with_suffix(".log")
        run = [sys.executable, __file__, arguments.engine, arguments.model, parts, "--job", out, self.journal]
        # Spark's workers would be the `python3` of the path; Ray's would give way to every other process of the machine.
        env = {**os.environ, "PYSPARK_PYTHON": sys.executable, "RAY_worker_niceness": "0"}
        self.begun = time.perf_counter()
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [str(word) for word in run], stdout=log, stderr=log, env=env, start_new_session=True
            )

    def notes(self):
        """Of each worker the rows that it began and ended, in order."""
        lines = {int(file.name): file.read_text().split("\n")[:-1] for file in self.journal.iterdir()}
        return {pid: [line.split() for line in found] for pid, found in lines.items()}

    def ended(self):
        return sum(line[0] == "end" for lines in self.notes().values() for line in lines)

    def wait_for_batches(self, count):
        while self.ended() < count:
            if self.process.poll() is not None:
                self.failed()
            time.sleep(0.02)

    def kill_worker(self):
        """Kills a worker that has begun a batch and not ended it; gives its number and the first row of that batch."""
        while True:
            for pid, lines in self.notes().items():
                if lines and lines[-1][0] == "begin":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        time.sleep(0.5)
                        last = self.notes()[pid][-1]
                        # It may have ended the batch before the signal came: then the next one.
                        if last[0] == "begin":
                            return pid, last[1]
            time.sleep(0.005)

    def kill(self):
        """Kills the driver; what it started ends with it, or is killed as well."""
        workers = list(self.notes())
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for _ in range(300):
            left = [pid for pid in workers if pathlib.Path(f"/proc/{pid}").exists()]
            if not left:
                return
            time.sleep(0.1)
        sys.exit(f"workers {left} go on 30 s after their driver was killed")

    def wait(self):
        """Seconds until it was done."""
        if self.process.wait() != 0:
            self.failed()
        return time.perf_counter() - self.begun

    def failed(self):
        sys.exit(f"{self.log.read_text()[-3000:]}\nthe job ended with {self.process.returncode} after {self.ended()} batches")


# What is asked of them


def macula_command(*words):
    done = subprocess.run([sys.executable, "-m", "macula", *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"macula {words[0]}: {done.stderr}")
    return done.stdout


def compare(name, rows, expected, model, work):
    """Whether what a job wrote is whole and the command's; its feature folder."""
    import macula

    folder = macula.collect(str(rows), work / f"{name}-features", model=model)
    whole = folder.rows.tolist() == list(range(len(expected))) and folder.labels == expected.labels
    say(f"{name}: every row once, with its label", whole, f"{len(folder)} rows in {len(list(rows.glob('*.parquet')))} parts")
    found, theirs = folder.to_numpy(), expected.to_numpy()
    equal = int((found.view(np.uint32) == theirs.view(np.uint32)).all(axis=1).sum()) if found.shape == theirs.shape else 0
    apart = float(np.abs(found - theirs).max()) if found.shape == theirs.shape else float("nan")
    say(f"{name}: the features of `macula extract`", equal == len(expected), f"{equal} rows equal to the bit, {apart:.1e} apart at most")
    return folder.path


def with_a_killed_worker(arguments, parts, work):
    job = Job(arguments, parts, work / "killed-worker")
    job.wait_for_batches(arguments.images // BATCH // 3)
    before = job.ended()
    pid, row = job.kill_worker()
    seconds = job.wait()
    again = [other for other, lines in job.notes().items() if other != pid and ["end", row] in lines]
    say("a worker killed at work", bool(again), f"process {pid}, {before} batches done, in its batch of row {row}, which {again} made anew; "
        f"{seconds:.0f} s in all, {len(job.notes())} workers")
    return work / "killed-worker"


def with_a_killed_job(arguments, parts, work):
    out = work / "killed-job"
    job = Job(arguments, parts, out)
    job.wait_for_batches(arguments.images // BATCH // 3)
    job.kill()
    kept = len(list(out.glob("*.parquet")))
    again = Job(arguments, parts, out)
    seconds = again.wait()
    batches = arguments.images // BATCH
    say("a job killed and started again", 0 < again.ended() < batches,
        f"{job.ended()} of {batches} batches before, {kept} parts kept, {again.ended()} batches after, {seconds:.0f} s")
    return out


def check(arguments, work):
    import macula

    parts, test = work / "parts", work / "test-parts"
    write_parts(arguments.source, "train", arguments.images, parts)
    write_parts(arguments.source, "t10k", 10 * BATCH * 3, test)
    features = {}
    for name, source in (("command", parts), ("test", test)):
        begun = time.perf_counter()
        macula_command("extract", "--model", arguments.model, "--data", f"{source}/*.parquet", "--out", work / name, "--device", "cpu",
                       "--batch", BATCH, "--threads", 1)
        features[name] = macula.FeatureFolder(work / name)
        print(f"      `macula extract` of {len(features[name])} images on one thread: {time.perf_counter() - begun:.0f} s")
    model = macula.load(arguments.model, "cpu", 1)
    folders = [work / "command"]
    for job in (with_a_killed_worker, with_a_killed_job):
        rows = job(arguments, parts, work)
        folders.append(compare(rows.name, rows, features["command"], model, work))
    scores = [json.loads(macula_command("eval", "knn", "--train", folder, "--test", work / "test", "--json"))["rows"] for folder in folders]
    say("`macula eval knn` reads them", all(rows == scores[0] for rows in scores), f"top1 {scores[0][0]['top1']:.4f} of all")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=JOBS)
    parser.add_argument("model", type=os.path.abspath, help="an ONNX file or a checkpoint of one output")
    parser.add_argument("source", type=pathlib.Path, help="the folder of Fashion-MNIST's IDX files")
    parser.add_argument("--images", type=int, default=4000, help=f"a multiple of {PART}")
    parser.add_argument("--work", type=pathlib.Path, help="where the folder for all files is made")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return JOBS[arguments.engine](arguments.model, str(arguments.source), *arguments.job)
    if arguments.images % PART:
        parser.error(f"--images: expected a multiple of {PART}, found {arguments.images}")
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        check(arguments, pathlib.Path(folder).resolve())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
