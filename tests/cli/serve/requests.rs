//! What good requests get: in every form the same, and what `extract` writes, to the bit.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use macula::extract::FeatureFolder;
use serde_json::{Value, json};

use super::client::Server;
use super::{data_uri, model, png};
use crate::harness::{Workspace, golden};

fn floats(value: &Value) -> Vec<f32> {
    let list = value.as_array().expect("a list").iter();
    list.map(|number| number.as_f64().expect("a number") as f32)
        .collect()
}

fn decoded(text: &Value) -> Vec<f32> {
    let bytes = STANDARD.decode(text.as_str().expect("text")).expect("base64");
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

#[test]
fn an_image_has_in_every_form_the_bits_that_extract_writes() {
    let w = Workspace::new();
    let images: Vec<Vec<u8>> = (0..5).map(|number| png(&w, number)).collect();
    let checkpoint = golden("official_plain.safetensors").display().to_string();
    w.succeeds(&format!(
        "export {checkpoint} --heads 3 --image-size 28 --outputs cls,patch,patch_mean --out m.onnx"
    ));
    let open = "--resize 28 --crop 28 --device cpu --threads 2";
    for (name, file) in [
        ("onnx", "m.onnx".to_owned()),
        ("candle", format!("{checkpoint} --heads 3")),
    ] {
        w.succeeds(&format!(
            "extract --model {file} --data images --out {name} --output cls,patch_mean,patch --batch 1 {open}"
        ));
        let folder = FeatureFolder::open(&w.path(name)).expect("complete");
        let read = |column: &str| folder.read(column).expect("read").matrix;
        let (cls, patch) = (read("cls"), read("patch"));
        let server = Server::start(&w, &format!("--model {file} {open}"));
        for (row, image) in images.iter().enumerate() {
            let expected = cls.view().row(row);
            let one = server
                .post("/v1/embeddings", &json!({ "input": data_uri(image) }))
                .ok();
            assert_eq!(one["object"], "list");
            assert_eq!(one["data"][0]["object"], "embedding");
            assert_eq!(one["data"][0]["index"], 0);
            assert_eq!(one["usage"], json!({ "prompt_tokens": 0, "total_tokens": 0 }));
            assert_eq!(floats(&one["data"][0]["embedding"]), expected, "{name} {row}");
            let plain = json!({ "input": [STANDARD.encode(image)], "encoding_format": "base64", "dimensions": expected.len() });
            let plain = server.post("/v1/embeddings", &plain).ok();
            assert_eq!(decoded(&plain["data"][0]["embedding"]), expected);
            let raw = server
                .request("POST", "/v1/embeddings", &[("Content-Type", "image/png")], image)
                .ok();
            assert_eq!(floats(&raw["data"][0]["embedding"]), expected);
            let form = [
                b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n"
                    .as_slice(),
                image,
                b"\r\n--b\r\nContent-Disposition: form-data; name=\"output\"\r\n\r\npatch\r\n--b--\r\n",
            ]
            .concat();
            let content_type = [("Content-Type", "multipart/form-data; boundary=b")];
            let tokens = server
                .request("POST", "/v1/embeddings", &content_type, &form)
                .ok();
            assert_eq!(floats(&tokens["data"][0]["embedding"]), patch.view().row(row));
            let width = expected.len();
            assert_eq!(
                tokens["data"][0]["shape"],
                json!([patch.view().dim() / width, width])
            );
            assert_eq!(tokens["output"], "patch");
        }
        // Several at once, in their order.
        let all: Vec<String> = images.iter().map(|image| data_uri(image)).collect();
        let several = server.post("/v1/embeddings", &json!({ "input": all })).ok();
        assert_eq!(several["data"].as_array().expect("a list").len(), images.len());
        for (row, entry) in several["data"].as_array().expect("a list").iter().enumerate() {
            assert_eq!(entry["index"], row);
            let expected = cls.view().row(row);
            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (found, expected) in floats(&entry["embedding"]).iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= 1e-5 * largest,
                    "{name} {row}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn models_are_listed_and_chosen_by_name() {
    let w = Workspace::new();
    let image = data_uri(&png(&w, 0));
    let second = golden("official_plain.safetensors").display().to_string();
    let server = Server::start(
        &w,
        &format!("{} --model other={second} --output patch_mean,cls", model()),
    );
    let models = server.get("/v1/models").ok();
    let ids: Vec<&str> = models["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|m| m["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids, ["tiny", "other"]);
    let one = server.get("/v1/models/other").ok();
    assert_eq!(one["outputs"][0]["name"], "patch_mean");
    assert_eq!(one["image_size"], json!([28, 28]));
    assert_eq!(one["preprocess"]["crop"], json!([28, 28]));
    assert_eq!(server.get("/v1/models/third").error(404).0, "model_not_found");
    let ask = |model: &str, output: &str| {
        let body = json!({ "input": image, "model": model, "output": output });
        server.post("/v1/embeddings", &body).ok()
    };
    let (a, b) = (ask("tiny", "cls"), ask("other", "cls"));
    assert_eq!((&a["model"], &b["model"]), (&"tiny".into(), &"other".into()));
    assert_eq!(a["data"], b["data"]);
    assert_ne!(ask("tiny", "patch_mean")["data"], a["data"]);
    let first = server.post("/v1/embeddings", &json!({ "input": image })).ok();
    assert_eq!(
        (&first["model"], &first["output"]),
        (&"tiny".into(), &"patch_mean".into())
    );
    w.fails(
        2,
        &format!("serve {} --model tiny={second} --port 0", model()),
        &["--model", "tiny", "twice"],
    );
    w.fails(
        2,
        "serve --model none.onnx --port 0",
        &["none.onnx", "no such file"],
    );
    w.fails(
        2,
        "serve --model pixels --port 0",
        &["pixels", "an ONNX file or a checkpoint"],
    );
    w.fails(
        2,
        &format!("serve {} --output cls,depth --port 0", model()),
        &["depth"],
    );
}

#[test]
fn the_index_is_searched_by_image_and_by_vector() {
    let w = Workspace::new();
    let images: Vec<Vec<u8>> = (0..6).map(|number| png(&w, number)).collect();
    let checkpoint = golden("official_plain.safetensors").display().to_string();
    let open = "--heads 3 --resize 28 --crop 28 --device cpu";
    w.succeeds(&format!(
        "extract --model {checkpoint} --data images --out f {open}"
    ));
    w.succeeds("index build --features f --out i");
    let server = Server::start(&w, &format!("{} --index i --index-images images", model()));
    assert!(!server.log().contains("were made"), "{}", server.log());
    let found = server
        .post("/v1/search", &json!({ "input": data_uri(&images[4]), "k": 3 }))
        .ok();
    let hits = found["data"][0]["hits"].as_array().expect("hits");
    assert_eq!(hits.len(), 3);
    assert_eq!(
        (&hits[0]["row"], &hits[0]["path"]),
        (&4.into(), &"004.png".into())
    );
    assert!(hits[0]["similarity"].as_f64().expect("a number") > 0.99999);
    assert_eq!(found["model"], "tiny");
    let vector = server
        .post("/v1/embeddings", &json!({ "input": data_uri(&images[2]) }))
        .ok();
    let vector = vector["data"][0]["embedding"].clone();
    let found = server
        .post("/v1/search", &json!({ "vector": vector, "k": 1 }))
        .ok();
    assert_eq!(found["data"][0]["hits"][0]["row"], 2);
    assert_eq!(found["model"], Value::Null);
    let found = server
        .post("/v1/search", &json!({ "vector": [vector, vector] }))
        .ok();
    assert_eq!(found["data"].as_array().expect("a list").len(), 2);
    assert_eq!(found["data"][1]["hits"].as_array().expect("a list").len(), 6);
    let picture = server.get("/v1/index/images/4");
    assert_eq!(
        (picture.status, picture.header("content-type")),
        (200, Some("image/png"))
    );
    let picture = image::load_from_memory(&picture.body).expect("a PNG");
    assert_eq!((picture.width(), picture.height()), (40, 36));
    server.get("/v1/index/images/6").error(404);
    server.get("/v1/index/images/../../etc/passwd").error(404);
    for (body, param) in [
        (json!({ "vector": [1.0, 2.0] }), "vector"),
        (json!({ "vector": vector, "k": 0 }), "k"),
        (json!({ "vector": vector, "k": 7 }), "k"),
        (
            json!({ "vector": vector, "input": data_uri(&images[0]) }),
            "vector",
        ),
        (json!({ "vector": vector, "output": "cls" }), "output"),
        (json!({}), "input"),
    ] {
        assert_eq!(
            server.post("/v1/search", &body).error(400).1.as_deref(),
            Some(param),
            "{body}"
        );
    }
    let no_index = Server::start(&w, &model());
    assert_eq!(
        no_index
            .post("/v1/search", &json!({ "vector": vector }))
            .error(404)
            .0,
        "no_index"
    );
    w.fails(
        2,
        &format!("serve {} --index f --port 0", model()),
        &["f", "index folder"],
    );
}

#[test]
fn pages_documents_and_numbers_are_there() {
    let w = Workspace::new();
    let server = Server::start(&w, &format!("{} --log-format json", model()));
    for (path, content_type, word) in [
        ("/", "text/html", "Drop an image"),
        ("/docs", "text/html", "/v1/embeddings"),
        ("/openapi.json", "application/json", "EmbeddingsRequest"),
        ("/metrics", "text/plain", "macula_ready 1"),
        ("/health/live", "application/json", "live"),
        ("/health/ready", "application/json", "ready"),
    ] {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(
            reply
                .header("content-type")
                .expect("a type")
                .starts_with(content_type),
            "{path}"
        );
        assert!(String::from_utf8_lossy(&reply.body).contains(word), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
    assert!(
        server
            .get("/")
            .header("content-security-policy")
            .expect("a policy")
            .contains("default-src 'none'")
    );
    assert_eq!(server.request("HEAD", "/health/live", &[], b"").status, 200);
    server.get("/v1/nothing").error(404);
    server.get("/v1/embeddings").error(405);

    // An id of the client's is used, and nothing of the image is logged.
    let image = png(&w, 0);
    let headers = [("Content-Type", "image/png"), ("X-Request-Id", "mine-7")];
    let reply = server.request("POST", "/v1/embeddings", &headers, &image);
    assert_eq!(
        (reply.status, reply.header("x-request-id")),
        (200, Some("mine-7"))
    );
    server.wait_for("mine-7");
    let log = server.log();
    let line = log.lines().find(|line| line.contains("mine-7")).expect("a line");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(
        (&line["route"], &line["status"]),
        (&"/v1/embeddings".into(), &200.into())
    );
    assert!(!log.contains("PNG") && !log.contains("base64"), "{log}");
    assert_eq!(server.metric("macula_images_total"), 1.0);
    assert_eq!(
        server.metric("macula_requests_total{route=\"/v1/embeddings\",code=\"200\"}"),
        1.0
    );
    assert_eq!(server.metric("macula_queued_images"), 0.0);
}
