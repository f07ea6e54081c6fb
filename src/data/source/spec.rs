//! What a user typed as a source, taken apart: where it is, and which columns of a table are meant. The columns stand behind the
//! place, `list.csv#label=species&path=file`, so that one text names a source wholly wherever it is kept: in `config.toml`, in
//! a pipeline, in `meta.json`. The flags `--path-column`, `--label-column` and `--image-column` write them there.

use std::path::Path;

use crate::{Error, Result};

/// Columns of a table that the user names; those that are not named are found by their usual names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// Paths of the images, or names of the rows where the table carries the images.
    pub path: Option<String>,
    /// Labels; `none` for no labels.
    pub label: Option<String>,
    /// The images themselves.
    pub image: Option<String>,
}

impl Columns {
    /// Whether no column is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The columns that are named, by what they hold.
    fn named(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let all = [
            ("path", &self.path),
            ("label", &self.label),
            ("image", &self.image),
        ];
        all.into_iter()
            .filter_map(|(key, column)| Some((key, column.as_ref()?)))
    }

    /// The source `spec` with these columns; those that `spec` names already stay unless they are named here too.
    ///
    /// # Errors
    /// A source that is no table.
    pub fn over(&self, spec: &str) -> Result<String> {
        if self.is_empty() {
            return Ok(spec.to_owned());
        }
        let (place, named) = split(spec)?;
        if !is_table_name(place) {
            let named = self
                .named()
                .next()
                .map(|(key, column)| format!("{key}_column {column}"));
            return Err(Error::setting(
                named.unwrap_or_default(),
                format!("expected a CSV or Parquet file, found {spec}"),
            ));
        }
        let or = |new: &Option<String>, old: Option<String>| new.clone().or(old);
        let columns = Self {
            path: or(&self.path, named.path),
            label: or(&self.label, named.label),
            image: or(&self.image, named.image),
        };
        Ok(columns.behind(place))
    }

    /// [`Self::over`] for several sources, of which those that are no tables stay as they are.
    ///
    /// # Errors
    /// No table among them.
    pub fn over_tables<const N: usize>(&self, specs: [&str; N]) -> Result<[String; N]> {
        let mut named = specs.map(str::to_owned);
        let mut any = self.is_empty();
        for (named, spec) in named.iter_mut().zip(specs) {
            if is_table_name(split(spec)?.0) {
                *named = self.over(spec)?;
                any = true;
            }
        }
        match any {
            true => Ok(named),
            false => self
                .over(specs.first().copied().unwrap_or_default())
                .map(|_| named),
        }
    }

    /// `place` with these columns behind it.
    pub(crate) fn behind(&self, place: &str) -> String {
        let named = self
            .named()
            .map(|(key, column)| format!("{key}={}", escaped(column)));
        let named: Vec<String> = named.collect();
        match named.is_empty() {
            true => place.to_owned(),
            false => format!("{place}#{}", named.join("&")),
        }
    }
}

/// Whether a place is a table by its name, whatever is in it.
pub(super) fn is_table_name(place: &str) -> bool {
    let lower = place.to_ascii_lowercase();
    [".csv", ".tsv", ".parquet", ".pq"]
        .iter()
        .any(|end| lower.ends_with(end))
}

/// The place in `spec`, and the columns behind it.
pub(super) fn split(spec: &str) -> Result<(&str, Columns)> {
    let all = || Ok((spec, Columns::default()));
    let Some((place, named)) = spec.rsplit_once('#') else {
        return all();
    };
    if !is_table_name(place) && !Path::new(place).is_file() || Path::new(spec).exists() {
        return all();
    }
    let mut columns = Columns::default();
    for part in named.split('&') {
        let (key, name) = part.split_once('=').unwrap_or((part, ""));
        let column = match key {
            "path" => &mut columns.path,
            "label" => &mut columns.label,
            "image" => &mut columns.image,
            _ => return Err(unfit(spec, part)),
        };
        let name = unescaped(name).filter(|name| !name.is_empty());
        *column = Some(name.ok_or_else(|| unfit(spec, part))?);
    }
    Ok((place, columns))
}

fn unfit(spec: &str, part: &str) -> Error {
    let reason = format!("expected path=COLUMN, label=COLUMN or image=COLUMN behind the #, found `{part}`");
    Error::input(spec, reason)
}

/// A column's name with what parts names written `%HH`.
fn escaped(name: &str) -> String {
    name.replace('%', "%25").replace('&', "%26").replace('#', "%23")
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        if *byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: Option<&str>, label: Option<&str>, image: Option<&str>) -> Columns {
        let own = |name: Option<&str>| name.map(str::to_owned);
        Columns {
            path: own(path),
            label: own(label),
            image: own(image),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let columns = named(Some("file & name"), Some("100 %#1=x"), None);
        let spec = columns.over("a#b/list.csv").unwrap();
        assert_eq!(spec, "a#b/list.csv#path=file %26 name&label=100 %25%231=x");
        assert_eq!(split(&spec).unwrap(), ("a#b/list.csv", columns));
        let more = named(None, Some("kind"), Some("img")).over(&spec).unwrap();
        assert_eq!(more, "a#b/list.csv#path=file %26 name&label=kind&image=img");
    }

    #[test]
    fn other_marks_are_left_alone() {
        for spec in [
            "idx:folder#train",
            "video:clip.mp4#fps=2",
            "photos#label=x",
            "list.csv",
            "-",
        ] {
            assert_eq!(split(spec).unwrap(), (spec, Columns::default()));
        }
        for wrong in [
            "list.csv#lable=x",
            "list.csv#label=",
            "d/*.parquet#x",
            "list.csv#label=%zz",
        ] {
            assert!(
                split(wrong).unwrap_err().to_string().contains("behind the #"),
                "{wrong}"
            );
        }
        let columns = named(None, Some("x"), None);
        assert!(columns.over("photos").is_err() && columns.over_tables(["photos", "-"]).is_err());
        let both = columns.over_tables(["photos", "a.parquet"]).unwrap();
        assert_eq!(both, ["photos", "a.parquet#label=x"]);
        assert_eq!(Columns::default().over_tables(["photos"]).unwrap(), ["photos"]);
    }
}
