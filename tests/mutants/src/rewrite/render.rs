//! The text with its mutants, and where in it each of them stands.

use std::ops::Range;

use super::{Mutant, Shape, Site};

/// A rewritten text.
#[derive(Debug, Default)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Bytes of the text of each mutant alone, with its number.
    pub mutants: Vec<(usize, Range<usize>)>,
    /// Bytes of each site, the choice between its mutants and the original included, with its place in the list of sites.
    pub sites: Vec<(usize, Range<usize>)>,
}

/// Writes `text` with the mutants of `sites`, which are nested or apart, outer before inner. A mutant's own text is the original's:
/// one mutant is on at a time, so nothing inside it needs a choice, and the text grows with its depth instead of doubling.
pub fn render(text: &str, sites: &[Site]) -> Rendered {
    let mut rendered = Rendered::default();
    let mut writer = Writer {
        text,
        sites,
        next: 0,
        rendered: &mut rendered,
    };
    writer.range(0..text.len());
    rendered
}

struct Writer<'a> {
    text: &'a str,
    sites: &'a [Site],
    /// The first site that is not yet written.
    next: usize,
    rendered: &'a mut Rendered,
}

impl Writer<'_> {
    /// Writes the text of `range` with the sites in it that are still to come.
    fn range(&mut self, range: Range<usize>) {
        let mut at = range.start;
        while let Some(site) = self.sites.get(self.next) {
            if site.range.start >= range.end && !(site.range.is_empty() && site.range.start == range.end) {
                break;
            }
            self.rendered.text.push_str(&self.text[at..site.range.start]);
            at = site.range.end;
            self.next += 1;
            self.site(self.next - 1);
        }
        self.rendered.text.push_str(&self.text[at..range.end]);
    }

    fn site(&mut self, index: usize) {
        let site = &self.sites[index];
        let alive: Vec<&Mutant> = site.mutants.iter().filter(|mutant| mutant.alive).collect();
        let start = self.rendered.text.len();
        if alive.is_empty() {
            self.range(site.range.clone());
            return;
        }
        if site.shape == Shape::Expression {
            self.rendered.text.push('(');
        }
        for (place, mutant) in alive.iter().enumerate() {
            self.choice(mutant, place > 0);
        }
        if site.shape != Shape::Before {
            // Parentheses, as an expression that begins with a block would end a statement with it.
            let expression = site.shape == Shape::Expression;
            self.rendered
                .text
                .push_str(if expression { " else { (" } else { " else { " });
            self.range(site.range.clone());
            self.rendered.text.push_str(if expression { ") }" } else { " }" });
        }
        if site.shape == Shape::Expression {
            self.rendered.text.push(')');
        }
        self.rendered.sites.push((index, start..self.rendered.text.len()));
    }

    fn choice(&mut self, mutant: &Mutant, again: bool) {
        let text = &mut self.rendered.text;
        text.push_str(if again { " else " } else { "" });
        text.push_str(&format!("if crate::mutant_switch::on({}) {{ ", mutant.id));
        let start = text.len();
        text.push_str(&mutant.text);
        self.rendered.mutants.push((mutant.id, start..text.len()));
        text.push_str(" }");
    }
}
