#!/usr/bin/env python3
"""`macula serve` beside infinity with the same CLIP, in turn, over loopback.

    compare_serve.py MACULA FOLDER --infinity PYTHON [--rounds 3] [--seconds 10] [--connections 1 16 64] [--work FOLDER]

PYTHON has infinity:

    pip install 'infinity-emb[server,torch]' 'transformers<5' 'huggingface_hub<1' pillow torchvision timm aiohttp

The network is a CLIP ViT-B/32 with random weights (seed 0) as transformers saves it; infinity serves that folder with torch, in f32, and macula
what it exports from it. Both get the same requests, JSON with one image of the folder each, and run with as many threads as they take by
themselves; the other one is idle. Prints images a second with their 50th and 99th percentile, and how far the embeddings are apart: infinity
brings them to length 1, so macula's are too before they are compared.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import serve_load  # noqa: E402

#: How long infinity may take to start, in seconds.
PATIENCE = 180

#: Run by infinity's Python: the network, and a tokenizer of single characters, since CLIP's own has to be fetched.
MAKE = """
import json, pathlib, sys
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

out = pathlib.Path(sys.argv[1])
out.mkdir()
letters = list(bytes_to_unicode().values())
words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
(out / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
(out / "merges.txt").write_text("#version: 0.2\\n")
tokenizer = CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt"))
torch.manual_seed(0)
config = CLIPConfig(text_config={"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1})
CLIPModel(config).save_pretrained(out)
CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(out)
"""


def offline():
    """An environment in which infinity asks nobody for anything."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}


@contextlib.contextmanager
def infinity(python, model, log):
    """The port of a server that has opened `model`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [pathlib.Path(python).parent / "infinity_emb", "v2", "--model-id", model, "--served-model-name", "m", "--engine", "torch",
               "--device", "cpu", "--dtype", "float32", "--no-bettertransformer", "--url-prefix", "/v1", "--host", "127.0.0.1",
               "--port", str(port), "--log-level", "error"]
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=offline(), stdout=file, stderr=file)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"infinity does not start:\n{log.read_text()}")
            time.sleep(0.5)
        yield port
    finally:
        serve_load.stop(process)


def embedding(port, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/embeddings", body, {"Content-Type": "application/json"})
    found = json.load(urllib.request.urlopen(request))["data"][0]["embedding"]
    length = sum(value * value for value in found) ** 0.5
    return [value / length for value in found]


def apart(ports, bodies):
    """The largest difference of two embeddings of an image, and of two of macula's of different images."""
    ours, theirs = ([embedding(port, body) for body in bodies] for port in ports)
    off = lambda a, b: max(abs(x - y) for x, y in zip(a, b))
    return max(map(off, ours, theirs)), max(off(ours[0], other) for other in ours)


def measure(port, bodies, connections, seconds):
    requests = [serve_load.head("/v1/embeddings", len(body), "application/json") + body for body in bodies]
    asyncio.run(serve_load.load("127.0.0.1", port, requests, connections, 2))
    return asyncio.run(serve_load.load("127.0.0.1", port, requests, connections, seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--infinity", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--work", type=pathlib.Path)
    arguments = parser.parse_args()
    images = [path.read_bytes() for path in sorted(arguments.folder.rglob("*.jpg"))[:64]]
    uris = ["data:image/jpeg;base64," + base64.b64encode(image).decode() for image in images]
    bodies = [json.dumps({"model": "m", "modality": "image", "input": [uri]}).encode() for uri in uris]
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        work = pathlib.Path(temporary)
        subprocess.run([arguments.infinity, "-c", MAKE, work / "clip"], check=True, env=offline())
        subprocess.run([arguments.macula, "export", work / "clip", "--image-size", "224", "--outputs", "embedding", "--out", work / "clip.onnx"],
                       check=True, stdout=subprocess.DEVNULL)
        process, _, own = serve_load.start(arguments.macula, work / "clip.onnx", [])
        try:
            with infinity(arguments.infinity, work / "clip", work / "log") as other:
                compare({"macula": own, "infinity": other}, bodies, arguments)
        finally:
            serve_load.stop(process)


def compare(ports, bodies, arguments):
    off, spread = apart(ports.values(), bodies)
    print(f"{len(bodies)} images: embeddings of length 1 differ by {off:.1e} at most, those of two images by up to {spread:.1e}\n")
    print("| round | connections | server | images/s | p50 ms | p99 ms | answers |\n|---|---|---|---|---|---|---|")
    ratios = {connections: [] for connections in arguments.connections}
    for number in range(arguments.rounds):
        # Whoever comes first in one round comes last in the next.
        turns = list(ports.items())[:: -1 if number % 2 else 1]
        for connections in arguments.connections:
            rates = {}
            for name, port in turns:
                rates[name], p50, p99, statuses = measure(port, bodies, connections, arguments.seconds)
                answers = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
                print(f"| {number + 1} | {connections} | {name} | {rates[name]:.1f} | {p50:.0f} | {p99:.0f} | {answers} |", flush=True)
            ratios[connections].append(rates["macula"] / rates["infinity"])
    for connections, found in ratios.items():
        print(f"{connections} connections: macula / infinity {statistics.median(found):.2f} (rounds {', '.join(f'{r:.2f}' for r in found)})")


main()
