#!/usr/bin/env python3
"""What an extraction survives: SIGKILL at random moments, shards, a full disk, a folder that cannot be written, a cut tar, a
missing shard; and whether its memory grows with the number of images.

    extract_survives.py MACULA MODEL SRC [--kills 10] [--work FOLDER] [--rows 1000 100000]

MODEL is an ONNX file or `pixels:gray`, SRC a source of at least some thousand images, for instance
idx:/usr/share/datasets/fashion-mnist#test. Prints one line a question and fails when an answer is wrong.

Needs: numpy, polars, pillow (for the images of the tars).
"""

import argparse
import io
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np
import polars
from PIL import Image

wrong = 0


def say(question, good, answer):
    global wrong
    wrong += not good
    print(f"{'ok   ' if good else 'WRONG'} {question}: {answer}", flush=True)


def command(arguments, source, out, *more):
    return [str(part) for part in (arguments.macula, "extract", "--model", arguments.model, "--data", source, "--out", out, *more)]


def rows(folder):
    parts = sorted(pathlib.Path(folder).rglob("part-*.parquet"))
    return polars.concat([polars.read_parquet(part) for part in parts]).sort("row")


def kills(arguments, work, whole):
    out, rng = work / "killed", random.Random(0)
    start = time.time()
    subprocess.run(command(arguments, arguments.source, work / "timed"), check=True, capture_output=True)
    seconds = time.time() - start
    killed = 0
    for number in range(arguments.kills):
        more = ("--resume",) if number else ()
        process = subprocess.Popen(command(arguments, arguments.source, out, *more), stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, seconds))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run(command(arguments, arguments.source, out, "--resume"), check=True, capture_output=True)
    found = rows(out)
    say(f"SIGKILL {killed} times in {arguments.kills} runs of up to {seconds:.1f} s, then resumed", found.equals(whole),
        f"{found.height} rows, {found['row'].n_unique()} different, {'equal' if found.equals(whole) else 'not equal'} to one run")


def shards(arguments, work, whole):
    for number in range(3):
        subprocess.run(command(arguments, arguments.source, work / "sharded", "--shard", f"{number}/3"), check=True,
                       capture_output=True)
    found = rows(work / "sharded")
    say("three shards read as one", found.equals(whole), f"{found.height} rows")


def refused(question, process, words):
    lines = [line for line in process.stderr.decode().splitlines() if line.startswith("error")]
    good = process.returncode != 0 and len(lines) == 1 and all(word in lines[0] for word in words)
    say(question, good, lines[0] if lines else process.stderr.decode()[-200:])


def full_disk(arguments, work):
    # A limit on the size of files is what a full disk is to a process, without a disk to fill.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)) or signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    process = subprocess.run(command(arguments, arguments.source, work / "full"), capture_output=True, preexec_fn=limit)
    refused("no room for a part", process, ["part-"])
    left = list((work / "full").rglob("*.tmp*")) if (work / "full").exists() else []
    say("no half-written part stays", not left, f"{len(left)} files")


def read_only(arguments, work):
    folder = work / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        print("     a folder that cannot be written: not tried, this user may write everywhere")
        return
    process = subprocess.run(command(arguments, arguments.source, folder / "features"), capture_output=True)
    refused("a folder that cannot be written", process, ["read-only"])


def tars(arguments, work):
    folder = work / "shards"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(3):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(40):
                data = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(data, "PNG")
                for name, content in ((f"{shard}{number:03d}.png", data.getvalue()), (f"{shard}{number:03d}.cls", b"1")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    spec = f"{folder}/{{000..002}}.tar"
    crop = ("--resize", "28", "--crop", "28")
    subprocess.run(command(arguments, spec, work / "of-tars", *crop), check=True, capture_output=True)
    say("three tars", rows(work / "of-tars").height == 120, f"{rows(work / 'of-tars').height} rows of 120")
    process = subprocess.run(command(arguments, f"{folder}/{{000..003}}.tar", work / "missing", *crop), capture_output=True)
    refused("a shard that is not there", process, ["003.tar"])
    cut = folder / "001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2 + 700])
    process = subprocess.run(command(arguments, spec, work / "cut", *crop), capture_output=True)
    refused("a tar cut in the middle", process, ["001.tar"])
    subprocess.run(command(arguments, spec, work / "cut-skip", *crop, "--on-error", "skip"), check=True, capture_output=True)
    count = rows(work / "cut-skip").height
    say("the same with --on-error skip", 80 < count < 120, f"{count} rows")


def memory(arguments, work):
    images = work / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    names = []
    for number in range(200):
        names.append(f"images/{number:03d}.png")
        Image.fromarray(rng.integers(0, 255, (28, 28, 3), np.uint8)).save(work / names[-1])
    peaks = []
    for count in arguments.rows:
        listing = work / f"list-{count}.csv"
        listing.write_text("path\n" + "\n".join(names[number % len(names)] for number in range(count)) + "\n")
        script = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
                  "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
        out = subprocess.run([sys.executable, "-c", script, *command(arguments, listing, work / f"memory-{count}", "--resize", "28",
                                                                     "--crop", "28")], check=True, capture_output=True, text=True)
        peaks.append(int(out.stdout.split()[-1]) / 1024)
    pairs = ", ".join(f"{count} images {peak:.0f} MB" for count, peak in zip(arguments.rows, peaks))
    # The list itself, its paths and one part of features may be held.
    say("memory", peaks[-1] < peaks[0] + 150, pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--rows", type=int, nargs=2, default=[1000, 100_000])
    arguments = parser.parse_args()
    arguments.macula = arguments.macula.resolve()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = pathlib.Path(folder)
        subprocess.run(command(arguments, arguments.source, work / "whole"), check=True, capture_output=True)
        whole = rows(work / "whole")
        kills(arguments, work, whole)
        shards(arguments, work, whole)
        full_disk(arguments, work)
        read_only(arguments, work)
        tars(arguments, work)
        memory(arguments, work)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
