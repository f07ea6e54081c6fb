"""Load on `macula serve` over loopback, with nothing but Python's standard library.

    python benchmarks/serve_load.py --macula target/release/macula --model vits14.onnx --data photos/

Starts a server, posts the images of a folder as they are on 1, 16, 64 and 400 connections that stay open, and prints requests a second with
their 50th and 99th percentile, also as a share of what `macula bench extract` makes of the same images on the same cores just before, all of it
as many times as --rounds says. Client and server share the cores; the client is a process of its own and costs a few hundredths of one.

    .. --hostile 600

mixes good requests with bad ones of many kinds for so many seconds, and prints the server's memory and open descriptors as it goes. Every good
request must be answered with 200 and the same features as before, memory may grow by a tenth and 16 MiB after the first tenth of the time, and
descriptors must be as before when all clients are gone.

    .. --stop

sends the server SIGTERM in the middle of load on 64 connections, as many times as --rounds says. Every request on a connection that the server
took must be answered, and the server must end with 0.

Arguments behind `--` are given to the server and to the benchmark: `-- --threads 2`.
"""

import argparse
import asyncio
import base64
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time


def start(macula, model, more):
    process = subprocess.Popen(
        [macula, "serve", "--model", f"m={model}", "--port", "0", "--log-format", "none", *more],
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline().strip()
    if not line.startswith("http://"):
        sys.exit(f"the server does not start: {line}")
    host, port = line.removeprefix("http://").rsplit(":", 1)
    return process, host, int(port)


def stop(process):
    process.terminate()
    process.wait()


def head(path, length, kind):
    return (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()
    )


async def answer(reader):
    """Status and body of one answer, or status 0 where the connection ended."""
    try:
        start = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b"", True
    lines = start.decode("latin1").lower().split("\r\n")
    status = int(lines[0].split()[1])
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    try:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b"", True
    return status, body, headers.get("connection") == "close"


async def client(host, port, requests, until, times, statuses):
    """Sends one request after another until the time is over; connects again where the server closed."""
    reader = writer = None
    while time.perf_counter() < until:
        if writer is None:
            reader, writer = await asyncio.open_connection(host, port)
        begun = time.perf_counter()
        try:
            writer.write(random.choice(requests))
            await writer.drain()
            status, _, closed = await answer(reader)
        except ConnectionError:
            status, closed = 0, True
        statuses[status] = statuses.get(status, 0) + 1
        if status == 200:
            times.append(time.perf_counter() - begun)
        elif status == 429:
            await asyncio.sleep(0.05)
        if closed:
            writer.close()
            reader = writer = None
    if writer is not None:
        writer.close()


async def load(host, port, requests, connections, seconds):
    times, statuses = [], {}
    begun = time.perf_counter()
    clients = [client(host, port, requests, begun + seconds, times, statuses) for _ in range(connections)]
    await asyncio.gather(*clients)
    took = time.perf_counter() - begun
    times.sort()
    at = lambda share: 1e3 * times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")
    return len(times) / took, at(0.5), at(0.99), statuses


def bench(macula, model, data, more):
    done = subprocess.run(
        [macula, "bench", "extract", "--model", model, "--data", data, "--images", "1000000", "--json", *more],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout)["rows"]
    return next(row["images_per_second"] for row in rows if row["stage"] == "whole")


def resident(pid):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def descriptors(pid):
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


def hostile_requests(image):
    """Bytes that no client should send, each for a connection of its own."""
    text = base64.b64encode(image).decode()
    as_json = lambda value: (lambda body: head("/v1/embeddings", len(body), "application/json") + body)(
        value if isinstance(value, bytes) else json.dumps(value).encode()
    )
    as_image = lambda body: head("/v1/embeddings", len(body), "image/png") + body
    as_form = lambda body: head("/v1/embeddings", len(body), "multipart/form-data; boundary=b") + body
    return [
        as_json(b""), as_json(b"{"), as_json(b"[]"), as_json(b"\xff\xfe"), as_json(b'{"input":' + b"[" * 20000),
        as_json({}), as_json({"input": []}), as_json({"input": 5}), as_json({"input": [1, 2]}), as_json({"input": [None]}),
        as_json({"input": "a photo of a cat"}), as_json({"input": ""}), as_json({"input": "data:image/png;base64,@@"}),
        as_json({"input": "http://127.0.0.1/"}), as_json({"input": "data:text/plain;base64,AAAA"}),
        as_json({"input": text[: len(text) // 2]}), as_json({"input": [text] * 65}), as_json({"inputs": text}),
        as_json({"input": text, "model": "none"}), as_json({"input": text, "output": "none"}),
        as_json({"input": text, "dimensions": 3}), as_json({"input": text, "encoding_format": "f64"}),
        as_image(b""), as_image(b"GIF89a"), as_image(image[: len(image) // 3]), as_image(image[:-9]),
        as_image(image[:100] + bytes(random.randrange(256) for _ in range(len(image) - 100))),
        as_form(b""), as_form(b"--b\r\n"), as_form(b"--b\r\n\r\nx\r\n--b--"),
        head("/v1/embeddings", 10, "text/plain") + b"0123456789",
        head("/v1/embeddings", 1 << 40, "image/png"),
        head("/v1/embeddings", len(image), "image/png") + image[:50],
        b"GET / HTTP/1.1\r\nHost: a\r\nX-", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\0" * 1000, b"",
        b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ]


async def attacker(host, port, kinds, until):
    while time.perf_counter() < until:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(random.choice(kinds))
            await writer.drain()
            # Some leave at once, some wait for what comes.
            patience = random.choice([0.0, 0.05, 1.0])
            await asyncio.wait_for(reader.read(65536), patience)
        except (ConnectionError, asyncio.TimeoutError):
            pass
        finally:
            writer.close()


async def faithful(host, port, request, until, counts):
    """A client whose requests are good: every one is answered, and always the same."""
    expected = None
    reader, writer = await asyncio.open_connection(host, port)
    while time.perf_counter() < until:
        writer.write(request)
        await writer.drain()
        status, body, closed = await answer(reader)
        if status == 429:
            counts["busy"] += 1
            await asyncio.sleep(1)
        elif status != 200:
            counts["lost"] += 1
        else:
            found = json.loads(body)["data"][0]["embedding"]
            expected = expected or found
            largest = max(map(abs, expected))
            same = all(abs(a - b) <= 1e-5 * largest for a, b in zip(found, expected))
            counts["good" if same else "wrong"] += 1
        if closed or status == 0:
            writer.close()
            reader, writer = await asyncio.open_connection(host, port)
    writer.close()


async def last_client(host, port, requests, counts):
    """Comes back for as long as somebody listens. A connection that ends before its first answer was never taken."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except ConnectionError:
            return
        closed, first = False, True
        while not closed:
            try:
                writer.write(random.choice(requests))
                await writer.drain()
                status, _, closed = await answer(reader)
            except ConnectionError:
                status, closed = 0, True
            if status or not first:
                counts["answered" if status in (200, 429) else "lost"] += 1
            first = False
        writer.close()


async def stopped_amid_load(process, host, port, requests, seconds):
    counts = {"answered": 0, "lost": 0}
    clients = asyncio.gather(*(last_client(host, port, requests, counts) for _ in range(64)))
    await asyncio.sleep(seconds / 2)
    before = counts["answered"]
    process.terminate()
    await clients
    code = await asyncio.to_thread(process.wait)
    print(f"{before} requests answered before SIGTERM, {counts['answered'] - before} after it, {counts['lost']} lost; exit code {code}")
    return counts["lost"] == 0 and code == 0


async def watch(pid, until, seconds, seen):
    while time.perf_counter() < until:
        await asyncio.sleep(seconds / 20)
        seen.append((resident(pid), descriptors(pid)))
        print(f"  {seen[-1][0]:8.1f} MiB, {seen[-1][1]} descriptors", flush=True)


async def hostile(host, port, pid, images, seconds):
    until, before = time.perf_counter() + seconds, descriptors(pid)
    counts, seen = {"good": 0, "wrong": 0, "lost": 0, "busy": 0}, []
    kinds = hostile_requests(images[0])
    print(f"{len(kinds)} kinds of bad requests, {seconds} s")
    await asyncio.gather(
        watch(pid, until, seconds, seen),
        *(faithful(host, port, head("/v1/embeddings", len(i), "image/jpeg") + i, until, counts) for i in images[:4]),
        *(attacker(host, port, kinds, until) for _ in range(12)),
    )
    await asyncio.sleep(3)
    later = seen[len(seen) // 10 :]
    print(f"good requests: {counts}")
    print(f"memory: {later[0][0]:.1f} MiB after a tenth, {later[-1][0]:.1f} MiB at the end, most {max(m for m, _ in later):.1f}")
    after = descriptors(pid)
    print(f"descriptors before anybody came: {before}, at the end, all clients gone: {after}")
    flat = later[-1][0] <= 1.1 * later[0][0] + 16 and after <= before + 2
    return flat and counts["wrong"] == counts["lost"] == 0 and counts["good"] > 0


def own_and_more(parser):
    """The options of this script, and the words behind `--`."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end]), words[end + 1 :]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--macula", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder of JPEG or PNG files")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--connections", default="1,16,64,400")
    parser.add_argument("--hostile", type=float, default=0)
    parser.add_argument("--stop", action="store_true")
    options, more = own_and_more(parser)
    files = sorted(p for p in pathlib.Path(options.data).rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    images = [path.read_bytes() for path in files[:256]]
    if not images:
        sys.exit(f"{options.data}: no JPEG or PNG")
    print(f"{len(images)} images, {statistics.mean(map(len, images)) / 1024:.1f} KiB each")
    requests = [head("/v1/embeddings", len(image), "image/jpeg") + image for image in images]
    if options.hostile:
        process, host, port = start(options.macula, options.model, more)
        try:
            done = asyncio.run(hostile(host, port, process.pid, images, options.hostile))
        finally:
            stop(process)
        sys.exit(0 if done else 1)
    if options.stop:
        well = True
        for _ in range(options.rounds):
            process, host, port = start(options.macula, options.model, more)
            try:
                well &= asyncio.run(stopped_amid_load(process, host, port, requests, options.seconds))
            finally:
                stop(process)
        sys.exit(0 if well else 1)
    print("| round | bench extract, images/s | connections | images/s | of bench extract | p50 ms | p99 ms | answers |")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        for connections in map(int, options.connections.split(",")):
            extract = bench(options.macula, options.model, options.data, more)
            process, host, port = start(options.macula, options.model, more)
            try:
                asyncio.run(load(host, port, requests, min(connections, 16), 2))
                rate, p50, p99, statuses = asyncio.run(load(host, port, requests, connections, options.seconds))
            finally:
                stop(process)
            answers = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            print(
                f"| {number} | {extract:.1f} | {connections} | {rate:.1f} | {rate / extract:.2f} | {p50:.0f} | {p99:.0f} | {answers} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
