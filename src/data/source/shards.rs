//! Several files named at once: `shards/{000..012}.tar`, `shards/*.parquet`.

use std::fs;
use std::path::{Path, PathBuf};

use super::lossless;
use crate::{Error, Result};

/// The shards that `spec` names, in order.
pub(super) fn expand(spec: &str) -> Result<Vec<PathBuf>> {
    if let Some(names) = braces(spec)? {
        let shards: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        return match shards.iter().find(|shard| !shard.is_file()) {
            Some(missing) => Err(Error::input(
                lossless(missing),
                format!("no such shard of {spec}"),
            )),
            None => Ok(shards),
        };
    }
    let path = Path::new(spec);
    let pattern = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if path.is_file() || !pattern.contains('*') {
        return Ok(vec![path.to_owned()]);
    }
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut shards = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        // As a shell does: what is hidden only where the pattern says so.
        if !pattern.starts_with('.') && entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if matches(&pattern, &entry.file_name().to_string_lossy()) && entry.path().is_file() {
            shards.push(entry.path());
        }
    }
    shards.sort();
    if shards.is_empty() {
        return Err(Error::input(spec, "no shard matches this pattern"));
    }
    Ok(shards)
}

/// `a{08..11}b` as `a08b` to `a11b`, every range of the text; none where there is none.
fn braces(spec: &str) -> Result<Option<Vec<String>>> {
    let Some((before, rest)) = spec.split_once('{') else {
        return Ok(None);
    };
    let wrong = || Error::input(spec, "expected a range such as {000..012} between the braces");
    let (range, after) = rest.split_once('}').ok_or_else(wrong)?;
    let (first, last) = range.split_once("..").ok_or_else(wrong)?;
    let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse::<u32>().map_err(|_| wrong()),
        false => Err(wrong()),
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(wrong());
    }
    let tails = braces(after)?.unwrap_or_else(|| vec![after.to_owned()]);
    let width = first.len();
    let names = (from..=to).flat_map(|number| {
        tails
            .iter()
            .map(move |tail| format!("{before}{number:0width$}{tail}"))
    });
    Ok(Some(names.collect()))
}

/// Whether `name` is `pattern` with any text in place of each `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*.tar", "a.tar", true),
            ("*.tar", "a.tgz", false),
            ("s*-*.tar", "s1-2.tar", true),
            ("s*-*.tar", "s12.tar", false),
            ("a.tar", "a.tar", true),
            ("a*", "b", false),
            ("*a*", "bab", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        let names = braces("x{8..10}-{0..1}.tar").unwrap().unwrap();
        assert_eq!(names[0], "x8-0.tar");
        assert_eq!(names[5], "x10-1.tar");
    }
}
