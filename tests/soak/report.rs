//! A soak's outcome as text.

use super::findings::{Fault, Tally};
use super::supervisor::Outcome;

/// Counts by kind, then every fault with its first inputs.
pub fn text(outcome: &Outcome) -> String {
    let mut text = format!(
        "{:<24}{:>10}{:>10}{:>10}{:>9}{:>9}{:>8}{:>8}{:>7}{:>6}{:>7}{:>8}{:>7}{:>9}\n",
        "kind",
        "library",
        "accepted",
        "refused",
        "commands",
        "code 0",
        "code 1",
        "code 2",
        "panics",
        "hangs",
        "memory",
        "signals",
        "lines",
        "slowest"
    );
    let mut all = Tally::default();
    for (kind, tally) in &outcome.tallies {
        text += &row(kind, tally, outcome, |found| found == *kind);
        all.add(tally.clone());
    }
    text += &row("all", &all, outcome, |_| true);
    text += &format!(
        "{} inputs in {:.0} s. panics: also text of a panic on stderr. lines: errors that are not one clear line with the file's \
         name, and other exit codes. slowest in ms\n",
        all.tried + all.commands,
        outcome.took.as_secs_f64()
    );
    if all.unwritable > 0 {
        text += &format!("{} inputs could not be written to disk\n", all.unwritable);
    }
    for (place, count) in &all.caught {
        text +=
            &format!("caught by the library itself and answered with an error: {count} panics at {place}\n");
    }
    for ((kind, binary, fault, place), found) in &outcome.found {
        let way = if *binary { "binary" } else { "library" };
        text += &format!("\n{fault:?} in {kind} ({way}), {} times: {place}\n", found.count);
        for (finding, path) in &found.first {
            let message: Vec<String> = finding
                .message
                .lines()
                .take(4)
                .map(|line| line.chars().take(300).collect())
                .collect();
            text += &format!("    {}\n", message.join("\n    "));
            if !finding.command.is_empty() {
                text += &format!("    macula {}\n", finding.command);
            }
            text += &format!("    kept in {}\n", path.display());
        }
    }
    if outcome.found.is_empty() {
        text += "nothing found\n";
    } else {
        text += "\nagain: cargo test --release --test soak -- --again FOLDER\n";
    }
    text
}

fn row(name: &str, tally: &Tally, outcome: &Outcome, of: impl Fn(&str) -> bool) -> String {
    let count = |faults: &[Fault]| -> u64 {
        let of_fault = outcome
            .found
            .iter()
            .filter(|((kind, _, fault, _), _)| of(kind) && faults.contains(fault));
        of_fault.map(|(_, found)| found.count).sum()
    };
    let code = |code: i32| tally.exit_codes.get(&code).copied().unwrap_or(0);
    format!(
        "{name:<24}{:>10}{:>10}{:>10}{:>9}{:>9}{:>8}{:>8}{:>7}{:>6}{:>7}{:>8}{:>7}{:>9}\n",
        tally.tried,
        tally.accepted,
        tally.refused,
        tally.commands,
        code(0),
        code(1),
        code(2),
        count(&[Fault::Panic, Fault::PanicText]),
        count(&[Fault::Hang]),
        count(&[Fault::Memory]),
        count(&[Fault::Signal]),
        count(&[
            Fault::ExitCode,
            Fault::NotOneLine,
            Fault::SeveralLines,
            Fault::NamesNoFile,
            Fault::LongLine,
            Fault::ControlCharacters
        ]),
        tally.slowest_ms,
    )
}
