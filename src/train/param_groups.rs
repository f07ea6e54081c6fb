//! How each parameter takes part in learning, derived from its name: a multiplier on the learning rate and one on the weight
//! decay (facebookresearch/dinov2 `utils/param_groups.py`; layer-wise decay after Clark et al. 2020).

use crate::{Error, Result};

/// What an optimizer needs to know of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamGroup {
    /// Factor on the learning rate.
    pub lr_multiplier: f64,
    /// Factor on the weight decay: 0 for biases, norms and LayerScale, 1 for the rest.
    pub wd_multiplier: f64,
    /// Which learning rate it follows.
    pub schedule: RateSchedule,
}

/// The learning rates of a step: they are one but for the steps in which a part is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateSchedule {
    /// The backbone's, which may wait for new heads (`optimizer.freeze_backbone_steps`).
    Backbone,
    /// That of heads, projections and decoders.
    Head,
    /// That of the heads' last layers, which start frozen (`optimizer.freeze_last_layer_steps`).
    LastLayer,
}

/// The rules of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamGroupRules {
    /// Number L of blocks of the backbone.
    pub depth: usize,
    /// Learning-rate factor `layer_decay^(L - i)` of block i; tokens, positions and patch embedding `^(L + 1)`; 1 for none.
    pub layer_decay: f64,
    /// Further factor on the patch embedding's learning rate.
    pub patch_embed_multiplier: f64,
}

impl ParamGroupRules {
    /// The rule of a backbone parameter under its official name (`blocks.0.attn.qkv.weight`).
    ///
    /// # Errors
    /// A block that is not a number below the depth.
    pub fn backbone(&self, name: &str) -> Result<ParamGroup> {
        let exponent = self.depth + 1 - self.layer(name)?;
        let patch_embed = if name.contains("patch_embed") {
            self.patch_embed_multiplier
        } else {
            1.
        };
        Ok(ParamGroup {
            // `powf` on a whole number is what Python's `**` computes; repeated products differ in the last digit.
            lr_multiplier: self.layer_decay.powf(exponent as f64) * patch_embed,
            schedule: RateSchedule::Backbone,
            ..Self::head(name)
        })
    }

    /// The rule of a head's parameter (`mlp.0.weight`, `last_layer.weight_v`): no layer-wise decay.
    pub fn head(name: &str) -> ParamGroup {
        let undecayed = name.ends_with(".bias") || name.contains("norm") || name.contains("gamma");
        ParamGroup {
            lr_multiplier: 1.,
            wd_multiplier: if undecayed { 0. } else { 1. },
            schedule: match name.contains("last_layer") {
                true => RateSchedule::LastLayer,
                false => RateSchedule::Head,
            },
        }
    }

    /// 0 for what comes before the blocks, i + 1 for block i, depth + 1 for what comes after.
    fn layer(&self, name: &str) -> Result<usize> {
        const BEFORE: [&str; 5] = [
            "pos_embed",
            "patch_embed",
            "mask_token",
            "cls_token",
            "register_tokens",
        ];
        if BEFORE.iter().any(|part| name.contains(part)) {
            return Ok(0);
        }
        let Some(rest) = name.strip_prefix("blocks.") else {
            return Ok(self.depth + 1);
        };
        let number = rest.split('.').next().unwrap_or(rest);
        match number.parse::<usize>() {
            Ok(block) if block < self.depth => Ok(block + 1),
            _ => Err(Error::input(
                format!("parameter {name}"),
                format!("expected a block number below {}, found `{number}`", self.depth),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::fixture_path;

    fn rules() -> ParamGroupRules {
        ParamGroupRules {
            depth: 3,
            layer_decay: 0.9,
            patch_embed_multiplier: 0.2,
        }
    }

    #[test]
    fn golden_multipliers() {
        let text = std::fs::read_to_string(fixture_path("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(manifest["depth"], 3);
        let groups = manifest["param_groups"].as_array().unwrap();
        assert_eq!(groups.len(), 50);
        for expected in groups {
            let name = expected["name"].as_str().unwrap();
            let found = rules().backbone(name).unwrap();
            let lr = expected["lr_multiplier"].as_f64().unwrap();
            assert!(
                (found.lr_multiplier - lr).abs() <= 1e-12 * lr,
                "{name}: {found:?}"
            );
            assert_eq!(found.wd_multiplier, expected["wd_multiplier"], "{name}");
            assert_eq!(found.schedule, RateSchedule::Backbone, "{name}");
            assert_eq!(expected["is_last_layer"], false, "{name}");
        }
    }

    #[test]
    fn heads_learn_at_the_full_rate() {
        let group = |name| {
            let group = ParamGroupRules::head(name);
            (group.lr_multiplier, group.wd_multiplier, group.schedule)
        };
        assert_eq!(group("mlp.0.weight"), (1., 1., RateSchedule::Head));
        assert_eq!(group("mlp.4.bias"), (1., 0., RateSchedule::Head));
        assert_eq!(group("last_layer.weight_g"), (1., 1., RateSchedule::LastLayer));
        assert_eq!(group("last_layer.weight_v"), (1., 1., RateSchedule::LastLayer));
    }

    #[test]
    fn a_block_that_the_network_lacks_is_an_error() {
        let error = rules().backbone("blocks.3.norm1.weight").unwrap_err().to_string();
        assert_eq!(
            error,
            "parameter blocks.3.norm1.weight: expected a block number below 3, found `3`"
        );
        assert!(rules().backbone("blocks.x.norm1.weight").is_err());
    }
}
