//! Bodies of `multipart/form-data` (RFC 7578), which lie in memory whole.

use std::ops::Range;

/// The most parts that are read.
const MAX_PARTS: usize = 4096;
/// The longest header of a part, in bytes.
const MAX_HEADER: usize = 8192;

/// One field of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The field's name.
    pub name: String,
    /// Where its value stands in the body.
    pub value: Range<usize>,
}

/// The boundary that a `Content-Type` names, at most 70 characters.
pub(super) fn boundary(content_type: &str) -> Result<String, String> {
    let parameters = content_type.split(';').skip(1);
    let found = parameters
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("boundary"))
        .map(|(_, value)| value.trim().trim_matches('"').to_owned())
        .ok_or("Content-Type: expected a boundary, found none")?;
    match (1..=70).contains(&found.len()) {
        true => Ok(found),
        false => Err(format!(
            "Content-Type: expected a boundary of 1 to 70 characters, found {}",
            found.len()
        )),
    }
}

/// The fields of a form.
///
/// # Errors
/// What is missing: a boundary, a name, the end.
pub(super) fn parts(body: &[u8], boundary: &str) -> Result<Vec<Part>, String> {
    let delimiter = format!("--{boundary}");
    let delimiter = delimiter.as_bytes();
    let mut at = first(body, delimiter).ok_or_else(|| {
        format!(
            "multipart: expected the boundary `{}`, found none",
            boundary.escape_debug()
        )
    })?;
    let mut found = Vec::new();
    loop {
        let rest = &body[at..];
        if rest.starts_with(b"--") {
            return Ok(found);
        }
        let number = found.len() + 1;
        let cut = || format!("multipart: part {number} is cut short");
        let start = line_end(rest).ok_or_else(cut)? + at;
        if found.len() == MAX_PARTS {
            return Err(format!(
                "multipart: expected at most {MAX_PARTS} parts, found more"
            ));
        }
        let (name, length) = header(&body[start..], number)?;
        let value = start + length;
        let end = next(&body[value..], delimiter).ok_or_else(cut)? + value;
        found.push(Part {
            name,
            value: value..end,
        });
        at = end + 2 + delimiter.len();
    }
}

/// Where the first boundary ends: at the beginning, or behind a line before it.
fn first(body: &[u8], delimiter: &[u8]) -> Option<usize> {
    match body.starts_with(delimiter) {
        true => Some(delimiter.len()),
        false => next(body, delimiter).map(|at| at + 2 + delimiter.len()),
    }
}

/// Where the line break before the next boundary stands.
fn next(body: &[u8], delimiter: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + body[from..].iter().position(|byte| *byte == b'\r')?;
        if body[at + 1..]
            .strip_prefix(b"\n")
            .is_some_and(|rest| rest.starts_with(delimiter))
        {
            return Some(at);
        }
        from = at + 1;
    }
}

/// What is left of a boundary's line: blanks and a line break.
fn line_end(rest: &[u8]) -> Option<usize> {
    let blanks = rest
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    rest[blanks..].starts_with(b"\r\n").then_some(blanks + 2)
}

/// The name that a part's header gives, and the header's length with the empty line behind it.
fn header(rest: &[u8], number: usize) -> Result<(String, usize), String> {
    let window = &rest[..rest.len().min(MAX_HEADER)];
    let end = window.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(|| {
        format!("multipart: part {number}: expected a header of at most {MAX_HEADER} bytes and an empty line behind it")
    })?;
    let text = String::from_utf8_lossy(&window[..end]);
    let disposition = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-disposition")
            .then(|| value.to_owned())
    });
    let name = disposition.as_deref().and_then(name_of).ok_or_else(|| {
        format!("multipart: part {number}: expected Content-Disposition with a name, found none")
    })?;
    Ok((name, end + 4))
}

/// `file` of `form-data; name="file"; filename="a;b.png"`.
fn name_of(disposition: &str) -> Option<String> {
    let mut quoted = false;
    let parameters = disposition.split(|c: char| {
        quoted ^= c == '"';
        c == ';' && !quoted
    });
    let name = parameters
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(key, _)| key.trim().eq_ignore_ascii_case("name"))?;
    Some(name.1.trim().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let parts = parts(body, "xX")?;
        let owned = parts
            .into_iter()
            .map(|part| (part.name, body[part.value].to_vec()));
        Ok(owned.collect())
    }

    const FORM: &[u8] = b"--xX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n\
        --xX  \r\ncontent-disposition: form-data; filename=\"a;name=b.png\"; name=file\r\nContent-Type: image/png\r\n\r\n\
        \r\n--x\r\n--xY\0\r\r\n--xX--\r\n";

    #[test]
    fn fields_have_names_and_the_very_bytes() {
        let parts = read(FORM).unwrap();
        assert_eq!(parts[0], ("model".to_owned(), b"m".to_vec()));
        assert_eq!(parts[1], ("file".to_owned(), b"\r\n--x\r\n--xY\0\r".to_vec()));
        assert_eq!(parts.len(), 2);
        assert!(read(b"before\r\n--xX--").unwrap().is_empty());
        let content_type = "multipart/form-data; charset=utf-8; Boundary=\"xX\"";
        assert_eq!(boundary(content_type).unwrap(), "xX");
        assert!(boundary("multipart/form-data").is_err());
        assert!(boundary("multipart/form-data; boundary=").is_err());
        assert!(boundary(&format!("a; boundary={}", "x".repeat(71))).is_err());
    }

    #[test]
    fn a_form_cut_anywhere_is_refused_and_never_a_panic() {
        let whole = FORM.len() - b"\r\n".len();
        for length in 0..whole {
            let cut = read(&FORM[..length]);
            assert!(cut.is_err(), "{length}: {cut:?}");
        }
        for damaged in 0..FORM.len() {
            let mut body = FORM.to_vec();
            body[damaged] ^= 0x55;
            let _ = read(&body);
        }
        let nameless = b"--xX\r\nContent-Type: image/png\r\n\r\nm\r\n--xX--";
        assert!(
            read(nameless)
                .unwrap_err()
                .contains("part 1: expected Content-Disposition")
        );
        let endless = [b"--xX\r\n".as_slice(), &[b'a'; 10_000], b"\r\n\r\n--xX--"].concat();
        assert!(read(&endless).unwrap_err().contains("at most 8192 bytes"));
        let many = b"--xX\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n".repeat(MAX_PARTS + 1);
        assert!(
            read(&[many.as_slice(), b"--xX--"].concat())
                .unwrap_err()
                .contains("at most 4096 parts")
        );
    }
}
