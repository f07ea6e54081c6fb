//! `docs/cli.md`: every verb and flag, as clap knows them.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// The whole command line as Markdown: a section a verb with its usage, its flags by heading, and its examples.
pub fn reference() -> String {
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let mut text = String::from(
        "# Command line\n\nWritten from the command line itself, as `--help` has it; CONTRIBUTING says how. Every verb also takes \
         `-h`, `--help`, `-V` and `--version`.\n",
    );
    add_section(&command, &mut text);
    text
}

fn add_section(command: &Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n## {name}\n\n{}.\n", escaped(about.trim_end_matches('.')));
    let usage = command.clone().render_usage().to_string();
    let usage: Vec<&str> = usage
        .trim_start_matches("Usage:")
        .lines()
        .map(str::trim)
        .collect();
    let _ = write!(text, "\n```\n{}\n```\n", usage.join("\n"));
    add_verbs(command, text);
    add_flags(command, text);
    if let Some(after) = command.get_after_long_help().or(command.get_after_help()) {
        let after = after.to_string();
        // `Examples:` and what else there is to say, each a paragraph with its lines indented.
        for block in after.split("\n\n") {
            let (title, lines) = block.split_once('\n').unwrap_or((block, ""));
            let _ = write!(text, "\n{title}\n\n```\n{}\n```\n", unindented(lines));
        }
    }
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        add_section(verb, text);
    }
}

/// One line a subcommand.
fn add_verbs(command: &Command, text: &mut String) {
    let mut verbs = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .peekable();
    if verbs.peek().is_some() {
        text.push('\n');
    }
    for verb in verbs {
        let name = verb.get_bin_name().unwrap_or(verb.get_name());
        let link = name.replace(' ', "-");
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "- [`{name}`](#{link}): {}", escaped(&about));
    }
}

/// The flags below their headings, in the order of `--help`.
fn add_flags(command: &Command, text: &mut String) {
    let flags: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .collect();
    let mut headings: Vec<&str> = Vec::new();
    for heading in flags.iter().filter_map(|arg| arg.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        let _ = write!(text, "\n**{heading}**\n\n");
        let below = flags.iter().filter(|arg| arg.get_help_heading() == Some(heading));
        for arg in below {
            let _ = writeln!(text, "- {}", flag(arg));
        }
    }
}

/// One flag: its names and value, what it is, its values and its default.
fn flag(arg: &Arg) -> String {
    let mut said = vec![escaped(
        &arg.get_help().map(ToString::to_string).unwrap_or_default(),
    )];
    let takes_value = arg.get_action().takes_values();
    if takes_value && !arg.is_hide_possible_values_set() {
        let values: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !values.is_empty() {
            said.push(format!("[values: {}]", values.join(", ")));
        }
    }
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    if takes_value && !defaults.is_empty() {
        said.push(format!("[default: {}]", defaults.join(" ")));
    }
    let also: Vec<String> = arg
        .get_visible_aliases()
        .unwrap_or_default()
        .iter()
        .map(|alias| format!("`--{alias}`"))
        .collect();
    if !also.is_empty() {
        said.push(format!("[also: {}]", also.join(", ")));
    }
    format!("`{arg}`: {}", said.join(" "))
}

/// `text` for Markdown, in which `<` would begin a tag and `*` emphasis.
fn escaped(text: &str) -> String {
    text.replace('*', "\\*").replace('<', "\\<")
}

/// `lines` without the blanks that begin all of them.
fn unindented(lines: &str) -> String {
    let blanks = lines
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    let lines: Vec<&str> = lines
        .lines()
        .map(|line| line.get(blanks..).unwrap_or(""))
        .collect();
    lines.join("\n")
}
