//! What the server offers, in the form of OpenAPI 3.1.

use serde_json::{Value, json};

/// The document that `/openapi.json` gives.
pub(super) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "macula serve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Embeddings of images, and nearest neighbours in an index.",
        },
        "security": [{ "key": [] }],
        "paths": {
            "/v1/embeddings": { "post": {
                "operationId": "embeddings",
                "summary": "Features of one image or several",
                "requestBody": ask("EmbeddingsRequest", false),
                "responses": responses("Embeddings"),
            }},
            "/v1/search": { "post": {
                "operationId": "search",
                "summary": "The nearest rows of the index, by image or by vector",
                "requestBody": ask("SearchRequest", true),
                "responses": responses("Found"),
            }},
            "/v1/models": { "get": {
                "operationId": "models",
                "summary": "The models, their outputs and preprocessing",
                "responses": responses("Models"),
            }},
            "/v1/models/{id}": { "get": {
                "operationId": "model",
                "summary": "One model",
                "parameters": [parameter("id", "path", json!({ "type": "string" }))],
                "responses": responses("Model"),
            }},
            "/v1/index/images/{row}": { "get": {
                "operationId": "picture",
                "summary": "A small PNG of a row of the index, where its images are served",
                "parameters": [parameter("row", "path", json!({ "type": "integer", "minimum": 0 }))],
                "responses": { "200": { "description": "A picture", "content": { "image/png": {} } }, "default": problem() },
            }},
            "/health/live": open_route("Whether the process answers"),
            "/health/ready": open_route("Whether requests are taken: 503 while the server stops or a model is gone"),
            "/metrics": { "get": {
                "summary": "Numbers for Prometheus",
                "responses": { "200": { "description": "Numbers", "content": { "text/plain": {} } } },
            }},
            "/openapi.json": open_route("This document"),
        },
        "components": { "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } }, "schemas": schemas() },
    })
}

fn open_route(summary: &str) -> Value {
    json!({ "get": {
        "summary": summary,
        "security": [],
        "responses": { "200": { "description": "Yes", "content": { "application/json": {} } }, "default": problem() },
    }})
}

fn parameter(name: &str, place: &str, schema: Value) -> Value {
    json!({ "name": name, "in": place, "required": true, "schema": schema })
}

fn of(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn responses(schema: &str) -> Value {
    json!({
        "200": { "description": "Done", "content": { "application/json": { "schema": of(schema) } } },
        "default": problem(),
    })
}

fn problem() -> Value {
    json!({ "description": "What was wrong", "content": { "application/json": { "schema": of("Error") } } })
}

/// The three kinds of bodies.
fn ask(schema: &str, search: bool) -> Value {
    let mut fields = json!({
        "file": { "type": "array", "items": { "type": "string", "contentMediaType": "image/*" } },
        "model": { "type": "string" },
    });
    match search {
        true => fields["k"] = json!({ "type": "integer" }),
        false => {
            fields["output"] = json!({ "type": "string" });
            fields["encoding_format"] = of("Encoding");
        }
    }
    json!({ "required": true, "content": {
        "application/json": { "schema": of(schema) },
        "multipart/form-data": { "schema": { "type": "object", "properties": fields } },
        "image/*": { "schema": { "type": "string", "contentMediaType": "image/*" } },
    }})
}

fn schemas() -> Value {
    let image = json!({
        "description": "A file of an image: data:image/png;base64,.. or base64 alone",
        "type": "string",
    });
    let input = json!({
        "description": "One image or several",
        "oneOf": [of("Image"), { "type": "array", "items": of("Image") }],
    });
    let vector = json!({ "type": "array", "items": { "type": "number" } });
    json!({
        "Image": image,
        "Encoding": { "type": "string", "enum": ["float", "base64"], "default": "float" },
        "EmbeddingsRequest": { "type": "object", "required": ["input"], "additionalProperties": false, "properties": {
            "input": input,
            "model": { "type": "string", "description": "A name of /v1/models; the first where there is none" },
            "output": { "type": "string", "description": "An output of the model: cls, patch_mean, patch, ..; the first where there is none" },
            "encoding_format": of("Encoding"),
            "dimensions": { "type": "integer", "description": "Refused unless it is the output's width" },
            "user": { "type": "string", "description": "Not used" },
        }},
        "Embeddings": { "type": "object", "properties": {
            "object": { "const": "list" },
            "model": { "type": "string" },
            "output": { "type": "string" },
            "data": { "type": "array", "items": { "type": "object", "properties": {
                "object": { "const": "embedding" },
                "index": { "type": "integer" },
                "embedding": { "description": "Numbers, or base64 of f32, little endian", "oneOf": [vector, { "type": "string" }] },
                "shape": { "description": "Rows and columns of an output of tokens", "type": "array", "items": { "type": "integer" } },
            }}},
            "usage": { "type": "object" },
        }},
        "SearchRequest": { "type": "object", "additionalProperties": false, "properties": {
            "input": input,
            "vector": { "description": "A vector, or a list of them", "type": "array" },
            "k": { "type": "integer", "minimum": 1, "maximum": 1000, "default": 10 },
            "model": { "type": "string" },
        }},
        "Found": { "type": "object", "properties": {
            "object": { "const": "list" },
            "model": { "type": ["string", "null"] },
            "data": { "type": "array", "items": { "type": "object", "properties": {
                "object": { "const": "neighbours" },
                "index": { "type": "integer" },
                "hits": { "type": "array", "items": { "type": "object", "properties": {
                    "row": { "type": "integer" },
                    "path": { "type": "string" },
                    "label": { "type": ["string", "null"] },
                    "similarity": { "type": "number", "description": "Cosine, -1 to 1" },
                }}},
            }}},
        }},
        "Models": { "type": "object", "properties": { "data": { "type": "array", "items": of("Model") } } },
        "Model": { "type": "object", "properties": {
            "id": { "type": "string" },
            "outputs": { "type": "array", "items": { "type": "object", "properties": {
                "name": { "type": "string" },
                "shape": { "type": "array", "items": { "type": "integer" } },
            }}},
            "image_size": { "type": "array", "items": { "type": "integer" } },
            "preprocess": { "type": "object" },
        }},
        "Error": { "type": "object", "properties": { "error": { "type": "object", "properties": {
            "message": { "type": "string" },
            "type": { "type": "string" },
            "param": { "type": ["string", "null"] },
            "code": { "type": "string" },
        }}}},
    })
}
