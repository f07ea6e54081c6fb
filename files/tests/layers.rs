//! Folders of `src` import only what stands before them in the table of ARCHITECTURE.md.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The place of every folder or file of `src` in the table below `## Layers`, which names them in its first column.
fn order() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("\n## Layers\n").expect("a section `## Layers`");
    let section = section.split("\n## ").next().unwrap();
    let rows = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `src/"))
        .map(|row| row.split('`').next().unwrap().to_owned());
    rows.zip(0..).collect()
}

/// Every Rust file below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The modules from the root of the crate to that of a file: `extract/folder.rs` and `extract/folder/mod.rs` are both
/// `[extract, folder]`.
fn module_of(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// What a file at `module` imports of the crate's modules, test code included: the first names behind `crate::`, and those that a
/// chain of `super::` reaches.
fn imports(text: &str, module: &[String]) -> Vec<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap())
        .collect::<Vec<_>>()
        .join("\n");
    let tests = code.find("mod tests {").unwrap_or(code.len());
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        found.extend(first_names(&code[at + "crate::".len()..]));
    }
    let mut from = 0;
    while let Some(at) = code[from..].find("super::").map(|at| at + from) {
        let chain = code[at..]
            .split("super::")
            .take_while(|part| part.is_empty())
            .count();
        let behind = at + chain * "super::".len();
        let depth = module.len() + usize::from(at > tests);
        if chain >= depth {
            found.extend(first_names(&code[behind..]));
        }
        from = behind;
    }
    // `Error`, `Result` and macros are no modules.
    found.retain(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    found
}

/// `data` of `data::open`; `data` and `files` of `{data::open, files}`.
fn first_names(path: &str) -> Vec<String> {
    let first = |text: &str| -> String {
        let text = text.trim_start();
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = path.strip_prefix('{') else {
        return vec![first(path)];
    };
    let mut names = vec![first(group)];
    let mut depth = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(first(&group[at + 1..])),
            _ => {}
        }
    }
    names
}

#[test]
fn names_of_imports_are_found() {
    let module = ["viz".to_owned(), "map".to_owned()];
    let text = "use crate::{Error, data::{a, b}, files};\nuse crate::draw::Canvas; // crate::cli\nuse super::super::extract::x;\n\
                use super::own;\nmod tests { use super::super::own; }\n$crate::macros; macula_crate::other;";
    assert_eq!(imports(text, &module), ["data", "files", "draw", "extract"]);
    assert_eq!(module_of(Path::new("viz/mod.rs")), ["viz"]);
}

#[test]
fn folders_import_only_what_stands_before_them() {
    let order = order();
    assert!(
        order.len() > 20,
        "the table of ARCHITECTURE.md was not read: {order:?}"
    );
    let src = root().join("src");
    let mut wrong = Vec::new();
    for file in sources(&src) {
        let inside = file.strip_prefix(&src).unwrap();
        let module = module_of(inside);
        if ["lib", "main"].contains(&module[0].as_str()) {
            continue;
        }
        let Some(own) = order.get(&module[0]) else {
            wrong.push(format!(
                "src/{}: `{}` is not in the table",
                inside.display(),
                module[0]
            ));
            continue;
        };
        for name in imports(&fs::read_to_string(&file).unwrap(), &module) {
            if name == module[0] {
                continue;
            }
            match order.get(&name) {
                Some(theirs) if theirs < own => {}
                Some(_) => wrong.push(format!(
                    "src/{}: imports `{name}`, which stands behind `{}`",
                    inside.display(),
                    module[0]
                )),
                None => wrong.push(format!("src/{}: `{name}` is not in the table", inside.display())),
            }
        }
    }
    let there: Vec<&String> = order
        .keys()
        .filter(|name| !src.join(name).is_dir() && !src.join(format!("{name}.rs")).is_file())
        .collect();
    assert!(there.is_empty(), "in the table and not in src: {there:?}");
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
