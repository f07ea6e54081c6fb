//! Mutation testing with one build: every mutant of a folder is compiled into one test binary and chosen at run time by an
//! environment variable. `README.md` says how to use it; `rewrite/` makes the mutants, `build.rs` drops those that do not compile,
//! `reach.rs` finds the tests that reach each, `judge.rs` runs them.

mod arguments;
mod build;
mod copy;
mod judge;
mod outcome;
mod process;
mod reach;
mod rewrite;
mod sample;

use std::process::ExitCode;

use arguments::Arguments;
use build::Built;
use copy::Package;
use rewrite::Source;

fn main() -> ExitCode {
    match Arguments::parse(std::env::args().skip(1)).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("mutants: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A failure, said in one line.
pub type Result<T> = std::result::Result<T, String>;

fn run(arguments: &Arguments) -> Result<()> {
    let package = Package::holding_all(&arguments.root, &arguments.folders)?;
    let built = arguments.work.join(format!("{}.json", package.name));
    if arguments.build {
        build(arguments, &package)?.write(&built)?;
    }
    if arguments.judge {
        judge(arguments, Built::read(&built)?)?;
    }
    Ok(())
}

fn build(arguments: &Arguments, package: &Package) -> Result<Built> {
    let mut sources = rewrite::sources(&arguments.root, &arguments.folders, &arguments.leave_out)?;
    let found: usize = sources.iter().map(Source::alive).sum();
    eprintln!("{found} mutants in {} files of {}", sources.len(), package.name);
    let tree = arguments.work.join("tree");
    let switch = rewrite::with_switch(&arguments.root, package, found)?;
    let rewritten = sources
        .iter()
        .map(|source| &source.path)
        .chain(switch.iter().map(|(path, _)| path));
    copy::tree(
        &arguments.root,
        &tree,
        package,
        &rewritten.cloned().collect::<Vec<_>>(),
    )?;
    for (path, text) in &switch {
        copy::write(&tree.join(path), text.as_bytes())?;
    }
    let binaries = build::until_it_compiles(&tree, package, &mut sources, &arguments.tests)?;
    let mutants = rewrite::alive(&sources);
    eprintln!("{} of them compile", mutants.len());
    Ok(Built { binaries, mutants })
}

fn judge(arguments: &Arguments, built: Built) -> Result<()> {
    let mut mutants = built.mutants;
    mutants.retain(|mutant| {
        arguments
            .folders
            .iter()
            .any(|folder| mutant.file.starts_with(folder.as_str()))
    });
    let chosen = match &arguments.again {
        Some(file) => outcome::unsettled(file, mutants)?,
        None => sample::choose(mutants, arguments.sample, arguments.seed),
    };
    let reach = reach::measure(&built.binaries, &arguments.modules, &arguments.work)?;
    let name = arguments.folders.join("+").replace('/', "-");
    let results = arguments.out.join(format!("{name}.jsonl"));
    let outcomes = judge::all(&chosen, &reach, &arguments.work, &results)?;
    eprintln!("{}", results.display());
    println!("{}", outcome::table(&arguments.folders, &outcomes));
    Ok(())
}
