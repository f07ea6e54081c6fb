//! How many attention heads a network has: what its file, the options and published networks of its width say.

use super::LoadOptions;
use super::published::published;
use crate::vit::{Pool, VitConfig};

/// Width of a head where nothing else is known.
const HEAD_DIM: usize = 64;

/// Widths of published vision transformers and the heads they have: ViT-Ti to ViT-L, timm's widths between them, SO400m,
/// ViT-H, ViT-g of 1408, DINOv2's g, ViT-G, EVA's E.
const PUBLISHED: &[(usize, usize)] = &[
    (192, 3),
    (256, 4),
    (320, 5),
    (384, 6),
    (512, 8),
    (640, 10),
    (768, 12),
    (832, 13),
    (896, 14),
    (1024, 16),
    (1152, 16),
    (1280, 16),
    (1408, 16),
    (1536, 24),
    (1664, 16),
    (1792, 16),
];
/// Those of DINOv3's and EUPE's, T to H+ and 7B: of the same width as others, with another number of heads.
const ROTARY: &[(usize, usize)] = &[(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 20), (4096, 32)];
/// Those that pool by attention or have no class token, and PE's: as PUBLISHED but for the widest.
const POOLED: &[(usize, usize)] = &[
    (192, 3),
    (384, 6),
    (768, 12),
    (1024, 16),
    (1152, 16),
    (1280, 16),
    (1408, 16),
    (1536, 16),
];
/// MoCo v3 alone gives its ViT-S twelve heads. Its networks lie below one of these modules.
const MOCO_V3: [&str; 2] = ["base_encoder.", "momentum_encoder."];
const MOCO_V3_SMALL: (usize, usize) = (384, 12);

/// The number of heads, on which everyone who names one has to agree, and a notice where it is only assumed.
pub(super) fn heads(
    config: &VitConfig,
    prefix: &str,
    known: Option<(usize, &'static str)>,
    options: &LoadOptions,
) -> Result<(usize, Option<String>), String> {
    let arch = match &options.arch {
        Some(arch) => Some((arch_heads(arch, config)?, "the architecture")),
        None => None,
    };
    let given = options
        .num_heads
        .map(|heads| (heads, "the given number of heads"));
    let mut said = [known, arch, given].into_iter().flatten();
    let Some((heads, by)) = said.next() else {
        let pooled = matches!(config.pool, Pool::Attention(_));
        let published = match config.rope {
            Some(rope) if rope.columns_first() => POOLED,
            Some(rope) if !rope.position_table => ROTARY,
            _ if pooled || !config.class_token => POOLED,
            _ => PUBLISHED,
        };
        return assumed(config.embed_dim, prefix, published);
    };
    match said.find(|(other, _)| *other != heads) {
        Some((other, by_other)) => Err(format!("num_heads: {by} says {heads}, {by_other} says {other}")),
        None => Ok((heads, None)),
    }
}

/// The heads of a width, where nobody says.
fn assumed(
    width: usize,
    prefix: &str,
    published: &[(usize, usize)],
) -> Result<(usize, Option<String>), String> {
    if width == MOCO_V3_SMALL.0 && MOCO_V3.iter().any(|module| prefix.ends_with(module)) {
        let heads = MOCO_V3_SMALL.1;
        let notice = format!("taken for a ViT-S of MoCo v3, with {heads} heads (--heads to change)");
        return Ok((heads, Some(notice)));
    }
    if let Some((_, heads)) = published.iter().find(|(published, _)| *published == width) {
        return Ok((*heads, None));
    }
    if !width.is_multiple_of(HEAD_DIM) {
        return Err(format!(
            "the file does not tell the number of heads and the width {width} is no multiple of {HEAD_DIM}: \
             give the number of heads or the architecture"
        ));
    }
    let heads = width / HEAD_DIM;
    let notice = format!(
        "the number of heads is not in the file and no published network is {width} wide: heads of {HEAD_DIM} are \
         assumed, {heads} of them (--heads to change)"
    );
    Ok((heads, Some(notice)))
}

/// The heads of a named architecture, once its tensors are the ones found.
fn arch_heads(arch: &str, config: &VitConfig) -> Result<usize, String> {
    if !arch.starts_with("vit-") {
        let named = published(arch)?;
        return agreed(
            arch,
            named.num_heads,
            vec![
                ("width", named.embed_dim.to_string(), config.embed_dim.to_string()),
                ("depth", named.depth.to_string(), config.depth.to_string()),
                (
                    "patch size",
                    named.patch_size.to_string(),
                    config.patch_size.to_string(),
                ),
            ],
        );
    }
    let patch_size = match arch.split_once('/') {
        Some((_, patch)) => patch.split('-').next().and_then(|p| p.parse().ok()).unwrap_or(0),
        None => 14,
    };
    let image_size = config.native_grid().saturating_mul(patch_size);
    let named = VitConfig::named(arch, image_size).map_err(|e| e.to_string())?;
    let fields = vec![
        ("width", named.embed_dim.to_string(), config.embed_dim.to_string()),
        ("depth", named.depth.to_string(), config.depth.to_string()),
        (
            "patch size",
            named.patch_size.to_string(),
            config.patch_size.to_string(),
        ),
        (
            "registers",
            named.num_registers.to_string(),
            config.num_registers.to_string(),
        ),
        (
            "feed-forward",
            format!("{:?}", named.feed_forward),
            format!("{:?}", config.feed_forward),
        ),
        (
            "rotary positions",
            named.rope.is_some().to_string(),
            (named.rope.is_some() && config.rope.is_some()).to_string(),
        ),
        (
            "hidden width",
            named.ffn_hidden.to_string(),
            config.ffn_hidden.to_string(),
        ),
    ];
    agreed(arch, named.num_heads, fields)
}

/// The heads, unless a field of the named architecture differs from the one found.
fn agreed(
    arch: &str,
    num_heads: usize,
    fields: Vec<(&'static str, String, String)>,
) -> Result<usize, String> {
    let differing: Vec<String> = fields
        .into_iter()
        .filter(|(_, named, found)| named != found)
        .map(|(field, named, found)| format!("{field} {named}, found {found}"))
        .collect();
    if differing.is_empty() {
        Ok(num_heads)
    } else {
        Err(format!("{arch}: expected {}", differing.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths and heads as the models are published (timm's vision_transformer.py and eva.py, DINOv2's).
    #[test]
    fn published_widths_have_their_heads_and_others_are_told() {
        for (width, heads) in [
            (384, 6),
            (1024, 16),
            (1152, 16),
            (1280, 16),
            (1408, 16),
            (1536, 24),
            (1664, 16),
        ] {
            assert_eq!(assumed(width, "backbone.", PUBLISHED), Ok((heads, None)));
        }
        // As wide as ViT-H, with other heads.
        assert_eq!(assumed(1280, "", ROTARY), Ok((20, None)));
        assert_eq!(assumed(4096, "", ROTARY), Ok((32, None)));
        let (heads, notice) = assumed(448, "", PUBLISHED).expect("a multiple of 64");
        assert_eq!(heads, 7);
        assert!(notice.expect("assumed").contains("448 wide"));
        assert!(
            assumed(100, "", PUBLISHED)
                .expect_err("no multiple")
                .contains("the width 100")
        );
    }

    #[test]
    fn rotary_networks_have_heads_of_their_own() {
        use crate::vit::RopeConfig;
        let mut config = VitConfig::named("vit-large/16", 224).expect("a known name");
        config.embed_dim = 1280;
        let of = |config: &VitConfig| heads(config, "", None, &LoadOptions::default());
        assert_eq!(of(&config), Ok((16, None)));
        config.rope = Some(RopeConfig::dinov3());
        assert_eq!(of(&config), Ok((20, None)));
        config.embed_dim = 1536;
        config.rope = Some(RopeConfig::perception(32));
        assert_eq!(of(&config), Ok((16, None)));
        config.rope = None;
        assert_eq!(of(&config), Ok((24, None)));
        // SigLIP's giant, which averages patches.
        config.class_token = false;
        assert_eq!(of(&config), Ok((16, None)));
    }

    #[test]
    fn moco_v3_has_twelve_heads_in_its_small_network() {
        let (heads, notice) = assumed(384, "state_dict.module.base_encoder.", PUBLISHED).expect("known");
        assert_eq!(heads, 12);
        assert!(notice.expect("said").contains("MoCo v3"));
        assert_eq!(assumed(768, "module.base_encoder.", PUBLISHED), Ok((12, None)));
    }
}
