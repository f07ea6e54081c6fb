//! libFuzzer over macula's own parsers: `MACULA_FUZZ_TARGET` names the parser, and every input is answered by it. A panic, an
//! abort, a hang or a run on memory ends the fuzzer; any error is an answer.
#![no_main]

mod targets;

use std::cell::RefCell;
use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};

use targets::Target;

/// The parser that this process is about.
fn target() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("MACULA_FUZZ_TARGET").unwrap_or_default();
        let names = || {
            targets::TARGETS
                .iter()
                .map(|target| target.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let found = targets::TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| {
            eprintln!("MACULA_FUZZ_TARGET: expected one of {}, found `{name}`", names());
            std::process::exit(2)
        })
    })
}

thread_local! {
    /// Where inputs are written that are read by their path.
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().expect("a temporary folder"));
        (target().read)(folder.path(), bytes);
    });
    Corpus::Keep
});
