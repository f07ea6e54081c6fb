//! One line a request, with an id that its answer carries too, and nothing of its images.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName};
use serde_json::json;

use super::config::LogFormat;

/// The header that names a request.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest name that is taken over from a client.
const LONGEST_ID: usize = 64;

/// Names of requests that have none, different ones in every process.
#[derive(Debug)]
pub(super) struct Ids {
    start: u32,
    next: AtomicU64,
}

/// An answered request.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    pub id: &'a str,
    pub method: &'a str,
    pub route: &'a str,
    pub status: u16,
    pub took: Duration,
    /// A word for what was wrong, where something was.
    pub code: Option<&'static str>,
}

impl Ids {
    /// A row of names that begins somewhere.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            start: now.subsec_nanos() ^ std::process::id().rotate_left(16),
            next: AtomicU64::new(0),
        }
    }

    /// The name that a request brings, if it is a plain one, or a new one.
    pub fn of(&self, headers: &HeaderMap) -> String {
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let plain = |id: &&str| {
            (1..=LONGEST_ID).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        match given.filter(plain) {
            Some(id) => id.to_owned(),
            None => format!("{:08x}-{}", self.start, self.next.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Entry<'_> {
    /// Logs it.
    pub fn log(&self, format: LogFormat) {
        match format {
            LogFormat::None => {}
            LogFormat::Text => tracing::info!("{}", self.text()),
            LogFormat::Json => tracing::info!("{}", self.json(SystemTime::now())),
        }
    }

    fn text(&self) -> String {
        let code = self.code.map_or(String::new(), |code| format!(" code={code}"));
        format!(
            "request id={} method={} route={} status={} ms={:.1}{code}",
            self.id,
            self.method,
            self.route,
            self.status,
            1e3 * self.took.as_secs_f64()
        )
    }

    fn json(&self, now: SystemTime) -> String {
        json!({
            "time": utc(now),
            "event": "request",
            "id": self.id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "ms": (1e4 * self.took.as_secs_f64()).round() / 10.0,
            "code": self.code,
        })
        .to_string()
    }
}

/// `2026-11-29T08:30:00.123Z`.
pub(super) fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of the Gregorian calendar, `days` after the first of January 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    loop {
        let length = 365 + u64::from(leap(year));
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_by_programs() {
        let at = |seconds: u64| utc(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7));
        assert_eq!(at(0), "1970-01-01T00:00:00.007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59.007Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.007Z");
    }

    #[test]
    fn an_id_is_taken_over_where_it_is_plain() {
        let ids = Ids::new();
        let of = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, id.parse().unwrap());
            ids.of(&headers)
        };
        assert_eq!(of("a-1.B_2"), "a-1.B_2");
        let long = "x".repeat(65);
        for other in ["", "a b", "a\"b", long.as_str()] {
            assert_ne!(of(other), other);
        }
        assert_ne!(ids.of(&HeaderMap::new()), ids.of(&HeaderMap::new()));
    }

    #[test]
    fn a_line_says_what_happened() {
        let entry = Entry {
            id: "7",
            method: "POST",
            route: "/v1/embeddings",
            status: 400,
            took: Duration::from_micros(1300),
            code: Some("invalid_image"),
        };
        assert_eq!(
            entry.text(),
            "request id=7 method=POST route=/v1/embeddings status=400 ms=1.3 code=invalid_image"
        );
        let json: serde_json::Value = serde_json::from_str(&entry.json(UNIX_EPOCH)).unwrap();
        assert_eq!(
            (json["status"].as_u64(), json["ms"].as_f64()),
            (Some(400), Some(1.3))
        );
    }
}
