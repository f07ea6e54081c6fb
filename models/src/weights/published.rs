//! Released networks by name: what of them no tensor tells, where only their weights are at hand. How their images are prepared is
//! not said here.

use crate::vit::GeluKind;

/// What a released network is, as far as it is checked or not in its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published {
    /// Width of its tokens.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Heads of a block.
    pub num_heads: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// The GELU, where networks of its family differ.
    pub activation: Option<GeluKind>,
}

/// Name, width, depth, heads and patch.
type Row = (&'static str, usize, usize, usize, usize);

/// Networks of one name.
const NETWORKS: &[Row] = &[
    ("dinov2-vits14", 384, 12, 6, 14),
    ("dinov2-vitb14", 768, 12, 12, 14),
    ("dinov2-vitl14", 1024, 24, 16, 14),
    ("dinov2-vitg14", 1536, 40, 24, 14),
    ("dinov3-vits16", 384, 12, 6, 16),
    ("dinov3-vits16plus", 384, 12, 6, 16),
    ("dinov3-vitb16", 768, 12, 12, 16),
    ("dinov3-vitl16", 1024, 24, 16, 16),
    ("dinov3-vitl16-sat", 1024, 24, 16, 16),
    ("dinov3-vith16plus", 1280, 32, 20, 16),
    ("dinov3-vit7b16", 4096, 40, 32, 16),
    ("dinov3-vit7b16-sat", 4096, 40, 32, 16),
    ("eupe-vitt16", 192, 12, 3, 16),
    ("eupe-vits16", 384, 12, 6, 16),
    ("eupe-vitb16", 768, 12, 12, 16),
    ("lingbot-vits16", 384, 12, 6, 16),
    ("lingbot-vitb16", 768, 12, 12, 16),
    ("lingbot-vitl16", 1024, 24, 16, 16),
    ("tipsv2-b14", 768, 12, 12, 14),
    ("tipsv2-l14", 1024, 24, 16, 14),
    ("tipsv2-so400m14", 1152, 27, 16, 14),
    ("tipsv2-g14", 1536, 40, 24, 14),
    ("dino-vits16", 384, 12, 6, 16),
    ("dino-vits8", 384, 12, 6, 8),
    ("dino-vitb16", 768, 12, 12, 16),
    ("dino-vitb8", 768, 12, 12, 8),
    ("ibot-vits16", 384, 12, 6, 16),
    ("ibot-vitb16", 768, 12, 12, 16),
    ("ibot-vitl16", 1024, 24, 16, 16),
    ("mae-vitb16", 768, 12, 12, 16),
    ("mae-vitl16", 1024, 24, 16, 16),
    ("mae-vith14", 1280, 32, 16, 14),
    ("ijepa-vith14", 1280, 32, 16, 14),
    ("ijepa-vith16", 1280, 32, 16, 16),
    ("ijepa-vitg16", 1408, 40, 16, 16),
];

/// Towers of open_clip, by the beginning of the model's name that is left when the size of its images is cut off.
const OPEN_CLIP: &[Row] = &[
    ("ViT-B-32", 768, 12, 12, 32),
    ("ViT-B-16", 768, 12, 12, 16),
    ("ViT-B-16-plus", 896, 12, 14, 16),
    ("ViT-L-14", 1024, 24, 16, 14),
    ("ViT-H-14", 1280, 32, 16, 14),
    ("ViT-g-14", 1408, 40, 16, 14),
    ("ViT-bigG-14", 1664, 48, 16, 14),
    ("ViT-B-16-SigLIP", 768, 12, 12, 16),
    ("ViT-L-16-SigLIP", 1024, 24, 16, 16),
    ("ViT-SO400M-14-SigLIP", 1152, 27, 16, 14),
    ("ViT-B-32-SigLIP2", 768, 12, 12, 32),
    ("ViT-B-16-SigLIP2", 768, 12, 12, 16),
    ("ViT-L-16-SigLIP2", 1024, 24, 16, 16),
    ("ViT-SO400M-14-SigLIP2", 1152, 27, 16, 14),
    ("ViT-SO400M-16-SigLIP2", 1152, 27, 16, 16),
    ("ViT-gopt-16-SigLIP2", 1536, 40, 16, 16),
    ("PE-Core-T-16", 192, 12, 3, 16),
    ("PE-Core-S-16", 384, 12, 6, 16),
    ("PE-Core-B-16", 768, 12, 12, 16),
    ("PE-Core-L-14", 1024, 24, 16, 14),
    ("PE-Core-bigG-14", 1536, 50, 16, 14),
];

/// What open_clip's weights were trained on, by what their tags begin with, the more particular first, and whether they have the
/// quick GELU.
const TAGS: &[(&str, bool)] = &[
    ("openai", true),
    ("metaclip_altogether", false),
    ("metaclip", true),
    ("dfn2b_s39b", false),
    ("dfn", true),
    ("laion400m", false),
    ("laion2b", false),
    ("datacomp", false),
    ("commonpool", false),
];

/// What the names of open_clip's begin with.
const PREFIX: &str = "openclip:";

/// A name of open_clip's as model, without the size of its images and the ending of those with the quick GELU, size and tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenClipName<'a> {
    /// `ViT-B-32`, `ViT-B-16-SigLIP`.
    pub model: &'a str,
    /// Side of its images, in pixels.
    pub side: u32,
    /// `laion2b_s34b_b79k`, or the beginning of it.
    pub tag: &'a str,
    quick: bool,
}

/// Reads `openclip:MODEL/TAG`; `None` of another form.
pub fn open_clip_name(name: &str) -> Option<OpenClipName<'_>> {
    let (model, tag) = name.strip_prefix(PREFIX)?.split_once('/')?;
    let (model, quick) = match model.strip_suffix("-quickgelu") {
        Some(model) => (model, true),
        None => (model, false),
    };
    // The last number of a name is a side, unless it is that of a patch.
    let side = model.rsplit_once('-').and_then(|(model, last)| {
        let side: u32 = last.parse().ok().filter(|side| *side > 100)?;
        Some((model, side))
    });
    let (model, side) = side.unwrap_or((model, 224));
    Some(OpenClipName {
        model,
        side,
        tag,
        quick,
    })
}

/// The network of this name.
///
/// # Errors
/// Another name, with a list of those there are.
pub fn published(name: &str) -> Result<Published, String> {
    let of_row = |(_, embed_dim, depth, num_heads, patch_size): &Row, activation| Published {
        embed_dim: *embed_dim,
        depth: *depth,
        num_heads: *num_heads,
        patch_size: *patch_size,
        activation,
    };
    // With registers it is the same in all that is said here.
    let plain = match name.strip_suffix("-reg") {
        Some(plain) if plain.starts_with("dinov2-") => plain,
        _ => name,
    };
    if let Some(row) = NETWORKS.iter().find(|row| row.0 == plain) {
        return Ok(of_row(row, None));
    }
    let found = open_clip_name(name).and_then(|parts| {
        let row = OPEN_CLIP.iter().find(|row| row.0 == parts.model)?;
        Some(of_row(row, Some(open_clip_activation(&parts)?)))
    });
    found.ok_or_else(|| unknown(name))
}

fn open_clip_activation(name: &OpenClipName) -> Option<GeluKind> {
    let OpenClipName {
        model,
        side,
        tag,
        quick,
        ..
    } = *name;
    if model.contains("SigLIP") {
        // As timm has them: some as they were trained, others with the exact form.
        let tanh = model.contains("ViT-B-32") || model.contains("SO400M-16") || model.contains("gopt");
        let tanh = tanh || model.contains("ViT-L-16") && side == 512;
        let kind = if tanh { GeluKind::GeluTanh } else { GeluKind::Gelu };
        return (tag == "webli").then_some(kind);
    }
    if model.starts_with("PE-Core") {
        return (tag == "meta").then_some(GeluKind::Gelu);
    }
    let (start, of_tag) = TAGS.iter().find(|(start, _)| tag.starts_with(start))?;
    let exception = *start == "laion400m" && model == "ViT-B-32";
    Some(match quick || *of_tag || exception {
        true => GeluKind::QuickGelu,
        false => GeluKind::Gelu,
    })
}

/// All names: of open_clip's those of models and the beginnings of tags.
pub fn published_names() -> String {
    let list = |names: Vec<&str>| names.join(", ");
    format!(
        "{}; dinov2-..-reg; openclip:MODEL/TAG with a model {}, the size of its images behind it where it is not 224 \
         (ViT-L-14-336), and a tag that begins with {}, or is webli (SigLIP) or meta (PE)",
        list(NETWORKS.iter().map(|row| row.0).collect()),
        list(OPEN_CLIP.iter().map(|row| row.0).collect()),
        list(TAGS.iter().map(|tag| tag.0).collect()),
    )
}

/// Every name of [`published`] that is no pattern, and one of open_clip's for each model.
pub fn example_names() -> Vec<String> {
    let of_open_clip = OPEN_CLIP.iter().map(|(model, ..)| {
        let tag = match model {
            model if model.contains("SigLIP") => "webli",
            model if model.starts_with("PE-Core") => "meta",
            _ => "laion2b",
        };
        format!("{PREFIX}{model}/{tag}")
    });
    NETWORKS
        .iter()
        .map(|row| row.0.to_owned())
        .chain(of_open_clip)
        .collect()
}

fn unknown(name: &str) -> String {
    format!(
        "expected vit-{{tiny|small|base|large|giant2}}[/PATCH][-regN][-swiglu] or the name of a released network, found \
         `{name}`; these are known: {}",
        published_names()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_heads_and_activation() {
        use GeluKind::{Gelu, GeluTanh, QuickGelu};
        for (name, heads, activation) in [
            ("dinov3-vits16", 6, None),
            ("dinov3-vith16plus", 20, None),
            ("dinov2-vitl14-reg", 16, None),
            ("openclip:ViT-B-32/openai", 12, Some(QuickGelu)),
            ("openclip:ViT-B-32/laion2b", 12, Some(Gelu)),
            ("openclip:ViT-B-32/laion2b_s34b_b79k", 12, Some(Gelu)),
            ("openclip:ViT-B-32/laion400m_e31", 12, Some(QuickGelu)),
            ("openclip:ViT-B-16/laion400m_e31", 12, Some(Gelu)),
            ("openclip:ViT-L-14-336/openai", 16, Some(QuickGelu)),
            ("openclip:ViT-L-14/dfn2b", 16, Some(QuickGelu)),
            ("openclip:ViT-L-14/dfn2b_s39b", 16, Some(Gelu)),
            ("openclip:ViT-H-14/metaclip_altogether", 16, Some(Gelu)),
            ("openclip:ViT-H-14-378-quickgelu/dfn5b", 16, Some(QuickGelu)),
            ("openclip:ViT-B-16-plus-240/laion400m_e32", 14, Some(Gelu)),
            ("openclip:ViT-B-16-SigLIP/webli", 12, Some(Gelu)),
            ("openclip:ViT-B-32-SigLIP2-256/webli", 12, Some(GeluTanh)),
            ("openclip:ViT-L-16-SigLIP2-512/webli", 16, Some(GeluTanh)),
            ("openclip:ViT-L-16-SigLIP2-384/webli", 16, Some(Gelu)),
            ("openclip:ViT-gopt-16-SigLIP2-384/webli", 16, Some(GeluTanh)),
            ("openclip:PE-Core-bigG-14-448/meta", 16, Some(Gelu)),
        ] {
            let found = published(name).expect(name);
            assert_eq!((found.num_heads, found.activation), (heads, activation), "{name}");
        }
        for name in example_names() {
            assert!(published(&name).is_ok(), "{name}");
        }
    }

    #[test]
    fn other_names_are_refused_with_those_there_are() {
        for name in [
            "dinov3-vits14",
            "dino-vits16-reg",
            "openclip:ViT-B-32",
            "openclip:ViT-B-32/mine",
            "openclip:ViT-B-16-SigLIP/laion2b",
            "openclip:RN50/openai",
            "",
        ] {
            let error = published(name).expect_err(name);
            assert!(error.contains(&format!("found `{name}`")), "{error}");
            assert!(
                error.contains("dinov3-vits16") && error.contains("ViT-bigG-14"),
                "{error}"
            );
        }
    }
}
