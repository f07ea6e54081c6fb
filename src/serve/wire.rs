//! What requests ask for and how answers look. A body is JSON, a form or an image by itself; all three become an [`Ask`].

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use super::error::{ApiError, ApiResult};
use super::images::from_text;
use super::multipart;

/// The most images that any server takes in one request.
pub(super) const MOST_IMAGES: usize = 4096;
/// The most numbers in the vectors of one search.
const MOST_NUMBERS: usize = 1 << 22;

/// How a vector is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Base64 of f32, little endian.
    Base64,
}

/// What a request asks for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Ask {
    /// Files of images, in order.
    pub images: Vec<Vec<u8>>,
    /// Vectors to search for.
    pub vectors: Option<Vectors>,
    /// Name of a model; none for the first.
    pub model: Option<String>,
    /// Name of an output; none for the model's first.
    pub output: Option<String>,
    /// How vectors are written.
    pub encoding: Encoding,
    /// Width that is asked for.
    pub dimensions: Option<usize>,
    /// Neighbours that are asked for.
    pub k: Option<usize>,
}

/// Vectors of one width, one after another.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Vectors {
    /// `[n, dim]`.
    pub data: Vec<f32>,
    /// Number of vectors, at least 1.
    pub n: usize,
}

impl Ask {
    /// Reads a body of type `content_type`; `query` is what stands behind the question mark.
    ///
    /// # Errors
    /// The field at fault, with what was expected and found.
    pub fn read(content_type: &str, query: &str, body: Vec<u8>) -> ApiResult<Self> {
        let media = content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let mut ask = match media.as_str() {
            "application/json" => Self::from_json(&body)?,
            "multipart/form-data" => Self::from_form(content_type, &body)?,
            _ if media.starts_with("image/") || media == "application/octet-stream" => Self {
                images: vec![body],
                ..Self::default()
            },
            _ => {
                return Err(ApiError::new(
                    axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    format!(
                        "Content-Type: expected application/json, multipart/form-data or image/*, found {}",
                        if media.is_empty() {
                            "none".to_owned()
                        } else {
                            format!("`{}`", media.escape_debug())
                        }
                    ),
                ));
            }
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = unescaped(name)?;
            ask.set(&name, &unescaped(value)?)?;
        }
        Ok(ask)
    }

    fn from_json(body: &[u8]) -> ApiResult<Self> {
        serde_json::from_slice(body).map_err(|error| in_json(&error))
    }

    fn from_form(content_type: &str, body: &[u8]) -> ApiResult<Self> {
        let boundary = multipart::boundary(content_type).map_err(ApiError::body)?;
        let mut ask = Self::default();
        for part in multipart::parts(body, &boundary).map_err(ApiError::body)? {
            let value = &body[part.value];
            match part.name.as_str() {
                "file" | "file[]" | "image" | "image[]" | "input" | "input[]" => {
                    if value.is_empty() {
                        let place = format!("input[{}]", ask.images.len());
                        return Err(ApiError::field(place, "expected an image, found no bytes"));
                    }
                    ask.images.push(value.to_vec());
                }
                name => {
                    let text = std::str::from_utf8(value)
                        .map_err(|_| ApiError::field(plain(name), "expected text, found other bytes"))?;
                    ask.set(name, text)?;
                }
            }
        }
        Ok(ask)
    }

    /// A field of a form or of an address.
    fn set(&mut self, name: &str, value: &str) -> ApiResult<()> {
        let number = || {
            let found = value.parse::<usize>();
            found.map_err(|_| {
                ApiError::field(name, format!("expected a whole number, found `{}`", plain(value)))
            })
        };
        match name {
            "model" => self.model = Some(value.to_owned()),
            "output" => self.output = Some(value.to_owned()),
            "encoding_format" => {
                self.encoding = encoding(value).map_err(|message| ApiError::field(name, message))?;
            }
            "dimensions" => self.dimensions = Some(number()?),
            "k" => self.k = Some(number()?),
            "user" => {}
            _ => return Err(unknown(name)),
        }
        Ok(())
    }
}

/// A text of others within a message.
fn plain(text: &str) -> String {
    let short: String = text.chars().take(64).collect();
    short.escape_debug().to_string()
}

fn unknown(name: &str) -> ApiError {
    let name = plain(name);
    ApiError {
        code: "unknown_field",
        ..ApiError::field(name, format!("no such field; there are {FIELDS}"))
    }
}

/// The names of all fields.
const FIELDS: &str = "input, vector, model, output, encoding_format, dimensions, k, user, modality";

fn encoding(text: &str) -> Result<Encoding, String> {
    match text {
        "float" => Ok(Encoding::Float),
        "base64" => Ok(Encoding::Base64),
        other => Err(format!("expected `float` or `base64`, found `{}`", plain(other))),
    }
}

/// `%41+b` is `A b`.
pub(super) fn unescaped(text: &str) -> ApiResult<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let digits = text.get(at + 1..at + 3);
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                out.push(byte.ok_or_else(|| ApiError::body("address: expected two digits behind %"))?);
                at += 3;
                continue;
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).map_err(|_| ApiError::body("address: expected UTF-8"))
}

/// What the reader of JSON says, with the field that it stands before.
fn in_json(error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let field = text.split(": ").next().unwrap_or_default();
    let is_field = !field.is_empty()
        && field.len() < 80
        && text.len() > field.len()
        && field
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'[' | b']'));
    match error.classify() {
        Category::Data if is_field => {
            let code = match text.contains("no such field") {
                true => "unknown_field",
                false => "invalid_value",
            };
            ApiError {
                param: Some(field.to_owned()),
                code,
                ..ApiError::body(text.clone())
            }
        }
        Category::Data => ApiError::body(format!("body: {text}")),
        _ => ApiError::body(format!("body: not JSON: {text}")),
    }
}

/// `result` with the field's name before its message.
fn named<T, E: serde::de::Error>(field: &str, result: Result<T, E>) -> Result<T, E> {
    result.map_err(|error| {
        let text = error.to_string();
        E::custom(match text.starts_with('[') {
            true => format!("{field}{text}"),
            false => format!("{field}: {text}"),
        })
    })
}

impl<'de> Deserialize<'de> for Ask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AskVisitor)
    }
}

struct AskVisitor;

impl<'de> Visitor<'de> for AskVisitor {
    type Value = Ask;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `input`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ask, A::Error> {
        let mut ask = Ask::default();
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            match key.as_ref() {
                "input" => ask.images = named("input", map.next_value::<Images>())?.0,
                "vector" => ask.vectors = named("vector", map.next_value())?,
                "model" => ask.model = named("model", map.next_value())?,
                "output" => ask.output = named("output", map.next_value())?,
                "encoding_format" => {
                    let text: Option<String> = named("encoding_format", map.next_value())?;
                    let found = text
                        .map(|text| encoding(&text).map_err(A::Error::custom))
                        .transpose();
                    ask.encoding = named("encoding_format", found)?.unwrap_or_default();
                }
                "dimensions" => ask.dimensions = named("dimensions", map.next_value())?,
                "k" => ask.k = named("k", map.next_value())?,
                "user" => drop(named("user", map.next_value::<Option<String>>())?),
                "modality" => {
                    let kind: Option<String> = named("modality", map.next_value())?;
                    if kind.is_some_and(|kind| kind != "image") {
                        return Err(A::Error::custom("modality: expected `image`, found another"));
                    }
                }
                other => {
                    return Err(A::Error::custom(format!(
                        "{}: no such field; there are {FIELDS}",
                        plain(other)
                    )));
                }
            }
        }
        Ok(ask)
    }
}

/// A text, borrowed where it holds no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(V).map(Text)
    }
}

/// One image or several.
struct Images(Vec<Vec<u8>>);

impl<'de> Deserialize<'de> for Images {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Vec<Vec<u8>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an image as a data URI or base64, or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(vec![from_text(text).map_err(E::custom)?])
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Ok(vec![image_of_object(map)?])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut images = Vec::new();
                loop {
                    let place = images.len();
                    match named(&format!("[{place}]"), seq.next_element::<Image>())? {
                        None => return Ok(images),
                        Some(_) if place == MOST_IMAGES => {
                            return Err(A::Error::custom(format!(
                                "expected at most {MOST_IMAGES} images, found more"
                            )));
                        }
                        Some(image) => images.push(image.0),
                    }
                }
            }
        }
        deserializer.deserialize_any(V).map(Images)
    }
}

/// One image of a list.
struct Image(Vec<u8>);

impl<'de> Deserialize<'de> for Image {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an image as a data URI or base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                from_text(text).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                image_of_object(map)
            }
        }
        deserializer.deserialize_any(V).map(Image)
    }
}

/// `{"image": ..}`, `{"image_url": ..}` or `{"type": "image_url", "image_url": {"url": ..}}`, as clients of several servers write
/// it.
fn image_of_object<'de, A: MapAccess<'de>>(mut map: A) -> Result<Vec<u8>, A::Error> {
    let mut image = None;
    while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
        match key.as_ref() {
            "image" | "image_url" | "url" => image = Some(map.next_value::<Image>()?.0),
            "type" | "detail" => drop(map.next_value::<Text<'de>>()?),
            other => {
                return Err(A::Error::custom(format!(
                    "expected `image` or `image_url`, found `{}`",
                    plain(other)
                )));
            }
        }
    }
    image.ok_or_else(|| A::Error::custom("expected `image` or `image_url`, found neither"))
}

impl<'de> Deserialize<'de> for Vectors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Vectors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers, or a list of such lists")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vectors, A::Error> {
                let mut found = Vectors::default();
                let mut place = 0;
                let mut table = None;
                while let Some(entry) = named(&format!("[{place}]"), seq.next_element::<Entry>())? {
                    let in_rows = matches!(entry, Entry::Row(_));
                    match entry {
                        _ if *table.get_or_insert(in_rows) != in_rows => {
                            return Err(A::Error::custom(format!(
                                "[{place}]: expected numbers alone, or lists of numbers alone"
                            )));
                        }
                        Entry::Number(value) => {
                            found.data.push(value);
                            found.n = 1;
                        }
                        Entry::Row(row) if row.is_empty() => {
                            return Err(A::Error::custom(format!(
                                "[{place}]: expected numbers, found none"
                            )));
                        }
                        Entry::Row(row) => {
                            if found.n > 0 && row.len() != found.data.len() / found.n {
                                return Err(A::Error::custom(format!(
                                    "[{place}]: expected {} numbers as before, found {}",
                                    found.data.len() / found.n,
                                    row.len()
                                )));
                            }
                            found.data.extend(row);
                            found.n += 1;
                        }
                    }
                    if found.data.len() > MOST_NUMBERS {
                        return Err(A::Error::custom(format!(
                            "expected at most {MOST_NUMBERS} numbers, found more"
                        )));
                    }
                    place += 1;
                }
                match found.n {
                    0 => Err(A::Error::custom("expected numbers, found none")),
                    _ => Ok(found),
                }
            }
        }
        deserializer.deserialize_seq(V)
    }
}

/// A number, or a row of them.
enum Entry {
    Number(f32),
    Row(Vec<f32>),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a list of numbers")
            }

            fn visit_f64<E>(self, value: f64) -> Result<Entry, E> {
                Ok(Entry::Number(value as f32))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Entry, E> {
                Ok(Entry::Number(value as f32))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Entry, E> {
                Ok(Entry::Number(value as f32))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Entry, A::Error> {
                let mut row = Vec::new();
                while let Some(value) = seq.next_element::<f32>()? {
                    row.push(value);
                    if row.len() > MOST_NUMBERS {
                        return Err(A::Error::custom("expected fewer numbers"));
                    }
                }
                Ok(Entry::Row(row))
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// Answer to `/v1/embeddings`.
#[derive(Debug, Serialize)]
pub(super) struct Embeddings<'a> {
    object: &'static str,
    data: Vec<Embedding<'a>>,
    model: &'a str,
    output: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Embedding<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
    /// Rows and columns, where a vector is a table of tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    shape: Option<&'a [usize]>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// Images have no tokens that anybody is billed for.
#[derive(Debug, Default, Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

impl<'a> Embeddings<'a> {
    /// The answer with `vectors` of `output`, each of `shape`.
    pub fn new(
        model: &'a str,
        output: &'a str,
        shape: &'a [usize],
        vectors: &'a [Vec<f32>],
        encoding: Encoding,
    ) -> Self {
        let data = vectors.iter().enumerate().map(|(index, vector)| Embedding {
            object: "embedding",
            index,
            embedding: match encoding {
                Encoding::Float => Vector::Float(vector),
                Encoding::Base64 => Vector::Base64(base64_of(vector)),
            },
            shape: (shape.len() > 1).then_some(shape),
        });
        Self {
            object: "list",
            data: data.collect(),
            model,
            output,
            usage: Usage::default(),
        }
    }
}

/// Base64 of `values` as f32, little endian.
fn base64_of(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// Answer to `/v1/search`.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub object: &'static str,
    pub data: Vec<Neighbours>,
    /// The model that made the query; none for vectors.
    pub model: Option<String>,
}

/// The neighbours of one query, best first.
#[derive(Debug, Serialize)]
pub(super) struct Neighbours {
    pub object: &'static str,
    pub index: usize,
    pub hits: Vec<Neighbour>,
}

/// One row of the index.
#[derive(Debug, Serialize)]
pub(super) struct Neighbour {
    /// Place in the source of the index's features.
    pub row: u64,
    pub path: String,
    pub label: Option<String>,
    /// Cosine, -1 to 1.
    pub similarity: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> ApiResult<Ask> {
        Ask::read("application/json; charset=utf-8", "", text.as_bytes().to_vec())
    }

    #[test]
    fn one_image_is_read_in_every_form() {
        let image = vec![0xfb, 0xff, 0];
        for text in [
            r#"{"input": "data:image/png;base64,+/8A"}"#,
            r#"{"input": "+\/8A"}"#,
            r#"{"input": ["+/8A"]}"#,
            r#"{"input": {"image": "+/8A"}}"#,
            r#"{"input": [{"image_url": "data:;base64,+/8A"}]}"#,
            r#"{"input": [{"type": "image_url", "image_url": {"url": "+/8A", "detail": "low"}}], "user": "me", "modality": "image"}"#,
        ] {
            assert_eq!(json(text).unwrap().images, std::slice::from_ref(&image), "{text}");
        }
        let form = b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\n\xfb\xff\0\r\n--b\r\n\
            Content-Disposition: form-data; name=output\r\n\r\npatch\r\n--b--";
        let ask = Ask::read("multipart/form-data; boundary=b", "", form.to_vec()).unwrap();
        assert_eq!(
            (ask.images, ask.output.as_deref()),
            (vec![image.clone()], Some("patch"))
        );
        let query = "model=a%20b+c&k=3&encoding_format=base64&dimensions=8";
        let ask = Ask::read("image/png", query, image.clone()).unwrap();
        let expected = Ask {
            images: vec![image],
            model: Some("a b c".to_owned()),
            encoding: Encoding::Base64,
            dimensions: Some(8),
            k: Some(3),
            ..Ask::default()
        };
        assert_eq!(ask, expected);
    }

    #[test]
    fn vectors_are_one_or_several_of_one_width() {
        let vectors = |text: &str| json(text).map(|ask| ask.vectors.unwrap());
        let one = vectors(r#"{"vector": [1, -2.5, 3e0]}"#).unwrap();
        assert_eq!((one.data, one.n), (vec![1.0, -2.5, 3.0], 1));
        let two = vectors(r#"{"vector": [[1, 2], [3, 4]]}"#).unwrap();
        assert_eq!((two.data, two.n), (vec![1.0, 2.0, 3.0, 4.0], 2));
        for (text, param) in [
            (r#"{"vector": []}"#, "vector"),
            (r#"{"vector": [[]]}"#, "vector[0]"),
            (r#"{"vector": [1, [2]]}"#, "vector[1]"),
            (r#"{"vector": [[1], 2]}"#, "vector[1]"),
            (r#"{"vector": [[1], [2, 3]]}"#, "vector[1]"),
            (r#"{"vector": [1, "a"]}"#, "vector[1]"),
            (r#"{"vector": "a"}"#, "vector"),
        ] {
            let error = vectors(text).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{text}: {}", error.message);
        }
    }

    #[test]
    fn the_field_at_fault_is_named() {
        for (text, param, words) in [
            (r#"{"input": 5}"#, "input", "invalid type: integer `5`"),
            (
                r#"{"input": [1, 2]}"#,
                "input[0]",
                "invalid type: integer `1`, expected an image",
            ),
            (r#"{"input": ["+/8A", null]}"#, "input[1]", "invalid type: null"),
            (
                r#"{"input": ["+/8A", "+/8A", "http://x/a.png"]}"#,
                "input[2]",
                "fetches nothing",
            ),
            (r#"{"input": [{"text": "a"}]}"#, "input[0]", "found `text`"),
            (r#"{"input": [{}]}"#, "input[0]", "found neither"),
            (r#"{"input": "a b"}"#, "input", "Invalid symbol"),
            (r#"{"model": 5}"#, "model", "expected a string"),
            (
                r#"{"encoding_format": "f64"}"#,
                "encoding_format",
                "expected `float` or `base64`, found `f64`",
            ),
            (r#"{"dimensions": -1}"#, "dimensions", "-1"),
            (r#"{"dimensions": 1.5}"#, "dimensions", "1.5"),
            (r#"{"outputs": "cls"}"#, "outputs", "no such field"),
            (r#"{"modality": "audio"}"#, "modality", "expected `image`"),
        ] {
            let error = json(text).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{text}: {}", error.message);
            assert!(error.message.contains(words), "{text}: {}", error.message);
            assert_eq!(
                error.message.matches("line 1 column").count(),
                1,
                "{}",
                error.message
            );
        }
        for text in ["", "{", "[]", "null", "\u{feff}{}", "{\"input\": \"+/8A\"} x"] {
            assert_eq!(json(text).unwrap_err().code, "invalid_body", "{text}");
        }
        let cut = json("{\"input\": [\"+/8A\"").unwrap_err();
        assert!(cut.message.starts_with("input[1]: EOF"), "{}", cut.message);
        let nested = format!("{{\"input\": {}", "[".repeat(100_000));
        assert!(json(&nested).is_err());
        for (query, param) in [
            ("k=x", Some("k")),
            ("a=1", Some("a")),
            ("%zz=1", None),
            ("k=%ff", None),
        ] {
            let error = Ask::read("image/png", query, vec![1]).unwrap_err();
            assert_eq!(error.param.as_deref(), param, "{query}");
        }
        let error = Ask::read("text/html", "", Vec::new()).unwrap_err();
        assert_eq!(error.status.as_u16(), 415);
    }

    #[test]
    fn base64_is_little_endian() {
        let vectors = [vec![1.0f32, -2.0]];
        let answer = Embeddings::new("m", "cls", &[2], &vectors, Encoding::Base64);
        let value = serde_json::to_value(&answer).unwrap();
        assert_eq!(value["data"][0]["embedding"], "AACAPwAAAMA=");
        assert_eq!(value["data"][0].get("shape"), None);
        let answer = Embeddings::new("m", "patch", &[2, 1], &vectors, Encoding::Float);
        let value = serde_json::to_value(&answer).unwrap();
        assert_eq!(value["data"][0]["embedding"], serde_json::json!([1.0, -2.0]));
        assert_eq!(value["data"][0]["shape"], serde_json::json!([2, 1]));
    }
}
