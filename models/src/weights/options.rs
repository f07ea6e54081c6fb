//! What a caller may say about a checkpoint that its file does not.

use crate::vit::{GeluKind, PositionRule};

/// What the file cannot tell, or what should win over the family's habit. The default says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Attention heads per block. Official, DINO v1 and timm files do not hold it: without it (and without `arch`)
    /// one head is 64 wide. Contradicting a file that does hold it is an error.
    pub num_heads: Option<usize>,
    /// An architecture in the spelling of [`crate::vit::VitConfig::named`], or a released network by name ([`super::published`]), which
    /// tells its activation too. The tensors must fit it.
    pub arch: Option<String>,
    /// The position rule, in place of the family's.
    pub position_rule: Option<PositionRule>,
    /// The GELU of an MLP, which CLIP's files do not hold: without it their configuration has to tell. Contradicting a
    /// configuration is an error.
    pub activation: Option<GeluKind>,
}
