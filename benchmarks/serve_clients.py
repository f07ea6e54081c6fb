"""Real clients of `macula serve`: what they get beside what `macula extract --batch 1` writes, and how they hear of bad requests.

    pip install numpy polars openai langchain-openai llama-index-embeddings-openai-like
    npm install --prefix node openai
    python benchmarks/serve_clients.py --macula target/release/macula --model vits14.onnx --data photos/ --node node

Each client asks for the images of a folder one by one, and must get the very bits of the extraction, then for all of them at once, which may
differ by 1e-5 of the largest value. A file that is no image, a wrong key and an unknown model must each be the client's own kind of error.
A client that is not there is named and left out. Ends with 1 where something is not as it must be.

Arguments behind `--` are given to the server and to the extraction: `-- --threads 2`.
"""

import argparse
import base64
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import numpy as np
import polars

import serve_load

KEY = "a-key-for-the-clients"
#: The status of each bad request, and what OpenAI's clients call it.
ERRORS = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError"}

NODE = """
import OpenAI from "openai";
import fs from "node:fs";
const { url, key, model, input, encoding } = JSON.parse(fs.readFileSync(0));
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
try {
  const answer = await client.embeddings.create({ model, input, ...(encoding ? { encoding_format: encoding } : {}) });
  console.log(JSON.stringify({ vectors: answer.data.map((item) => item.embedding) }));
} catch (error) {
  console.log(JSON.stringify({ refused: error.constructor.name }));
}
"""


class Refused(Exception):
    """The kind of error that a client was given."""


def data_uri(path):
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def curl(address, key, words, more=b""):
    command = ["curl", "-s", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {key}", *words, address]
    body, status = subprocess.run(command, input=more, capture_output=True, check=True).stdout.rsplit(b"\n", 1)
    if status != b"200":
        raise Refused(int(status))
    return [item["embedding"] for item in json.loads(body)["data"]]


def curl_raw(url, key, model, paths):
    address = f"{url}/embeddings?model={model}"
    return [curl(address, key, ["-H", "Content-Type: image/jpeg", "--data-binary", f"@{path}"])[0] for path in paths]


def curl_form(url, key, model, paths):
    files = [word for path in paths for word in ("-F", f"file=@{path}")]
    return curl(f"{url}/embeddings", key, [*files, "-F", f"model={model}"])


def curl_json(url, key, model, paths):
    body = json.dumps({"model": model, "input": [data_uri(path) for path in paths]}).encode()
    return curl(f"{url}/embeddings", key, ["-H", "Content-Type: application/json", "--data-binary", "@-"], body)


def by_openai(call):
    """The vectors of `call`, with the errors of OpenAI's package, which langchain and llama-index pass on."""
    import openai

    try:
        return call()
    except openai.APIStatusError as error:
        raise Refused(type(error).__name__) from error


def openai_python(encoding):
    def ask(url, key, model, paths):
        import openai

        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        more = {"encoding_format": encoding} if encoding else {}
        made = by_openai(lambda: client.embeddings.create(model=model, input=[data_uri(path) for path in paths], **more))
        return [item.embedding for item in made.data]

    return ask


def openai_node(folder, encoding):
    def ask(url, key, model, paths):
        told = {"url": url, "key": key, "model": model, "input": [data_uri(path) for path in paths], "encoding": encoding}
        command = ["node", "--input-type=module", "--eval", NODE]
        done = subprocess.run(command, input=json.dumps(told), cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"node: {done.stderr}")
        answer = json.loads(done.stdout)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer["vectors"]

    return ask


def langchain(url, key, model, paths):
    from langchain_openai import OpenAIEmbeddings

    client = OpenAIEmbeddings(model=model, base_url=url, api_key=key, check_embedding_ctx_length=False, max_retries=0)
    return by_openai(lambda: client.embed_documents([data_uri(path) for path in paths]))


def llama_index(url, key, model, paths):
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    client = OpenAILikeEmbedding(model_name=model, api_base=url, api_key=key, max_retries=0)
    return by_openai(lambda: client.get_text_embedding_batch([data_uri(path) for path in paths]))


def clients(node):
    """Name, version (None where it is not there), how it asks, and whether it has OpenAI's errors."""

    def python(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    package = node and pathlib.Path(node) / "node_modules/openai/package.json"
    of_node = json.loads(package.read_text())["version"] if package and package.exists() else None
    of_curl = subprocess.run(["curl", "--version"], capture_output=True, text=True).stdout.split()[1]
    return [
        ("curl, raw body", of_curl, curl_raw, False),
        ("curl, form", of_curl, curl_form, False),
        ("curl, JSON", of_curl, curl_json, False),
        ("openai of Python", python("openai"), openai_python(None), True),
        ("the same, floats", python("openai"), openai_python("float"), True),
        ("openai of Node", of_node, openai_node(node, None), True),
        ("the same, floats", of_node, openai_node(node, "float"), True),
        ("langchain-openai", python("langchain-openai"), langchain, True),
        ("llama-index", python("llama-index-embeddings-openai-like"), llama_index, True),
    ]


def extracted(macula, model, data, output, more, folder):
    """Features of each image by its file's name."""
    command = [macula, "extract", "--model", model, "--data", data, "--output", output, "--batch", "1", "--out", folder, *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    frame = polars.concat([polars.read_parquet(part) for part in sorted(folder.glob("part-*.parquet"))])
    names = [pathlib.Path(path).name for path in frame["path"].to_list()]
    return dict(zip(names, np.array(frame[output].to_list(), np.float32)))


def refusals(ask, url, files, none, named):
    """What a client makes of each bad request that it should not, in words."""
    wrong = []
    for status, (key, model, path) in {
        400: (KEY, "m", none), 401: ("not-one-of-the-keys", "m", files[0]), 404: (KEY, "another", files[0]),
    }.items():
        expected = ERRORS[status] if named else status
        try:
            ask(url, key, model, [path])
            found = "an answer"
        except Refused as refused:
            found = refused.args[0]
        if found != expected:
            wrong.append(f"{found} for {expected}")
    return ", ".join(wrong)


def compare(url, files, expected, none, node):
    print("| client | version | one by one | all at once, of the largest value | bad requests |")
    print("|---|---|---|---|---|")
    well = True
    largest = np.abs(expected).max()
    for name, version, ask, named in clients(node):
        if version is None:
            print(f"| {name} | not installed | | | |")
            continue
        alone = np.array([ask(url, KEY, "m", [path])[0] for path in files], np.float32)
        same = (alone.view(np.uint32) == expected.view(np.uint32)).all(axis=1).sum()
        off = np.abs(np.array(ask(url, KEY, "m", files), np.float32) - expected).max() / largest
        wrong = refusals(ask, url, files, none, named)
        well &= same == len(files) and off <= 1e-5 and not wrong
        print(f"| {name} | {version} | {same} of {len(files)} to the bit | {off:.1e} | {wrong or 'told apart'} |", flush=True)
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--macula", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder of JPEG files")
    parser.add_argument("--images", type=int, default=16, help="the first of them")
    parser.add_argument("--node", help="folder in which npm installed openai")
    options, more = serve_load.own_and_more(parser)
    files = sorted(pathlib.Path(options.data).rglob("*.jpg"))[: options.images]
    if not files:
        sys.exit(f"{options.data}: no *.jpg")
    process, host, port = serve_load.start(options.macula, options.model, ["--api-key", KEY, *more])
    try:
        url = f"http://{host}:{port}/v1"
        request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {KEY}"})
        output = json.load(urllib.request.urlopen(request))["data"][0]["outputs"][0]["name"]
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            features = extracted(options.macula, options.model, options.data, output, more, folder / "features")
            none = folder / "none.jpg"
            none.write_bytes(b"this is no image")
            well = compare(url, files, np.array([features[path.name] for path in files]), none, options.node)
    finally:
        serve_load.stop(process)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    # Nobody but the server is asked.
    os.environ["NO_PROXY"] = "127.0.0.1"
    main()
