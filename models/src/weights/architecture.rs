//! Networks that are recognised by their tensors and cannot be computed exactly: the refusal says which one it is and what
//! is missing for it.

/// A network that `VitConfig` cannot express.
pub(super) struct Architecture {
    /// What it is called.
    pub name: &'static str,
    /// What would have to be there.
    pub lacks: &'static str,
    /// Whether the names are those of one.
    is: fn(&Names<'_>) -> bool,
}

/// Names of a file or of one network in it.
struct Names<'n>(Vec<&'n str>);

impl Names<'_> {
    /// Whether a name has this part, beginning where one of its own parts begins.
    fn part(&self, part: &str) -> bool {
        self.0.iter().any(|name| {
            name.match_indices(part)
                .any(|(at, _)| at == 0 || name.as_bytes()[at - 1] == b'.')
        })
    }

    /// Whether any name ends so.
    fn end(&self, end: &str) -> bool {
        self.0.iter().any(|name| name.ends_with(end))
    }
}

/// The more particular ones first.
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "FSDP shards",
        lacks: "parameters are flattened into one: save a full state dict",
        is: |names| names.end("flat_param"),
    },
    Architecture {
        name: "DINOv3 ViT with a norm of the class token by itself",
        lacks: "`cls_norm` beside `norm` is not supported",
        is: |names| names.part("cls_norm.weight") && names.part("rope_embed.periods"),
    },
    Architecture {
        name: "Swin Transformer",
        lacks: "attention in windows is not supported",
        is: |names| names.part("layers.0.blocks.0."),
    },
    Architecture {
        name: "SAM or MViT",
        lacks: "relative positions are not supported",
        is: |names| names.end("attn.rel_pos_h"),
    },
    Architecture {
        name: "ResNet of CLIP",
        lacks: "convolutional networks are not supported",
        is: |names| names.part("attnpool."),
    },
    Architecture {
        name: "CoCa",
        lacks: "pooling by many queries is not supported",
        is: |names| names.part("attn_pool.query"),
    },
    Architecture {
        name: "C-RADIO",
        lacks: "positions cut from a larger table and several class tokens (`patch_generator`) are not supported",
        is: |names| names.part("patch_generator."),
    },
    Architecture {
        name: "Hiera",
        lacks: "hierarchical networks are not supported",
        is: |names| names.part("blocks.2.proj.weight") && names.part("blocks.0.attn.qkv.weight"),
    },
    Architecture {
        name: "CaiT or XCiT",
        lacks: "class-attention blocks are not supported",
        is: |names| names.part("blocks_token_only.") || names.part("cls_attn_blocks."),
    },
    Architecture {
        name: "EVA ViT with registers",
        lacks: "a table of positions beside registers and LayerScale is not supported",
        is: |names| names.part("reg_token") && names.part("pos_embed") && names.part("blocks.0.gamma_1"),
    },
    Architecture {
        name: "ViT with normalised queries and keys",
        lacks: "`attn.q_norm` is not supported",
        is: |names| names.part("attn.q_norm."),
    },
    Architecture {
        name: "ConvNeXt",
        lacks: "convolutional networks are not supported",
        is: |names| names.part("downsample_layers.0.") || names.part("stages.0.blocks.0.conv_dw."),
    },
    Architecture {
        name: "ResNet",
        lacks: "convolutional networks are not supported",
        is: |names| names.part("layer1.0.conv1.weight"),
    },
];

/// Told from the two axes of its projection of patches.
pub(super) const NAFLEX: Architecture = Architecture {
    name: "SigLIP 2 of any aspect (NaFlex)",
    lacks: "images as sequences of patches are not supported",
    is: |_| false,
};

/// Told from its width, which no other of these names has.
pub(super) const EVA_ENORMOUS: Architecture = Architecture {
    name: "EVA-02 E",
    lacks: "norms behind the branches of a block are not supported",
    is: |_| false,
};

/// Told from the five axes of its projection of patches.
pub(super) const VIDEO: Architecture = Architecture {
    name: "ViT of videos (V-JEPA, VideoMAE)",
    lacks: "patches over time are not supported",
    is: |_| false,
};

/// What these names belong to, if it is one of the networks that cannot be computed.
pub(super) fn recognise<'n>(names: impl Iterator<Item = &'n str>) -> Option<&'static Architecture> {
    let names = Names(names.collect());
    ARCHITECTURES
        .iter()
        .find(|architecture| (architecture.is)(&names))
}

impl Architecture {
    /// The refusal.
    pub fn refusal(&self) -> String {
        format!("{}: {}", self.name, self.lacks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_by_their_names() {
        for (names, expected) in [
            (&["cls_token", "storage_tokens", "rope_embed.periods"][..], None),
            (
                &["cls_token", "cls_norm.weight", "rope_embed.periods"],
                Some("DINOv3 ViT with a norm of the class token by itself"),
            ),
            (
                &[
                    "cls_token",
                    "reg_token",
                    "blocks.0.gamma_1",
                    "blocks.0.attn.q_bias",
                ],
                None,
            ),
            (
                &["cls_token", "reg_token", "pos_embed", "blocks.0.gamma_1"],
                Some("EVA ViT with registers"),
            ),
            (&["embeddings.cls_token", "model.layer.0.norm1.weight"], None),
            (&["visual.class_embedding", "visual.ln_pre.weight"], None),
            (&["cls_token", "norm_pre.weight"], None),
            (
                &["visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight"],
                Some("ResNet of CLIP"),
            ),
            (&["visual.attn_pool.query"], Some("CoCa")),
            (&["radio_model.model.patch_generator.pos_embed"], Some("C-RADIO")),
            (
                &["blocks.0.attn.qkv.weight", "blocks.2.proj.weight"],
                Some("Hiera"),
            ),
            (
                &[
                    "vision_encoder.cls_token",
                    "vision_encoder.blocks.0.mlp.c_fc.bias",
                ],
                None,
            ),
            (&["cls_token", "blocks.0.attn.relative_position_bias_table"], None),
            (&["attn_pool.latent", "blocks.0.norm1.weight"], None),
            (
                &["layers.0.blocks.0.attn.relative_position_bias_table"],
                Some("Swin Transformer"),
            ),
            (&["cls_token", "dist_token"], None),
            (
                &["cls_token", "blocks.0.attn.q_norm.weight"],
                Some("ViT with normalised queries and keys"),
            ),
            (&["fc_norm.weight", "blocks.0.norm1.weight"], None),
            (
                &[
                    "vit.embeddings.cls_token",
                    "vit.encoder.layer.0.layernorm_before.bias",
                ],
                None,
            ),
            (
                &["class_token", "encoder.layers.encoder_layer_0.ln_1.weight"],
                None,
            ),
            (
                &["cls_token", "blocks.0.gamma_1", "blocks_token_only.0.gamma_1"],
                Some("CaiT or XCiT"),
            ),
            (&["cls_token", "blocks.0.attn.q_bias"], None),
            (&["a.layer1.0.conv1.weight"], Some("ResNet")),
            (&["_fsdp_wrapped_module._flat_param"], Some("FSDP shards")),
            (
                &["cls_token", "register_tokens", "blocks.0.ls1.gamma", "mask_token"],
                None,
            ),
            (
                &["cls_token", "reg_token", "blocks.0.ls1.gamma", "pos_embed"],
                None,
            ),
            (&["conv1.weight", "fc.bias"], None),
        ] {
            let found = recognise(names.iter().copied()).map(|architecture| architecture.name);
            assert_eq!(found, expected, "{names:?}");
        }
    }
}
