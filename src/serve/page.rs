//! The pages for people: one to try the server with, which asks for nothing from anywhere else, and a list of its routes.

use std::fmt::Write as _;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response};

use super::openapi;
use super::routes::with_type;

/// The page at `/`.
const PAGE: &str = include_str!("page.html");
/// Nothing but what the page itself brings, and this server.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A page to drop an image on.
pub(super) fn page() -> Response<Body> {
    html(PAGE.to_owned())
}

/// A list of the routes.
pub(super) fn docs() -> Response<Body> {
    let document = openapi::document();
    let mut rows = String::new();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, route) in methods.as_object().into_iter().flatten() {
            let _ = write!(
                rows,
                "<tr><td><code>{} {path}</code></td><td>{}</td></tr>",
                method.to_uppercase(),
                route["summary"].as_str().unwrap_or_default()
            );
        }
    }
    html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>macula serve: routes</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
         padding:0 1rem}}td{{padding:.3rem 1rem .3rem 0;vertical-align:top}}pre{{overflow:auto;background:#8881;padding:1rem}}\
         :root{{color-scheme:light dark}}</style><h1>Routes</h1><table>{rows}</table>\
         <p>In full: <a href=\"/openapi.json\">openapi.json</a>. To try it: <a href=\"/\">the page</a>.</p>\
         <pre>curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' HOST/v1/embeddings\n\
         curl -F file=@a.jpg -F file=@b.jpg -F output=patch_mean HOST/v1/embeddings\n\
         curl -H 'Content-Type: application/json' -d '{{\"input\": \"data:image/png;base64,..\"}}' HOST/v1/embeddings\n\
         curl -F file=@cat.jpg -F k=5 HOST/v1/search</pre></html>"
    ))
}

fn html(text: String) -> Response<Body> {
    let mut page = with_type("text/html; charset=utf-8", text);
    page.headers_mut().insert(
        HeaderName::from_static("content-security-policy"),
        HeaderValue::from_static(POLICY),
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_nothing_of_anybody_else() {
        for outside in ["http://", "https://", "//cdn", "@import", "url("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        assert!(PAGE.contains("viewport"));
    }
}
