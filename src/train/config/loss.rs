//! The terms of the objective, their heads and the contrastive queue.

use macula_models::heads::DinoHeadConfig;
use serde::{Deserialize, Serialize};

use super::{PatchAnchorConfig, WordsConfig};

/// The terms of the objective: a term of weight 0 is off, and what only it needs is not built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the DINO term on class tokens.
    pub dino_weight: f64,
    /// Weight of the iBOT term on masked patches.
    pub ibot_weight: f64,
    /// Weight of KoLeo, which spreads the class tokens of each global crop that the student sees; 0.1 in DINOv2.
    pub koleo_weight: f64,
    /// Images of a crop among which KoLeo looks for each one's nearest neighbour, one after the other in the batch; 0 for all of a micro-batch
    /// (`accumulate`). The reference looks among the images of one GPU (12 to 64), which pushes less than a batch of thousands, where
    /// nearest neighbours are nearer. What is left over joins the last group; of a micro-batch with fewer images all are one group. At least
    /// 2. Default 0.
    #[serde(default)]
    pub koleo_group: usize,
    /// Weight of the contrastive term (MoCo). It needs exactly two global crops.
    pub info_nce_weight: f64,
    /// Weight of predicting the pixels of each global crop from its class token, which keeps what small images need and crops do
    /// not share. Default 0.
    #[serde(default)]
    pub pixel_weight: f64,
    /// Hidden width of the network that predicts them; 0 for one linear layer. Default 512.
    #[serde(default = "decoder_hidden")]
    pub pixel_hidden: usize,
    /// Weight of telling histograms of oriented gradients of each global crop from its class token (Wei et al. 2021): where edges
    /// are and how they run. Default 0.
    #[serde(default)]
    pub hog_weight: f64,
    /// Hidden width of the network that predicts them; 0 for one linear layer. Default 512.
    #[serde(default = "decoder_hidden")]
    pub hog_hidden: usize,
    /// The visual words of each global crop, told from its class token; off by default.
    #[serde(default)]
    pub words: WordsConfig,
    /// Temperature of the student's softmax. 0.1 in DINO and DINOv2.
    pub student_temperature: f64,
    /// The head of the DINO term.
    pub head: HeadConfig,
    /// A head of its own for the iBOT term; without one both share `head`.
    #[serde(default)]
    pub ibot_head: Option<HeadConfig>,
    /// The contrastive term's projection, queue and temperature.
    #[serde(default)]
    pub info_nce: InfoNceConfig,
    /// What the similarities of an image's patches are held to; off by default.
    #[serde(default)]
    pub patch_anchor: PatchAnchorConfig,
}

fn decoder_hidden() -> usize {
    512
}

/// A projection head (DINOv2 `layers/dino_head.py`), without the width of its input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Width of the two hidden layers; 2048 in DINOv2.
    pub hidden: usize,
    /// Width of the normalised bottleneck; 256 in DINOv2.
    pub bottleneck: usize,
    /// Prototypes K; 65536 to 131072 in DINOv2.
    pub prototypes: usize,
    /// Whether the prototypes' gains are trained, as in DINOv2; fixed gains are safer on small data.
    pub train_gain: bool,
}

/// The contrastive term (He et al. 2020), where it is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfoNceConfig {
    /// Hidden width of the projection. Default 2048.
    pub hidden: usize,
    /// Width of keys and queries. Default 128.
    pub output: usize,
    /// Batch norm in the projection, as in MoCo v3. With a queue it tells which keys are of the query's own batch, and features get worse
    /// while the loss falls (He et al. 2020, section 3.3, who shuffle images over GPUs for it). Default false.
    pub batch_norm: bool,
    /// Whether the student's points go through a second such network, of the same sizes, before they are compared with the
    /// teacher's (the predictor of MoCo v3). Default false.
    pub predictor: bool,
    /// Negatives kept, first in, first out; 0 to take the other keys of the batch instead, as in MoCo v3. Default 65536.
    pub queue: usize,
    /// Whether a query is to find, in its own key's place, the key in the queue that is nearest to it, most often another image's:
    /// what is alike then comes together whether or not crops make it so (NNCLR: Dwibedi et al. 2021). The negatives are the batch's.
    /// It needs a queue. Default false.
    pub nearest: bool,
    /// Temperature of the first step. Default 0.07.
    pub temperature: f64,
    /// Temperature of the last step, reached along a cosine. Default 0.04.
    pub final_temperature: f64,
    /// Whether each crop is also the other's query, which costs a second pass of both networks. Default false, as in MoCo.
    pub symmetric: bool,
}

impl Default for InfoNceConfig {
    fn default() -> Self {
        Self {
            hidden: 2048,
            output: 128,
            batch_norm: false,
            predictor: false,
            queue: 65_536,
            nearest: false,
            temperature: 0.07,
            final_temperature: 0.04,
            symmetric: false,
        }
    }
}

impl HeadConfig {
    /// The head for tokens of `width`.
    pub fn head(&self, width: usize) -> DinoHeadConfig {
        DinoHeadConfig {
            input: width,
            hidden: self.hidden,
            bottleneck: self.bottleneck,
            prototypes: self.prototypes,
            train_gain: self.train_gain,
        }
    }
}
