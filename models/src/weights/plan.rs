//! The account of a network's tensors: each has its place, is known to be no part of it, or is a fault.

use std::collections::BTreeSet;

use super::extras;
use super::family::{PERIODS, Part, without_ones};
use super::geometry;
use super::network::Network;
use super::raw::RawTensor;
use crate::vit::VitConfig;

/// Which of their tensors becomes which of ours.
pub(super) struct Plan {
    /// Their name, our name, and what one is of the other.
    pub jobs: Vec<(String, String, Part)>,
    /// Our name, part and shape of what the file lacks and what is zeros.
    pub zeros: Vec<(String, Part, Vec<usize>)>,
    /// Whether the position table has no row for the class token.
    pub lacks_cls_row: bool,
    /// Whether the position table has a row for the distillation token.
    pub has_distillation_row: bool,
    /// Tensors of the network's root that the table of extras knows.
    pub left_out: Vec<String>,
}

/// Most faults that one error lists.
const MAX_LISTED: usize = 8;

impl Plan {
    /// Accounts for every tensor of the network and of its root in the file.
    ///
    /// # Errors
    /// Every tensor that is missing, spare, misshapen or cannot be rebuilt, in one line.
    pub fn new(network: &Network<'_>, config: &VitConfig) -> Result<Self, String> {
        let found = &network.found;
        let mut plan = Self {
            jobs: Vec::new(),
            zeros: Vec::new(),
            lacks_cls_row: false,
            has_distillation_row: geometry::is_distilled(found),
            left_out: Vec::new(),
        };
        let mut faults = Vec::new();
        let mut unused = found.tensors.clone();
        for (ours, shape) in config.parameters() {
            let sources = found.table.sources(&ours);
            if sources.is_empty() {
                faults.push(format!(
                    "missing `{ours}` {shape:?}, which this family has no name for"
                ));
            }
            for (theirs, part) in sources {
                let mut expected = shape.clone();
                match part {
                    Part::Whole | Part::Mask | Part::Periods => {}
                    Part::Axes(_) => {
                        // Any number of leading axes of 1 is theirs to have.
                        let tensor = found.tensors.get(theirs.as_str());
                        if let Some(tensor) =
                            tensor.filter(|t| without_ones(&t.shape) == without_ones(&shape))
                        {
                            expected.clone_from(&tensor.shape);
                        }
                    }
                    Part::Transposed => expected.reverse(),
                    Part::Share(_, count) => expected[0] /= count,
                    Part::Run(_, some, count) => expected[0] = expected[0] / count * some,
                    Part::PositionTable => {
                        let rows = found
                            .tensors
                            .get(theirs.as_str())
                            .and_then(|t| t.shape.get(1).copied());
                        plan.lacks_cls_row = rows.is_some_and(|rows| !geometry::cls_row(found, rows));
                        expected[1] -= usize::from(plan.lacks_cls_row);
                    }
                }
                if ours == "pos_embed" && plan.has_distillation_row {
                    expected[1] += 1;
                }
                match (
                    unused.remove(theirs.as_str()),
                    network.unreadable.get(theirs.as_str()),
                ) {
                    (Some(tensor), _) => faults.extend(misfit(&theirs, tensor, &expected)),
                    (None, Some(reason)) => faults.push(format!("`{theirs}` cannot be rebuilt: {reason}")),
                    (None, None) if found.table.may_be_zeros(&theirs, &found.tensors) => {
                        if part == Part::Mask {
                            continue;
                        }
                        plan.zeros.push((ours.clone(), part, expected));
                        continue;
                    }
                    (None, None) => faults.push(format!("missing `{theirs}` {expected:?}")),
                }
                plan.jobs.push((theirs, ours.clone(), part));
            }
        }
        if let (Some(_), Some(tensor)) = (config.rope, unused.remove(PERIODS)) {
            faults.extend(misfit(PERIODS, tensor, &[config.head_dim() / 4]));
            plan.jobs.push((PERIODS.into(), String::new(), Part::Periods));
        }
        let needed: BTreeSet<&str> = plan.jobs.iter().map(|(theirs, ..)| theirs.as_str()).collect();
        let spare = unused
            .iter()
            .map(|(name, tensor)| (name, format!(" {:?}", tensor.shape)))
            .chain(network.unreadable.keys().map(|name| (name, String::new())));
        for (name, shape) in spare {
            if extras::known(name).is_some() {
                plan.left_out.push(name.clone());
            } else if !needed.contains(name.as_str()) {
                faults.push(format!("spare `{name}`{shape}"));
            }
        }
        if faults.is_empty() {
            Ok(plan)
        } else {
            Err(listed(faults))
        }
    }
}

/// The faults in one line.
fn listed(mut faults: Vec<String>) -> String {
    let count = faults.len();
    let more = match count.saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    faults.truncate(MAX_LISTED);
    let tensors = if count == 1 { "tensor does" } else { "tensors do" };
    format!(
        "{count} {tensors} not fit the network: {}{more}",
        faults.join("; ")
    )
}

fn misfit(name: &str, tensor: &RawTensor, expected: &[usize]) -> Option<String> {
    if tensor.shape != expected {
        Some(format!(
            "`{name}` expected {expected:?}, found {:?}",
            tensor.shape
        ))
    } else if !tensor.element.is_float() {
        Some(format!("`{name}` expected floats, found {}", tensor.element))
    } else {
        None
    }
}
