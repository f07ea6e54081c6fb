//! Which column of a table holds what: the one that the user names, else the documented name, else the one usual name that
//! is there, with a notice. Where several would do, none is guessed.

use std::path::Path;

use super::lossless;
use super::notice::say_once;
use crate::tables::{Kind, Table};
use crate::{Error, Result};

/// What a user writes for no labels.
pub(super) const NO_LABELS: &str = "none";

/// What a column may be wanted for.
pub(super) struct Role {
    /// For messages.
    what: &'static str,
    /// The flag that names the column.
    flag: &'static str,
    /// Names that are taken without a word, the first that is there.
    documented: &'static [&'static str],
    /// Usual names in lower case; those of a later row count only where there is none of an earlier one.
    usual: &'static [&'static [&'static str]],
    fits: fn(Kind) -> bool,
    expected: &'static str,
}

/// Paths of images.
pub(super) const PATH: Role = Role {
    what: "paths",
    flag: "--path-column",
    documented: &["path", "image"],
    usual: &[
        &["path"],
        &["image"],
        &[
            "file_name",
            "filename",
            "file",
            "file_path",
            "filepath",
            "image_path",
            "imagepath",
            "img_path",
            "image_file",
            "image_filename",
            "image_name",
            "img",
            "img_name",
            "img_file",
        ],
    ],
    fits: has_text,
    expected: "text",
};

/// Names of rows, in a table that carries the images.
pub(super) const NAME: Role = Role {
    documented: &["path", "file_name"],
    usual: &[],
    ..PATH
};

/// Classes.
pub(super) const LABEL: Role = Role {
    what: "labels",
    flag: "--label-column",
    documented: &["label"],
    usual: &[
        &["label"],
        &[
            "labels",
            "class",
            "category",
            "target",
            "fine_label",
            "cls",
            "species",
        ],
        &[
            "class_name",
            "classname",
            "label_name",
            "category_name",
            "target_name",
            "coarse_label",
        ],
        &[
            "class_id",
            "label_id",
            "category_id",
            "target_id",
            "class_idx",
            "label_idx",
        ],
    ],
    fits: has_text,
    expected: "text, numbers, dates or true and false",
};

/// Images themselves.
pub(super) const IMAGE: Role = Role {
    what: "images",
    flag: "--image-column",
    documented: &["image"],
    usual: &[
        &["image"],
        &[
            "img",
            "image_bytes",
            "img_bytes",
            "bytes",
            "jpg",
            "jpeg",
            "png",
            "webp",
        ],
    ],
    fits: is_image,
    expected: "bytes, or structs with `bytes`",
};

fn has_text(kind: Kind) -> bool {
    matches!(kind, Kind::Text | Kind::Bytes | Kind::Value)
}

pub(super) fn is_image(kind: Kind) -> bool {
    matches!(kind, Kind::Bytes | Kind::Image)
}

/// The column of `table` for `role`: `requested`, or one that is found by its name; `None` where there is none.
///
/// # Errors
/// A column that is asked for and is not there or holds something else; several columns that would do.
pub(super) fn choose(
    table: &Table,
    file: &Path,
    role: &Role,
    requested: Option<&str>,
) -> Result<Option<String>> {
    let names = table.names();
    let fits = |name: &str| table.kind(name).is_some_and(role.fits);
    if let Some(requested) = requested {
        if names.contains(&requested) {
            return match fits(requested) {
                true => Ok(Some(requested.to_owned())),
                false => Err(holds_something_else(table, file, role, requested)),
            };
        }
        if requested == NO_LABELS && role.flag == LABEL.flag {
            return Ok(None);
        }
        let reason = format!(
            "expected column `{requested}` ({}), found {}",
            role.flag,
            listed(&names)
        );
        return Err(Error::input(lossless(file), reason));
    }
    if let Some(name) = role.documented.iter().find(|name| fits(name)) {
        return Ok(Some((*name).to_owned()));
    }
    for &usual in role.usual {
        let is_usual = |name: &&&str| usual.contains(&plain(name).as_str()) && fits(name);
        let found: Vec<&str> = names.iter().filter(is_usual).copied().collect();
        if let Some(name) = the_only(file, role, &found)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The column of labels, which may also be the one of which the table says that it holds classes.
///
/// # Errors
/// As [`choose`].
pub(super) fn choose_label(table: &Table, file: &Path, requested: Option<&str>) -> Result<Option<String>> {
    let found = choose(table, file, &LABEL, requested)?;
    if found.is_some() || requested.is_some() {
        return Ok(found);
    }
    let names = table.names();
    let classes: Vec<&str> = names
        .into_iter()
        .filter(|name| table.class_names(name).is_some())
        .collect();
    if let Some(name) = the_only(file, &LABEL, &classes)? {
        return Ok(Some(name));
    }
    if let Some(name) = LABEL.documented.iter().find(|name| table.kind(name).is_some()) {
        let error = holds_something_else(table, file, &LABEL, name);
        say_once(format!("{error}: images are read without labels"));
    }
    Ok(None)
}

/// The only one of `found`, with a notice.
fn the_only(file: &Path, role: &Role, found: &[&str]) -> Result<Option<String>> {
    match found {
        [] => Ok(None),
        [name] => {
            let Role { what, flag, .. } = role;
            say_once(format!(
                "{}: {what} are taken from column `{name}` ({flag} names another)",
                lossless(file)
            ));
            Ok(Some((*name).to_owned()))
        }
        several => {
            let reason = format!(
                "expected one column of {}, found {}: say which with {}",
                role.what,
                listed(several),
                role.flag
            );
            Err(Error::input(lossless(file), reason))
        }
    }
}

fn holds_something_else(table: &Table, file: &Path, role: &Role, name: &str) -> Error {
    let found = match table.kind(name) {
        Some(Kind::Text) => "text",
        Some(Kind::Bytes) => "bytes",
        Some(Kind::Image) => "images",
        Some(Kind::Value) => "numbers or dates",
        Some(Kind::Nested) | None => "lists or structs",
    };
    let reason = format!("column `{name}`: expected {}, found {found}", role.expected);
    Error::input(lossless(file), reason)
}

/// A name as the table of usual names has it.
fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace([' ', '-'], "_")
}

/// Names for a message.
pub(super) fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.is_empty() {
        true => "none".to_owned(),
        false => quoted.join(", "),
    }
}

/// The labels in `column`, by the names of the classes where the table has them: of a number below 0, which stands for an
/// unknown class there, none.
///
/// # Errors
/// Values that cannot be read; numbers beyond the names.
pub(super) fn labels(table: &Table, file: &Path, column: &str) -> Result<Vec<Option<String>>> {
    let mut labels = table.text(column)?.unwrap_or_default();
    let Some(names) = table.class_names(column) else {
        return Ok(labels);
    };
    for (row, label) in labels.iter_mut().enumerate() {
        let Some(number) = label.as_deref().and_then(|label| label.parse::<i64>().ok()) else {
            continue;
        };
        *label = match usize::try_from(number) {
            Err(_) => None,
            Ok(number) => {
                let name = names.get(number).cloned();
                Some(name.ok_or_else(|| {
                    let reason = format!(
                        "column `{column}`, row {row}: expected a number below {}, the number of class names in the file, found {number}",
                        names.len()
                    );
                    Error::input(lossless(file), reason)
                })?)
            }
        };
    }
    Ok(labels)
}
