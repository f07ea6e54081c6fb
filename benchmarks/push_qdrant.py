#!/usr/bin/env python3
"""`macula index push` against Qdrant's own request models and local store, behind the REST calls that it makes.

    cargo build --release --locked --features push
    python3 -m venv venv && venv/bin/pip install qdrant-client polars
    venv/bin/python benchmarks/push_qdrant.py target/release/macula

A server on this machine reads the bodies with `qdrant_client.http.models`, which refuse a field that they don't know, and hands them to the
client's local mode. What the store then holds and finds is compared with `macula index query`. Prints one line a question and fails when
an answer is wrong.
"""

import argparse
import http.server
import json
import pathlib
import subprocess
import sys
import tempfile
import threading

import numpy as np
import polars
from qdrant_client import QdrantClient
from qdrant_client.http import models

wrong = 0


def say(question, good, answer):
    global wrong
    wrong += not good
    print(f"{'ok   ' if good else 'WRONG'} {question}: {answer}", flush=True)


class Store(http.server.BaseHTTPRequestHandler):
    """Qdrant's REST calls that a push needs, by its client's local mode."""

    client = QdrantClient(":memory:")
    asked = []

    def answer(self, status, body):
        text = json.dumps({**body, "time": 0.0}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def result(self, method, name, below, body):
        if (method, below) == ("GET", "exists"):
            return {"exists": self.client.collection_exists(name)}
        if (method, below) == ("DELETE", ""):
            return self.client.delete_collection(name)
        if (method, below) == ("PUT", ""):
            made = models.CreateCollection.model_validate_json(body)
            return self.client.create_collection(name, vectors_config=made.vectors)
        if (method, below) == ("PUT", "points?wait=true"):
            points = models.PointsList.model_validate_json(body).points
            return self.client.upsert(name, points).model_dump(mode="json")
        raise KeyError(f"{method} {below}")

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _, _, name, *below = self.path.split("/", 3)
        self.asked.append((self.command, self.path))
        try:
            self.answer(200, {"result": self.result(self.command, name, "".join(below), body), "status": "ok"})
        except KeyError as error:
            self.answer(404, {"status": {"error": str(error)}})
        except ValueError as error:
            self.answer(400, {"status": {"error": " ".join(str(error).split())}})

    do_GET = do_PUT = do_DELETE = handle_any

    def log_message(self, *_):
        pass


def run(macula, *words):
    return subprocess.run([macula, *map(str, words)], capture_output=True, text=True)


def succeeds(macula, *words):
    done = run(macula, *words)
    if done.returncode != 0:
        sys.exit(f"macula {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def refused(question, done, code, *words):
    lines = done.stderr.strip().splitlines()
    say(question, done.returncode == code and len(lines) == 1 and all(word in lines[0] for word in words), lines[-1] if lines else done.stdout)


def rows_of(folder):
    return polars.concat([polars.read_parquet(part) for part in sorted(folder.glob("part-*.parquet"))])


def check(macula, address, work):
    client, to = Store.client, f"qdrant://{address}/photos"
    pool, queries = work / "pool", work / "queries"
    succeeds(macula, "extract", "--model", "hog", "--data", "sample:train", "--out", pool)
    succeeds(macula, "extract", "--model", "hog", "--data", "sample:test", "--out", queries)
    said = json.loads(succeeds(macula, "index", "push", "--features", pool, "--to", to, "--json"))
    rows = rows_of(pool)
    say("every row is a point", client.count("photos").count == said["count"] == rows.height, f"{said['count']} points, {len(Store.asked)} requests")

    vectors = np.array(rows[said["column"]].to_list(), np.float32)
    points = client.retrieve("photos", rows["row"].to_list(), with_payload=True, with_vectors=True)
    by_id = {point.id: point for point in points}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = max(float(np.abs(np.array(by_id[row].vector) - unit[i]).max()) for i, row in enumerate(rows["row"]))
    named = all(by_id[row].payload == {"path": path, "label": label} for row, path, label in rows.select("row", "path", "label").iter_rows())
    say("ids are rows, payloads path and label", named, f"{len(by_id)} points")
    say("vectors are the features at length 1", apart < 1e-6, f"{apart:.1e} apart at most")

    succeeds(macula, "index", "build", "--features", pool, "--out", work / "index")
    succeeds(macula, "index", "query", "--index", work / "index", "--features", queries, "--k", 1, "--out", work / "hits.parquet")
    hits = polars.read_parquet(work / "hits.parquet").sort("query")
    asked = np.array(rows_of(queries)[said["column"]].to_list(), np.float32)
    found = [client.query_points("photos", query.tolist(), limit=1).points[0] for query in asked]
    same = sum(point.id == row for point, row in zip(found, hits["row"]))
    near = max(abs(point.score - similarity) for point, similarity in zip(found, hits["similarity"]))
    say("the nearest is that of `macula index query`", same == len(found) and near < 1e-5, f"{same} of {len(found)}, scores {near:.1e} apart at most")

    succeeds(macula, "index", "push", "--features", pool, "--to", to)
    say("the same rows again", client.count("photos").count == rows.height, f"{client.count('photos').count} points")
    succeeds(macula, "index", "push", "--features", queries, "--to", to, "--force")
    say("--force makes it anew", client.count("photos").count == len(found), f"{client.count('photos').count} points")

    succeeds(macula, "extract", "--model", "pixels", "--data", "sample:test", "--out", work / "pixels")
    refused("another width", run(macula, "index", "push", "--features", work / "pixels", "--to", to), 1, to, "status 400")
    refused("no server", run(macula, "index", "push", "--features", queries, "--to", "qdrant://127.0.0.1:1/photos"), 1, "127.0.0.1:1", "refused")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    arguments = parser.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        check(arguments.macula, f"127.0.0.1:{server.server_port}", pathlib.Path(folder))
    server.shutdown()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
