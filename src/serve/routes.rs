//! The routes: what is answered where, and what holds of all of them: an id, keys, a limit on time, and that a panic is an answer
//! too.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::FutureExt as _;
use futures_util::stream;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::access::{Entry, Ids, REQUEST_ID};
use super::auth::Keys;
use super::body::{LINGER, Received, Receiver, Share, linger};
use super::config::{Limits, LogFormat};
use super::connections::Stage;
use super::decode::Workers;
use super::error::{ApiError, ApiResult, Code};
use super::metrics::Metrics;
use super::models::Models;
use super::search::Search;
use super::wire::{Ask, Embeddings, Vectors, unescaped};
use super::{openapi, page};

/// Larger bodies are read, and longer answers written, on the threads that decode.
const LARGE: usize = 256 << 10;
/// How much of an answer is given to its connection at a time; a longer one holds its share of the memory until it is sent.
const PIECE: usize = 64 << 10;
/// Bytes of a long answer that a client must take in the time that it has for a short one.
const TAKEN: f64 = 1e6;
/// Bytes that one number of an answer takes at most, while it is written: as f32, twice as base64 or once as text.
const BYTES_A_NUMBER: usize = 24;
/// The status under which a client that left is counted; it is never sent.
const LEFT: u16 = 499;
/// Where pictures of the index are.
const PICTURES: &str = "/v1/index/images/";
/// Where single models are.
const MODELS: &str = "/v1/models/";

/// Everything that answers requests.
pub(super) struct App {
    pub models: Models,
    pub search: Option<Search>,
    pub keys: Keys,
    /// Whether requests must call the server by an address or a name of this machine or network.
    pub by_address: bool,
    pub workers: Workers,
    pub receiver: Receiver,
    pub metrics: Arc<Metrics>,
    pub ids: Ids,
    pub limits: Limits,
    pub log_format: LogFormat,
    pub stage: watch::Receiver<Stage>,
}

type Shared = Arc<App>;
type Answer = Response<Body>;

/// The routes of a server.
pub(super) fn router(app: &Shared) -> Router {
    Router::new()
        .route("/", get(|| async { page::page() }))
        .route("/docs", get(|| async { page::docs() }))
        .route(
            "/openapi.json",
            get(|| async { json_answer(&openapi::document()) }),
        )
        .route(
            "/health/live",
            get(|| async { json_answer(&json!({ "status": "live" })) }),
        )
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(one_model))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/search", post(search))
        .route("/v1/index/images/{row}", get(picture))
        .fallback(|| async { not_found("no such route; /docs lists those that there are") })
        .method_not_allowed_fallback(|| async {
            let error = ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route has another method; /docs lists them",
            );
            error.into_response()
        })
        .layer(from_fn_with_state(Arc::clone(app), around))
        .with_state(Arc::clone(app))
}

/// The route of a path as numbers and logs call it: few names, whatever is asked for.
fn route_of(path: &str) -> &'static str {
    const ROUTES: [&str; 9] = [
        "/",
        "/docs",
        "/openapi.json",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/v1/models",
        "/v1/embeddings",
        "/v1/search",
    ];
    match ROUTES.iter().find(|route| **route == path) {
        Some(route) => route,
        None if path.starts_with(MODELS) => "/v1/models/{id}",
        None if path.starts_with(PICTURES) => "/v1/index/images/{row}",
        None => "other",
    }
}

/// Counts a request whose client leaves before its answer.
struct Watched<'a> {
    metrics: &'a Metrics,
    route: &'static str,
    start: Instant,
    answered: bool,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.answered(self.route, LEFT, self.start.elapsed());
        }
    }
}

/// What holds of every request.
async fn around(State(app): State<Shared>, request: Request, next: Next) -> Answer {
    let route = route_of(request.uri().path());
    let mut watched = Watched {
        metrics: &app.metrics,
        route,
        start: Instant::now(),
        answered: false,
    };
    let id = app.ids.of(request.headers());
    let method = method_of(request.method());
    let guarded = request.uri().path().starts_with("/v1") || route == "/metrics";
    let mut checked = app.check_host(request.headers());
    if guarded {
        checked = checked.and_then(|()| app.keys.check(request.headers()));
    }
    let mut answer = match checked {
        Err(error) => {
            if !request.headers().contains_key(header::EXPECT) {
                linger(&mut request.into_body().into_data_stream()).await;
            }
            error.into_response()
        }
        Ok(()) => within(&app, next.run(request)).await,
    };
    let headers = answer.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    if *app.stage.borrow() >= Stage::Draining {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let entry = Entry {
        id: &id,
        method,
        route,
        status: answer.status().as_u16(),
        took: watched.start.elapsed(),
        code: answer.extensions().get::<Code>().map(|code| code.0),
    };
    entry.log(app.log_format);
    watched.answered = true;
    app.metrics.answered(route, entry.status, entry.took);
    answer
}

/// A method as logs call it: few names, whatever is asked for.
fn method_of(method: &Method) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    METHODS
        .into_iter()
        .find(|known| *known == method.as_str())
        .unwrap_or("other")
}

/// Whether a `Host` is a name of the internet: one with a dot that is no address. A page of such a name may have had it lead here
/// after it was loaded, so that its scripts may read what this server answers.
fn is_internet_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return true;
    };
    let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<std::net::IpAddr>().is_err() && name.contains('.') && !name.ends_with(".localhost")
}

/// An answer within the time that there is, whatever happens. What reads bodies has limits of its own below this.
async fn within(app: &App, answer: impl Future<Output = Answer>) -> Answer {
    let most = Duration::from_secs_f64(app.limits.timeout + app.limits.body_timeout) + LINGER;
    match timeout(most, AssertUnwindSafe(answer).catch_unwind()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => {
            app.metrics.panics.add(1);
            ApiError::server("this request made the server stumble; others were not touched").into_response()
        }
        Err(_) => late().into_response(),
    }
}

fn late() -> ApiError {
    ApiError {
        code: "timeout",
        ..ApiError::unavailable("no answer within the time that a request has")
    }
}

async fn ready(State(app): State<Shared>) -> Answer {
    match app.ready() {
        Ok(()) => json_answer(&json!({ "status": "ready" })),
        Err(error) => error.into_response(),
    }
}

async fn metrics(State(app): State<Shared>) -> Answer {
    let text = app.metrics.text(app.ready().is_ok());
    with_type("text/plain; version=0.0.4; charset=utf-8", text)
}

async fn models(State(app): State<Shared>) -> Answer {
    let models: Vec<_> = app.models.lanes().iter().map(|lane| lane.describe()).collect();
    let pictures = app.search.as_ref().map(Search::has_pictures);
    json_answer(&json!({
        "object": "list",
        "data": models,
        "index": pictures.map(|pictures| json!({ "pictures": pictures })),
    }))
}

async fn one_model(State(app): State<Shared>, request: Request) -> Answer {
    let id = unescaped(request.uri().path().strip_prefix(MODELS).unwrap_or_default());
    let found = id.and_then(|id| Ok(app.models.find(Some(&id))?.describe()));
    found.map_or_else(IntoResponse::into_response, |model| json_answer(&model))
}

async fn embeddings(State(app): State<Shared>, request: Request) -> Answer {
    app.answered(request, |parts, received| app.embed(parts, received))
        .await
}

async fn search(State(app): State<Shared>, request: Request) -> Answer {
    app.answered(request, |parts, received| app.search(parts, received))
        .await
}

async fn picture(State(app): State<Shared>, request: Request) -> Answer {
    let row = request
        .uri()
        .path()
        .strip_prefix(PICTURES)
        .unwrap_or_default()
        .parse::<u64>();
    let Ok(row) = row else {
        return not_found("expected the number of a row");
    };
    let own = Arc::clone(&app);
    let made = app.workers.run(move || match &own.search {
        Some(search) => search.picture(row),
        None => Err(no_index()),
    });
    match made.await {
        Ok(png) => with_type("image/png", png),
        Err(error) => error.into_response(),
    }
}

impl App {
    /// Whether requests are taken.
    fn ready(&self) -> ApiResult<()> {
        if *self.stage.borrow() > Stage::Serving {
            return Err(ApiError::unavailable("the server stops"));
        }
        match self.models.ready() {
            true => Ok(()),
            false => Err(ApiError::unavailable("a model is gone; see the log")),
        }
    }

    /// Refuses names of the internet where only this machine is meant to ask.
    fn check_host(&self, headers: &HeaderMap) -> ApiResult<()> {
        // A browser always says whom it asks.
        let host = headers.get(header::HOST).filter(|_| self.by_address);
        match host {
            Some(host) if host.to_str().map_or(true, is_internet_name) => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "host_not_allowed",
                "Host: expected an address or `localhost`, found another name: a server for this machine alone answers to \
                 others once it has an --api-key",
            )),
            _ => Ok(()),
        }
    }

    /// Receives a request and answers it, each within its time.
    async fn answered<F: Future<Output = ApiResult<Answer>>>(
        &self,
        request: Request,
        answer: impl FnOnce(Parts, Received) -> F,
    ) -> Answer {
        let (parts, body) = request.into_parts();
        let answer = async {
            let received = self.receiver.receive(&parts.headers, body).await?;
            let limit = Duration::from_secs_f64(self.limits.timeout);
            timeout(limit, answer(parts, received))
                .await
                .unwrap_or_else(|_| Err(late()))
        };
        answer.await.unwrap_or_else(IntoResponse::into_response)
    }

    /// What a request asks for, and the memory that it holds.
    async fn ask(&self, parts: &Parts, received: Received) -> ApiResult<(Ask, Share)> {
        let text = |header: Option<&HeaderValue>| {
            header
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let content_type = text(parts.headers.get(header::CONTENT_TYPE));
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let Received { bytes, share } = received;
        match bytes.len() < LARGE {
            true => Ok((Ask::read(&content_type, &query, bytes)?, share)),
            // The share goes along: a client that leaves does not free it before its bytes.
            false => {
                self.workers
                    .run(move || Ok((Ask::read(&content_type, &query, bytes)?, share)))
                    .await
            }
        }
    }

    /// Refuses requests without an image, or with too many.
    fn check_images(&self, ask: &Ask) -> ApiResult<()> {
        let most = self.limits.max_images;
        match ask.images.len() {
            0 => Err(ApiError::field(
                "input",
                "expected an image or several, found none",
            )),
            n if n > most => Err(ApiError::field(
                "input",
                format!("expected at most {most} images, found {n}"),
            )),
            _ => Ok(()),
        }
    }

    async fn embed(&self, parts: Parts, received: Received) -> ApiResult<Answer> {
        let (ask, share) = self.ask(&parts, received).await?;
        if ask.vectors.is_some() {
            return Err(ApiError::field("vector", "expected in /v1/search alone"));
        }
        if ask.k.is_some() {
            return Err(ApiError::field("k", "expected in /v1/search alone"));
        }
        self.check_images(&ask)?;
        let lane = Arc::clone(self.models.find(ask.model.as_deref())?);
        let output = lane.output(ask.output.as_deref())?;
        lane.check_dimensions(output, ask.dimensions)?;
        let encoding = ask.encoding;
        let numbers = ask.images.len().saturating_mul(lane.outputs[output].width());
        let most = self.receiver.memory.bytes / BYTES_A_NUMBER;
        lane.check_answer(output, ask.images.len(), most)?;
        let mut held = self.receiver.memory.take(numbers * BYTES_A_NUMBER)?;
        let features = self
            .models
            .features(&lane, output, ask.images, share, &self.workers)
            .await?;
        let large = numbers * 4 >= LARGE;
        let write = move || {
            let spec = &lane.outputs[output];
            let answer = Embeddings::new(&lane.name, &spec.name, &spec.shape, &features, encoding);
            serde_json::to_vec(&answer).map_err(|e| ApiError::server(e.to_string()))
        };
        let body = match large {
            true => self.workers.run(write).await?,
            false => write()?,
        };
        held.shrink(body.capacity());
        Ok(in_pieces(body, held, self.receiver.limit))
    }

    async fn search(&self, parts: Parts, received: Received) -> ApiResult<Answer> {
        let (ask, share) = self.ask(&parts, received).await?;
        let search = self.search.as_ref().ok_or_else(no_index)?;
        if let Some(name) = &ask.model {
            self.models.find(Some(name))?;
        }
        if ask.output.is_some() || ask.dimensions.is_some() {
            return Err(ApiError::field(
                "output",
                "expected in /v1/embeddings alone: the index has its own",
            ));
        }
        let opened = search.now();
        let (queries, model) = match ask.vectors {
            Some(_) if !ask.images.is_empty() => {
                return Err(ApiError::field(
                    "vector",
                    "expected `input` or `vector`, found both",
                ));
            }
            Some(vectors) => (vectors, None),
            None => {
                self.check_images(&ask)?;
                let (lane, output) = opened.by()?;
                if let Some(name) = ask.model.filter(|name| *name != lane.name) {
                    return Err(ApiError::field(
                        "model",
                        format!(
                            "expected `{}`, whose features the index has, found `{name}`",
                            lane.name
                        ),
                    ));
                }
                let n = ask.images.len();
                let features = self
                    .models
                    .features(lane, output, ask.images, share, &self.workers)
                    .await?;
                let data = features.concat();
                (Vectors { data, n }, Some(lane.name.clone()))
            }
        };
        if queries.n > self.limits.max_images {
            return Err(ApiError::field(
                "vector",
                format!(
                    "expected at most {} vectors, found {}",
                    self.limits.max_images, queries.n
                ),
            ));
        }
        let body = self.workers.run(move || {
            let found = opened.search(&queries, ask.k, model)?;
            serde_json::to_vec(&found).map_err(|e| ApiError::server(e.to_string()))
        });
        let body = body.await?;
        let held = self.receiver.memory.take(body.capacity())?;
        Ok(in_pieces(body, held, self.receiver.limit))
    }
}

/// JSON that is given to its connection as fast as the client takes it, and holds its share of the memory as long. A client that
/// takes less than [`TAKEN`] bytes in each `limit` is hung up on.
fn in_pieces(body: Vec<u8>, held: Share, limit: Duration) -> Answer {
    if body.len() <= PIECE {
        return with_type("application/json", body);
    }
    let length = HeaderValue::from(body.len());
    let until = Instant::now() + limit.mul_f64(1.0 + body.len() as f64 / TAKEN);
    let pieces = stream::unfold((Bytes::from(body), held), move |(mut rest, held)| async move {
        let piece = rest.split_to(rest.len().min(PIECE));
        let piece = match Instant::now() > until {
            true => Err(std::io::Error::from(std::io::ErrorKind::TimedOut)),
            false => Ok(piece),
        };
        let more = piece.as_ref().map_or(true, |piece| !piece.is_empty());
        more.then_some((piece, (rest, held)))
    });
    let mut answer = with_type("application/json", Body::from_stream(pieces));
    answer.headers_mut().insert(header::CONTENT_LENGTH, length);
    answer
}

fn no_index() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no_index",
        "this server has no index: it is started with --index",
    )
}

fn not_found(message: &str) -> Answer {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message).into_response()
}

fn json_answer(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with_type("application/json", body),
        Err(error) => ApiError::server(error.to_string()).into_response(),
    }
}

/// A body of `content_type`.
pub(super) fn with_type(content_type: &'static str, body: impl Into<Body>) -> Answer {
    let mut answer = Response::new(body.into());
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_one_of_few_names() {
        for (path, route) in [
            ("/", "/"),
            ("/v1/embeddings", "/v1/embeddings"),
            ("/v1/models/a/b", "/v1/models/{id}"),
            ("/v1/index/images/7", "/v1/index/images/{row}"),
            ("/v1/embeddings/", "other"),
            ("/../etc/passwd", "other"),
        ] {
            assert_eq!(route_of(path), route);
        }
    }

    #[test]
    fn names_of_the_internet_are_told_from_addresses() {
        for own in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "gallery",
            "a.localhost:1",
        ] {
            assert!(!is_internet_name(own), "{own}");
        }
        for other in [
            "example.org",
            "example.org:8080",
            "127.0.0.1.example.org",
            "localhost.",
            "localhost.example.org:80",
            "a b",
            "",
        ] {
            assert_eq!(is_internet_name(other), other != "localhost.", "{other}");
        }
    }

    #[test]
    fn every_route_is_in_the_document() {
        let document = openapi::document();
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        for path in &paths {
            assert_eq!(route_of(path), path.as_str());
        }
        assert_eq!(paths.len(), 9, "{paths:?}");
    }
}
