//! What `--help`, the reference, completions and pages for `man` say of every verb.

use std::path::{Path, PathBuf};

use clap::{Arg, Command};

use crate::harness::{Workspace, names};

/// The headings of the groups that verbs share, in the order of every help; a verb's own come first.
const SHARED: [&str; 7] = [
    "Input",
    "Model",
    "Preprocessing",
    "Output",
    "Randomness",
    "Machine",
    "Help",
];

/// Flags that stand for each other: which of them is needed, and not what each is by default, is what their help says.
const ALTERNATIVES: [&str; 12] = [
    "budget",
    "data",
    "database",
    "features",
    "model",
    "query",
    "query_data",
    "teacher",
    "test",
    "test_data",
    "train",
    "train_data",
];

/// Every verb and subverb, as clap builds them.
fn verbs() -> Vec<Command> {
    fn add(command: &Command, verbs: &mut Vec<Command>) {
        verbs.push(command.clone());
        command.get_subcommands().for_each(|verb| add(verb, verbs));
    }
    let mut command = macula::cli::command().disable_help_subcommand(true);
    command.build();
    let mut verbs = Vec::new();
    add(&command, &mut verbs);
    verbs
}

fn name(verb: &Command) -> String {
    verb.get_bin_name().unwrap_or(verb.get_name()).to_owned()
}

fn flags(verb: &Command) -> impl Iterator<Item = &Arg> {
    verb.get_arguments()
        .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
}

/// The commands below `Examples:` in a help.
fn examples(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.trim().to_owned())
        .collect()
}

/// The words of a command, of which those in single quotes hold blanks.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in command.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

#[test]
fn every_verb_shows_examples_that_parse() {
    let verbs = verbs();
    assert!(verbs.len() > 30, "{}", verbs.len());
    for verb in &verbs {
        for help in [verb.get_after_help(), verb.get_after_long_help()] {
            let Some(help) = help else {
                assert!(verb.get_after_help().is_some(), "{}: no examples", name(verb));
                continue;
            };
            let examples = examples(&help.to_string());
            assert!((1..=3).contains(&examples.len()), "{}: {examples:?}", name(verb));
            for example in &examples {
                assert!(example.starts_with("macula "), "{example}");
                let parsed = macula::cli::command().try_get_matches_from(words(example));
                assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
                // A help is at most 100 characters wide, and what is broken in two is not copied well.
                assert!(example.len() <= 98, "{example}: {} characters", example.len());
            }
            let own = name(verb);
            assert!(
                examples.iter().any(|example| example.starts_with(&own)),
                "{own}: {examples:?}"
            );
        }
    }
}

#[test]
fn every_flag_that_may_be_left_out_says_what_it_is_then() {
    let mut silent = Vec::new();
    for verb in &verbs() {
        for arg in flags(verb) {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.is_empty(), "{} {arg}: no help", name(verb));
            let said = help.contains("[default: ") || !arg.get_default_values().is_empty();
            let open = arg.get_action().takes_values() && !arg.is_required_set() && !arg.is_positional();
            if open && !said && !ALTERNATIVES.contains(&arg.get_id().as_str()) {
                silent.push(format!("{} {arg}", name(verb)));
            }
            assert!(
                !help.contains("[default: ") || arg.get_default_values().is_empty(),
                "{} {arg}: two defaults",
                name(verb)
            );
            assert!(!help.contains("by default "), "{} {arg}: {help}", name(verb));
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn flags_stand_below_headings_in_one_order() {
    for verb in &verbs() {
        let mut headings: Vec<&str> = Vec::new();
        for arg in verb.get_arguments() {
            let heading = arg.get_help_heading();
            let heading = heading.unwrap_or_else(|| panic!("{} {arg}: no heading", name(verb)));
            if !headings.contains(&heading) {
                headings.push(heading);
            }
        }
        let shared: Vec<&str> = headings
            .iter()
            .copied()
            .filter(|heading| SHARED.contains(heading))
            .collect();
        let expected: Vec<&str> = SHARED
            .into_iter()
            .filter(|heading| shared.contains(heading))
            .collect();
        assert_eq!(shared, expected, "{}", name(verb));
        let machine: Vec<&str> = flags(verb)
            .filter(|arg| arg.get_help_heading() == Some("Machine"))
            .map(|arg| arg.get_id().as_str())
            .filter(|id| ["device", "threads", "ort_lib"].contains(id))
            .collect();
        // As help shows them: heading by heading.
        let place = |arg: &&Arg| {
            headings
                .iter()
                .position(|heading| arg.get_help_heading() == Some(heading))
        };
        let mut shown: Vec<_> = flags(verb).collect();
        shown.sort_by_key(place);
        let last: Vec<&str> = shown.iter().map(|arg| arg.get_id().as_str()).collect();
        assert!(last.ends_with(&machine), "{}: {last:?}", name(verb));
    }
}

/// One word for one thing: a flag of one name is of one group, and takes the same kind of value, on every verb.
#[test]
fn shared_flags_are_the_same_on_every_verb() {
    for (id, heading) in [
        ("force", "Output"),
        ("json", "Output"),
        ("seed", "Randomness"),
        ("bootstrap_resamples", "Randomness"),
        ("device", "Machine"),
        ("threads", "Machine"),
        ("ort_lib", "Machine"),
        ("exif", "Preprocessing"),
        ("max_pixels", "Preprocessing"),
        ("background", "Preprocessing"),
        ("batch", "Model"),
    ] {
        let mut found = 0;
        for verb in &verbs() {
            for arg in flags(verb).filter(|arg| arg.get_id() == id) {
                found += 1;
                assert_eq!(arg.get_help_heading(), Some(heading), "{} {arg}", name(verb));
            }
        }
        assert!(found > 1, "{id}");
    }
    let retired = ["--normalise", "--outputs", "--batch-size"];
    for verb in &verbs() {
        for arg in flags(verb) {
            let long = arg.get_long().map(|long| format!("--{long}"));
            assert!(
                !long.is_some_and(|long| retired.contains(&long.as_str())),
                "{} {arg}",
                name(verb)
            );
        }
    }
}

#[test]
fn older_spellings_are_understood() {
    let parses = |line: &str| {
        let parsed = macula::cli::command().try_get_matches_from(words(line));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    };
    for line in [
        "macula viz map --features f --out m.png --normalise",
        "macula extract --model m --data d --out o --outputs cls,patch --normalise",
        "macula bench extract --model m --data d --outputs cls",
        "macula eval linear-probe --train a --test b --batch-size 64",
        "macula eval segment --model m --train-data a --test-data b --batch-size 8",
        "macula export c --out m.onnx --outputs cls",
    ] {
        parses(line);
    }
    // The contract's spelling is shown.
    let help = Workspace::new().succeeds("export --help").stdout;
    assert!(help.contains("--outputs"), "{help}");
    let help = Workspace::new().succeeds("extract --help").stdout;
    assert!(!help.contains("--outputs"), "{help}");
}

fn reference_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")
}

#[test]
fn the_reference_is_what_the_command_line_says() {
    let kept = std::fs::read_to_string(reference_file()).unwrap_or_default();
    let said = macula::cli::reference();
    let differs = kept
        .lines()
        .zip(said.lines())
        .find(|(kept, said)| kept != said)
        .unwrap_or_default();
    assert!(
        kept == said,
        "docs/cli.md is not of this command line; write it again: cargo test --release --locked --test cli \
         write_the_reference -- --ignored; first difference: {differs:?}"
    );
}

#[test]
#[ignore = "writes docs/cli.md"]
fn write_the_reference() {
    let file = reference_file();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, macula::cli::reference()).unwrap();
}

#[test]
fn shells_get_completions() {
    let space = Workspace::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = space.succeeds(&format!("completions {shell}")).stdout;
        for word in ["linear-probe", "allow-unknown-labels", "completions"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    space.fails(2, "completions tcsh", &["tcsh", "bash"]);
}

#[test]
fn every_verb_has_a_page_and_pages_are_not_overwritten() {
    let space = Workspace::new();
    let run = space.succeeds("man pages/man1");
    let pages = names(&space.path("pages/man1"));
    assert_eq!(pages.len(), verbs().len(), "{pages:?}");
    assert_eq!(run.stdout.trim(), format!("pages/man1: {} pages", pages.len()));
    for page in ["macula.1", "macula-extract.1", "macula-eval-linear-probe.1"] {
        let text = std::fs::read_to_string(space.path("pages/man1").join(page)).unwrap();
        assert!(text.contains("Examples"), "{page}");
    }
    space.fails(2, "man pages/man1", &["macula", "--force"]);
    space.write("pages/man1/macula-extract.1", "older");
    space.succeeds("man pages/man1 --force");
    let text = std::fs::read_to_string(space.path("pages/man1/macula-extract.1")).unwrap();
    assert!(text.contains("fast\\-decode"), "{text}");
}

#[test]
fn every_help_is_printed() {
    let space = Workspace::new();
    for verb in verbs() {
        let name = name(&verb);
        let words = name.trim_start_matches("macula");
        for flag in ["-h", "--help"] {
            let run = space.succeeds(&format!("{words} {flag}"));
            assert!(
                run.stdout.contains("\nExamples:\n"),
                "{name} {flag}: {}",
                run.stdout
            );
            assert!(run.stdout.contains("Usage: macula"), "{name} {flag}");
        }
        let run = space.succeeds(&format!("{words} --version"));
        assert!(
            run.stdout.ends_with(&format!("{}\n", env!("CARGO_PKG_VERSION"))),
            "{}",
            run.stdout
        );
    }
}
