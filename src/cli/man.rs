//! `macula man`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_mangen::Man;

use super::args::{OUTPUT, examples};
use super::output;
use crate::{Error, Result, files};

/// Arguments of `macula man`.
#[derive(Debug, Args)]
#[command(next_help_heading = OUTPUT, after_help = examples(&["macula man man/", "macula man ~/.local/share/man/man1 --force"]))]
pub struct ManArgs {
    /// Folder for macula.1, macula-extract.1, macula-eval-knn.1 and the others
    #[arg(value_name = "DIR")]
    out: PathBuf,
    /// Replace pages that exist
    #[arg(long)]
    force: bool,
}

impl ManArgs {
    /// Writes the pages, and prints how many.
    pub fn run(&self) -> Result<()> {
        let pages = pages()?;
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io(&self.out, e))?;
        for (name, _) in &pages {
            files::refuse_existing(&self.out.join(name), self.force)?;
        }
        for (name, text) in &pages {
            let page = self.out.join(name);
            files::write_whole(&page, |file| {
                file.write_all(text).map_err(|e| Error::io(&page, e))
            })?;
        }
        output::print(&format!("{}: {} pages", self.out.display(), pages.len()))
    }
}

/// Every page by its file's name.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    // Without the verb `help`, whose pages would repeat all others.
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)
        .map_err(|e| Error::failed("man", e.to_string()))?;
    pages.push((page.get_filename(), text));
    command
        .get_subcommands()
        .try_for_each(|verb| add_pages(verb, pages))
}
