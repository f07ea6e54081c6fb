//! Images as requests bring them in text: data URIs and base64. Nothing is fetched from anywhere.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Clients pad or do not.
const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PADDING);

/// The longest scheme that a URL is recognised by.
const LONGEST_SCHEME: usize = 16;

/// The bytes of the image that `text` is.
///
/// # Errors
/// What was expected and what was found, for a field's error.
pub(super) fn from_text(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() {
        return Err("expected an image as a data URI or base64, found an empty string".to_owned());
    }
    if text
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("data:"))
    {
        return from_data_uri(&text[5..]);
    }
    if let Some(at) = text
        .as_bytes()
        .windows(3)
        .take(LONGEST_SCHEME)
        .position(|three| three == b"://")
    {
        return Err(format!(
            "expected an image as a data URI or base64, found a URL ({}): this server fetches nothing",
            &text[..at]
        ));
    }
    from_base64(text)
}

/// `image/png;base64,AAAA`.
fn from_data_uri(rest: &str) -> Result<Vec<u8>, String> {
    let (described, data) = rest
        .split_once(',')
        .ok_or("expected a comma in the data URI, found none")?;
    let mut words = described.split(';');
    let media = words.next().unwrap_or_default().trim().to_ascii_lowercase();
    if !(media.is_empty() || media.starts_with("image/") || media == "application/octet-stream") {
        return Err(format!(
            "expected a data URI of an image, found {}",
            shown(&media)
        ));
    }
    match words.next_back() {
        Some(last) if last.trim().eq_ignore_ascii_case("base64") => from_base64(data),
        _ => Err("expected `;base64` before the data URI's comma, found none".to_owned()),
    }
}

fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    let wrapped = text.bytes().any(|byte| byte == b'\n');
    let unwrapped: String;
    let text = match wrapped {
        true => {
            unwrapped = text.split(['\r', '\n']).collect();
            unwrapped.as_str()
        }
        false => text,
    };
    let engine = match text.bytes().any(|byte| byte == b'-' || byte == b'_') {
        true => URL_SAFE,
        false => STANDARD,
    };
    let bytes = engine.decode(text).map_err(|error| {
        format!(
            "expected an image as a data URI or base64, found {}: {error}",
            shown(text)
        )
    })?;
    match bytes.is_empty() {
        true => Err("expected an image, found no bytes".to_owned()),
        false => Ok(bytes),
    }
}

/// The beginning of a text of others.
fn shown(text: &str) -> String {
    match text.char_indices().nth(24) {
        None => format!("`{}`", text.escape_debug()),
        Some((end, _)) => format!("`{}..`", text[..end].escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_in_every_spelling_of_base64() {
        for text in [
            "data:image/png;base64,+/8A",
            "DATA:image/png;BASE64,+/8A",
            "data:;base64,+/8A",
            "data:image/svg+xml;charset=utf-8;base64,+/8A",
            "data:application/octet-stream;base64,+/8A",
            "+/8A",
            "-_8A",
            "+/\n8A\n",
            "+/\r\n8A",
        ] {
            assert_eq!(from_text(text).unwrap(), [0xfb, 0xff, 0], "{text}");
        }
        for text in ["+/8=", "+/8"] {
            assert_eq!(from_text(text).unwrap(), [0xfb, 0xff], "{text}");
        }
    }

    #[test]
    fn what_is_none_says_what_was_found() {
        for (text, expected) in [
            ("", "found an empty string"),
            ("data:image/png;base64,", "found no bytes"),
            ("data:image/png;base64", "expected a comma"),
            ("data:image/png,AAAA", "expected `;base64`"),
            ("data:text/plain;base64,AAAA", "found `text/plain`"),
            ("https://example.org/a.png", "found a URL (https)"),
            ("file:///etc/passwd", "found a URL (file)"),
            ("a photo of a cat", "found `a photo of a cat`: Invalid symbol"),
            ("AAAAA", "expected an image as a data URI or base64"),
            ("äöü", "found `äöü`"),
            ("A=AA", "expected an image as a data URI or base64"),
        ] {
            let error = from_text(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let long = from_text(&" ".repeat(1_000_000)).unwrap_err();
        assert!(long.len() < 200, "{long}");
    }
}
