//! The network of a file that is loaded: which root, which family, its heads, and what stands beside it.

use std::collections::BTreeMap;

use super::extras;
use super::family::{Detected, Found, Table, detect};
use super::raw::{RawTensor, RawTensors};
use super::roots::{self, Root, Roots};
use super::{architecture, official};
use crate::vit::VitConfig;

/// Most other networks that a notice lists.
const MAX_LISTED: usize = 4;

/// A network, recognised and split into what it is made of.
pub(super) struct Network<'a> {
    pub table: &'static Table,
    /// Tensors of the root that are no heads.
    pub found: Found<'a>,
    /// Those of them that cannot be rebuilt, and why.
    pub unreadable: BTreeMap<String, &'a str>,
    /// Heads: the name that macula gives them and the name in the file.
    pub heads: Vec<(String, &'a str)>,
    root: Root<'a>,
    /// What is passed over and stands in the file as counters in heads or beside the network.
    beside: Vec<String>,
    /// Prefixes of the other networks, the preferred first, and why those before this one were not taken.
    others: Vec<(String, Option<String>)>,
    /// Whether another network had as good a claim.
    tie: bool,
}

/// What a file is taken for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recognised {
    /// The network's name, also where it is one that cannot be computed.
    pub architecture: Option<&'static str>,
    /// What its names begin with.
    pub prefix: String,
    /// What the names of the file's other networks begin with.
    pub others: Vec<String>,
}

/// Tells what a file is taken for, without asking whether every tensor fits.
pub fn recognise(raw: &RawTensors) -> Recognised {
    let roots = roots::find(raw);
    match pick(&roots, raw) {
        Picked::Family(index, table) => {
            let prefix = |root: &Root<'_>| root.prefix.clone();
            let others = roots.networks.iter().enumerate().filter(|(i, _)| *i != index);
            Recognised {
                architecture: Some(table.family.name()),
                prefix: prefix(&roots.networks[index]),
                others: others.map(|(_, root)| prefix(root)).collect(),
            }
        }
        Picked::Lacking(architecture) => Recognised {
            architecture: Some(architecture.name),
            ..Recognised::default()
        },
        Picked::Nothing => Recognised::default(),
    }
}

enum Picked {
    Family(usize, &'static Table),
    Lacking(&'static architecture::Architecture),
    Nothing,
}

/// The first network, in the order of preference, that belongs to a family; else what the file holds instead.
fn pick(roots: &Roots<'_>, raw: &RawTensors) -> Picked {
    let mut lacking = None;
    for (index, root) in roots.networks.iter().enumerate() {
        match detect(&root.prefix, &tensors(root, raw)) {
            Detected::Family(table) => return Picked::Family(index, table),
            Detected::Lacking(architecture) => lacking = lacking.or(Some(architecture)),
            Detected::Nothing => {}
        }
    }
    let all = raw.tensors.keys().chain(raw.unreadable.keys());
    match lacking.or_else(|| architecture::recognise(all.map(String::as_str))) {
        Some(architecture) => Picked::Lacking(architecture),
        None => Picked::Nothing,
    }
}

/// The tensors of a root that can be rebuilt.
fn tensors<'a>(root: &Root<'_>, raw: &'a RawTensors) -> BTreeMap<String, &'a RawTensor> {
    let inside = root.inside.iter();
    inside
        .filter_map(|(name, full)| Some((name.clone(), raw.tensors.get(*full)?)))
        .collect()
}

impl<'a> Network<'a> {
    /// The network of a file that is to be loaded. `by_macula` says that its metadata names the geometry, so that its names
    /// are macula's.
    ///
    /// # Errors
    /// A file without a network of a known family, or a name that two tensors stand for.
    pub fn choose(raw: &'a RawTensors, by_macula: bool) -> Result<Self, String> {
        let mut roots = roots::find(raw);
        let (index, table) = match pick(&roots, raw) {
            Picked::Family(index, _) if by_macula => (index, &official::OWN),
            Picked::Family(index, table) => (index, table),
            Picked::Lacking(architecture) => return Err(architecture.refusal()),
            Picked::Nothing => return Err(no_network(raw)),
        };
        let others = others(&roots, index, raw);
        let mut networks = std::mem::take(&mut roots.networks);
        let root = networks.swap_remove(index);
        let rank = roots::rank(&root.prefix);
        let tie = networks.iter().any(|other| roots::rank(&other.prefix) == rank);
        if let Some((name, one, other)) = &root.doubled {
            return Err(format!("two tensors stand for `{name}`: `{one}` and `{other}`"));
        }
        let mut network = Self {
            table,
            found: Found {
                table,
                tensors: BTreeMap::new(),
            },
            unreadable: BTreeMap::new(),
            heads: Vec::new(),
            root,
            beside: Vec::new(),
            others,
            tie,
        };
        let mut beside = std::mem::take(&mut roots.beside);
        network.take_outside(&mut beside);
        network.split(raw);
        network.look_beside(&beside, raw);
        Ok(network)
    }

    /// What the names of the network begin with.
    pub fn prefix(&self) -> &str {
        &self.root.prefix
    }

    /// The name in the file of one of the network's tensors.
    pub fn in_file(&self, name: &str) -> &'a str {
        self.root.inside.get(name).copied().unwrap_or_default()
    }

    /// Takes into the root what belongs to the network and stands beside it, in the nearest wrapper that has it.
    fn take_outside(&mut self, beside: &mut BTreeMap<String, &'a str>) {
        let prefix = self.root.prefix.clone();
        for (name, inner) in self.table.outside {
            let mut places = wrappers(&prefix).map(|wrapper| format!("{wrapper}{name}"));
            if let Some(full) = places.find_map(|place| beside.remove(&place)) {
                self.root.inside.insert((*inner).to_owned(), full);
            }
        }
    }

    /// Splits the root's tensors into the network's, heads, and what is passed over.
    fn split(&mut self, raw: &'a RawTensors) {
        for (name, full) in &self.root.inside {
            match (self.table.head_name(name), raw.tensors.get(*full)) {
                (Some(head), Some(tensor)) if tensor.element.is_float() => self.heads.push((head, full)),
                // Counters of a head are no weights.
                (Some(_), _) => self.beside.push(name.clone()),
                (None, Some(tensor)) => drop(self.found.tensors.insert(name.clone(), tensor)),
                (None, None) => {
                    let reason = raw.unreadable.get(*full).map_or("", String::as_str);
                    self.unreadable.insert(name.clone(), reason);
                }
            }
        }
    }

    /// Takes heads from beside the network, below the nearest wrapper that has any, and keeps the names of the rest.
    fn look_beside(&mut self, beside: &BTreeMap<String, &'a str>, raw: &'a RawTensors) {
        let wrappers: Vec<&str> = wrappers(&self.root.prefix).collect();
        let float = |full: &str| {
            raw.tensors
                .get(full)
                .is_some_and(|tensor| tensor.element.is_float())
        };
        let head = |wrapper: &str, name: &str| {
            let rest = name.strip_prefix(wrapper)?;
            self.table.head_name(rest)
        };
        let has_heads = |wrapper: &&&str| {
            let mut names = beside.keys();
            names.any(|name| head(wrapper, name).is_some())
        };
        let with_heads = wrappers.iter().find(has_heads).copied();
        for (name, full) in beside {
            match with_heads.and_then(|wrapper| head(wrapper, name)) {
                Some(head) if float(full) => self.heads.push((head, full)),
                _ => {
                    let inner = wrappers.iter().find_map(|wrapper| name.strip_prefix(wrapper));
                    self.beside.push(inner.unwrap_or(name).to_owned());
                }
            }
        }
    }

    /// An error of its tensors, with what the network was taken for before it.
    pub fn blame(&self, error: &str, config: Option<&VitConfig>) -> String {
        let geometry = config.map_or_else(String::new, |config| {
            format!(
                " of width {}, depth {}, patches of {}",
                config.embed_dim, config.depth, config.patch_size
            )
        });
        let below = match self.prefix() {
            "" => String::new(),
            prefix => format!(" below `{prefix}`"),
        };
        let broken = match self.unreadable.iter().next() {
            Some((name, reason)) if config.is_none() => format!("; `{name}` cannot be rebuilt: {reason}"),
            _ => String::new(),
        };
        format!(
            "taken for a {}{geometry}{below}: {error}{broken}",
            self.table.family.name()
        )
    }

    /// What a user should know of this choice. Heads that macula wrote beside its own backbone are no news.
    pub fn notices(&self, left_out: &[String], by_macula: bool) -> Vec<String> {
        let mut notices = Vec::new();
        if !self.others.is_empty() {
            let mut others: Vec<String> = self.others.iter().take(MAX_LISTED).map(other_network).collect();
            if self.others.len() > MAX_LISTED {
                others.push(format!("{} more", self.others.len() - MAX_LISTED));
            }
            let only = if self.tie { " (the first of equals)" } else { "" };
            notices.push(format!(
                "the network below {} is used{only}; also there: {}",
                place(self.prefix()),
                others.join(", ")
            ));
        }
        let heads = self.heads.iter().map(|(head, _)| head.as_str());
        let heads = heads.filter(|_| !by_macula);
        let rest = left_out.iter().chain(&self.beside).map(String::as_str);
        let beside = extras::summary(heads.chain(rest));
        if !beside.is_empty() {
            notices.push(format!(
                "not part of the backbone, and not used for features: {beside}"
            ));
        }
        notices
    }
}

/// The wrappers around a root, the nearest first: `a.b.` is in `a.` and in the file itself.
fn wrappers(prefix: &str) -> impl Iterator<Item = &str> {
    roots::enclosing(prefix).skip_while(move |wrapper| wrapper.len() == prefix.len())
}

/// The other networks, and of those that come before the one that is taken, what they are.
fn others(roots: &Roots<'_>, index: usize, raw: &RawTensors) -> Vec<(String, Option<String>)> {
    let others = roots.networks.iter().enumerate().filter(|(i, _)| *i != index);
    others
        .map(|(i, root)| {
            let why = match detect(&root.prefix, &tensors(root, raw)) {
                _ if i > index => None,
                Detected::Lacking(architecture) => Some(architecture.refusal()),
                _ => Some("no network of a known family".into()),
            };
            (root.prefix.clone(), why)
        })
        .collect()
}

fn other_network((prefix, why): &(String, Option<String>)) -> String {
    match why {
        Some(why) => format!("{} ({why})", place(prefix)),
        None => place(prefix),
    }
}

fn place(prefix: &str) -> String {
    match prefix {
        "" => "the top level".into(),
        prefix => format!("`{prefix}`"),
    }
}

fn no_network(raw: &RawTensors) -> String {
    let names = raw.tensors.keys().chain(raw.unreadable.keys());
    let some: Vec<&str> = names.take(3).map(String::as_str).collect();
    format!(
        "expected a vision transformer with `cls_token`, `patch_embed.proj.weight`, `embeddings.cls_token` or \
         `class_embedding`, found {} tensors: {}",
        raw.tensors.len() + raw.unreadable.len(),
        some.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_listed_from_within() {
        let all = |prefix| wrappers(prefix).collect::<Vec<_>>();
        assert_eq!(all("a.b.c."), ["a.b.", "a.", ""]);
        assert_eq!(all("a."), [""]);
        assert!(all("").is_empty());
    }
}
