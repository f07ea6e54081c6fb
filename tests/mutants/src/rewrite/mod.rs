//! From source text to the same text with every mutant in it. `find.rs` walks the syntax tree and says what could be exchanged,
//! `table.rs` by what, `render.rs` writes the text, `switch.rs` is the module that chooses at run time.

mod find;
mod render;
pub mod switch;
mod table;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::copy::{self, Package};
pub use render::Rendered;

/// One change of one place.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// The number by which it is switched on, from 1.
    pub id: usize,
    /// What is done instead, as Rust text.
    pub text: String,
    /// What was changed, in a word or two.
    pub kind: &'static str,
    /// The change as people read it.
    pub change: String,
    /// Whether it is in the text: taken out when it does not compile.
    pub alive: bool,
}

/// How the mutants of a place stand beside what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `(if on(1) { mutant } else { original })`.
    Expression,
    /// `if on(1) {} else { original }`.
    Statement,
    /// `if on(1) { mutant }` before what follows; the range is empty.
    Before,
}

/// A place of the text and its mutants.
#[derive(Debug, Clone)]
pub struct Site {
    /// Bytes of the text.
    pub range: Range<usize>,
    /// How it is written.
    pub shape: Shape,
    /// Line of its beginning, from 1.
    pub line: usize,
    /// Column of its beginning, from 1.
    pub column: usize,
    /// The function that it stands in.
    pub function: String,
    /// At least one.
    pub mutants: Vec<Mutant>,
}

/// A file that is mutated.
#[derive(Debug, Clone)]
pub struct Source {
    /// Relative to the checkout.
    pub path: PathBuf,
    /// As it is there.
    pub text: String,
    /// Sorted: outer before inner, else by their beginning.
    pub sites: Vec<Site>,
}

impl Source {
    /// How many of its mutants are in the text.
    pub fn alive(&self) -> usize {
        self.sites
            .iter()
            .flat_map(|site| &site.mutants)
            .filter(|mutant| mutant.alive)
            .count()
    }

    /// The text with the mutants.
    pub fn render(&self) -> Rendered {
        render::render(&self.text, &self.sites)
    }
}

/// A mutant to be judged: what a result says of it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Chosen {
    /// Its number in this build.
    pub id: usize,
    /// File, relative to the checkout.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Function, with the type it belongs to.
    pub function: String,
    /// What was changed.
    pub kind: String,
    /// The change.
    pub change: String,
}

impl Chosen {
    /// Whether it is the same change of the same place, whatever its number.
    pub fn same(&self, other: &Self) -> bool {
        (&self.file, self.line, self.column, &self.kind, &self.change)
            == (&other.file, other.line, other.column, &other.kind, &other.change)
    }
}

/// The files of `folders` with their mutants, numbered from 1; without those that are compiled for tests only, those whose path holds
/// a part of `leave_out`, and those without a mutant.
pub fn sources(root: &Path, folders: &[String], leave_out: &[String]) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = Vec::new();
    let mut paths = Vec::new();
    for folder in folders {
        paths.extend(copy::files_below(&root.join(folder))?);
    }
    let mut for_tests = Vec::new();
    for path in paths {
        let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
        let name = relative.to_string_lossy().into_owned();
        if !name.ends_with(".rs") || leave_out.iter().any(|part| name.contains(part)) {
            continue;
        }
        let text = copy::read(&path)?;
        let found = find::sites(&text).map_err(|error| format!("{name}: {error}"))?;
        for_tests.extend(
            found
                .test_modules
                .iter()
                .flat_map(|module| module_paths(&relative, module)),
        );
        sources.push(Source {
            path: relative,
            text,
            sites: found.sites,
        });
    }
    sources.retain(|source| {
        let for_test = for_tests
            .iter()
            .any(|test: &PathBuf| source.path.starts_with(test));
        !for_test && !source.sites.is_empty()
    });
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources.dedup_by(|a, b| a.path == b.path);
    number(&mut sources);
    Ok(sources)
}

/// Where the file or folder of `module`, declared in `file`, may be. A name with a dot is a `#[path]`.
fn module_paths(file: &Path, module: &str) -> Vec<PathBuf> {
    let beside = file.parent().unwrap_or(Path::new(""));
    if module.contains('.') {
        return vec![beside.join(module)];
    }
    let stem = file.file_stem().unwrap_or_default();
    let below = if stem == "mod" || stem == "lib" {
        beside.to_owned()
    } else {
        beside.join(stem)
    };
    vec![below.join(format!("{module}.rs")), below.join(module)]
}

fn number(sources: &mut [Source]) {
    let mutants = sources
        .iter_mut()
        .flat_map(|source| &mut source.sites)
        .flat_map(|site| &mut site.mutants);
    for (place, mutant) in mutants.enumerate() {
        mutant.id = place + 1;
    }
}

/// The mutants that are in the text.
pub fn alive(sources: &[Source]) -> Vec<Chosen> {
    let mut chosen = Vec::new();
    for source in sources {
        for site in &source.sites {
            for mutant in site.mutants.iter().filter(|mutant| mutant.alive) {
                chosen.push(Chosen {
                    id: mutant.id,
                    file: source.path.to_string_lossy().into_owned(),
                    line: site.line,
                    column: site.column,
                    function: site.function.clone(),
                    kind: mutant.kind.to_owned(),
                    change: mutant.change.clone(),
                });
            }
        }
    }
    chosen
}

/// The root module of the package with the switch's module declared, and the switch's text: paths relative to the checkout.
pub fn with_switch(root: &Path, package: &Package, mutants: usize) -> Result<[(PathBuf, String); 2]> {
    let lib = package.folder.join("src/lib.rs");
    let text = copy::read(&root.join(&lib))?;
    Ok([
        (lib, text + "\n#[doc(hidden)]\npub mod mutant_switch;\n"),
        (package.folder.join("src/mutant_switch.rs"), switch::text(mutants)),
    ])
}
