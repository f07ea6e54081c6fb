//! What a checkpoint may hold beside its backbone: the table of tensors that are passed over, and how they are named.

use std::collections::BTreeMap;

/// Beginnings of names that are no part of a backbone, and what is below them. Heads that are read with it stand in the
/// tables of the families.
const BEGINNINGS: &[(&str, &str)] = &[
    // Masked autoencoders.
    ("decoder_", "decoder"),
    ("decoder.", "decoder"),
    // Classifiers, projections, other tasks.
    ("head.", "head"),
    ("heads.", "head"),
    ("head_drop.", "head"),
    ("fc.", "classifier"),
    ("classifier.", "classifier"),
    ("head_dist.", "classifier"),
    ("cls_classifier.", "classifier"),
    ("distillation_classifier.", "classifier"),
    ("linear.", "classifier"),
    ("linear_head.", "classifier"),
    ("pre_logits.", "classifier"),
    ("pooler.", "pooler"),
    ("fc_norm.", "norm of averaged patches"),
    // DINOv3's norm of the class tokens of local crops, in training.
    ("local_cls_norm.", "norm of local crops"),
    ("projector.", "projection head"),
    ("projection_head.", "projection head"),
    ("contrast_head.", "projection head"),
    ("dino_head.", "projection head"),
    ("ibot_head.", "projection head"),
    ("predictor.", "predictor"),
    ("prototypes.", "prototypes"),
    ("decode_head.", "segmentation head"),
    ("auxiliary_head.", "segmentation head"),
    ("depth_head.", "depth head"),
];

/// Whole names.
const NAMES: &[(&str, &str)] = &[
    ("masked_embed", "mask token"),
    ("mask_token", "mask token"),
    ("n_averaged", "counter"),
];

/// Ends of names, in any block or head.
const ENDS: &[(&str, &str)] = &[
    ("num_batches_tracked", "counter"),
    ("relative_position_index", "index buffer"),
    ("attn_mask", "index buffer"),
    ("position_ids", "index buffer"),
    ("total_ops", "counter"),
    ("total_params", "counter"),
];

/// What a tensor is that the network does not need; `None` if it is in no table.
pub(super) fn known(name: &str) -> Option<&'static str> {
    let end = |end: &str| {
        name.strip_suffix(end)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let begins = BEGINNINGS.iter().find(|(start, _)| name.starts_with(start));
    begins
        .or_else(|| NAMES.iter().find(|(whole, _)| *whole == name))
        .or_else(|| ENDS.iter().find(|(tail, _)| end(tail)))
        .map(|(_, what)| *what)
}

/// Most groups that one notice lists.
const MAX_GROUPS: usize = 6;

/// `12 of decoder_blocks, mask_token and 2 of optimizer`: names by what they begin with, largest groups first.
pub(super) fn summary<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in names {
        let group = name.split('.').next().unwrap_or(name);
        groups.entry(group).or_default().push(name);
    }
    let count = groups.len();
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(group, names)| (std::cmp::Reverse(names.len()), *group));
    let mut parts: Vec<String> = groups
        .iter()
        .take(MAX_GROUPS)
        .map(|(group, names)| match names.as_slice() {
            [only] => format!("`{only}`"),
            many => format!("{} of `{group}`", many.len()),
        })
        .collect();
    if count > MAX_GROUPS {
        let rest: usize = groups[MAX_GROUPS..].iter().map(|(_, names)| names.len()).sum();
        parts.push(format!("{rest} more"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extras_are_told_from_parts_of_a_network() {
        for name in [
            "decoder_blocks.0.norm1.weight",
            "decoder_pos_embed",
            "mask_token",
            "masked_embed",
            "fc_norm.weight",
            "head.mlp.1.num_batches_tracked",
            "blocks.0.attn.relative_position_index",
            "n_averaged",
        ] {
            assert!(known(name).is_some(), "{name}");
        }
        for name in [
            "extra",
            "norm.weight",
            "blocks.0.attn.lora_A.weight",
            "blocks.0.attn.relative_position_bias_table",
            "dist_token",
            "headless",
            "blocks.0.my_num_batches_tracked",
        ] {
            assert_eq!(known(name), None, "{name}");
        }
    }

    #[test]
    fn a_summary_counts_by_beginning() {
        let names = ["b.1", "a.x.1", "a.x.2", "a.y", "c"];
        assert_eq!(summary(names.into_iter()), "3 of `a`, `b.1`, `c`");
        let many: Vec<String> = (0..9).map(|i| format!("g{i}.w")).collect();
        assert!(summary(many.iter().map(String::as_str)).ends_with("`g5.w`, 3 more"));
    }
}
