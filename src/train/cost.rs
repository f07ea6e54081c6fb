//! What a step costs on paper: the floating-point operations of its matrix products, which a measured rate turns into the
//! least time the step can take.

use macula_models::heads::DinoHeadConfig;
use macula_models::vit::{FeedForwardKind, VitConfig};

use super::config::TrainConfig;
use super::network::NetworkConfig;
use crate::Result;

/// Operations of a matrix product of `m x k` by `k x n`.
fn product(m: f64, k: f64, n: f64) -> f64 {
    2. * m * k * n
}

/// Operations of one forward pass over one image of `side` pixels, of whose patches a share `visible` are tokens.
fn vit_forward(vit: &VitConfig, side: usize, visible: f64) -> f64 {
    let patches = ((side / vit.patch_size).pow(2)) as f64;
    let tokens = (patches * visible).round() + 1. + vit.num_registers as f64;
    let (d, hidden) = (vit.embed_dim as f64, vit.ffn_hidden as f64);
    let (stem, stride, channels) = stem_forward(vit, side);
    let patch = (channels * (vit.patch_size / stride).pow(2)) as f64;
    let feed_forward = match vit.feed_forward {
        FeedForwardKind::Mlp => 2. * product(tokens, d, hidden),
        FeedForwardKind::Swiglu => 3. * product(tokens, d, hidden),
    };
    let attention = product(tokens, d, 4. * d) + 2. * product(tokens, d, tokens);
    stem + product(patches, patch, d) + vit.depth as f64 * (attention + feed_forward)
}

/// Operations of the convolutions before the projection of patches, the stride of all of them, and the channels they give.
fn stem_forward(vit: &VitConfig, side: usize) -> (f64, usize, usize) {
    let start = (0., 1, vit.in_channels);
    vit.stem.iter().fold(start, |(sum, stride, input), layer| {
        let stride = stride * layer.stride;
        let places = ((side / stride).pow(2)) as f64;
        let operations = product(places, (9 * input) as f64, layer.channels as f64);
        (sum + operations, stride, layer.channels)
    })
}

/// Operations of one row through a head.
fn head_forward(head: &DinoHeadConfig) -> f64 {
    let [input, hidden, bottleneck, prototypes] =
        [head.input, head.hidden, head.bottleneck, head.prototypes].map(|width| width as f64);
    product(1., input, hidden)
        + product(1., hidden, hidden)
        + product(1., hidden, bottleneck)
        + product(1., bottleneck, prototypes)
}

/// Operations of one optimizer step: the teacher's forward passes once, the student's three times (a backward pass is two
/// products for each of the forward pass). Masked patches are counted at the mean of the configured ratios.
///
/// # Errors
/// A configuration that contradicts itself.
pub fn step_operations(config: &TrainConfig) -> Result<f64> {
    let network = NetworkConfig::new(config)?;
    let vit = &network.vit;
    let batch = config.batch_size as f64;
    let (global, local) = (&config.crops.global, &config.crops.local);
    let on_global = batch * vit_forward(vit, global.size as usize, 1.);
    let visible = 1. - config.backbone.patch_drop_rate;
    let on_visible = batch * vit_forward(vit, global.size as usize, visible);
    if config.has_info_nce() {
        let (directions, nce) = (
            if config.loss.info_nce.symmetric { 2. } else { 1. },
            &config.loss.info_nce,
        );
        // Without a queue the keys of the batch are what queries are compared with.
        let negatives = if nce.queue == 0 {
            config.batch_size
        } else {
            nce.queue
        };
        let [width, hidden, output, negatives] =
            [vit.embed_dim, nce.hidden, nce.output, negatives].map(|width| width as f64);
        let projection = batch * (product(1., width, hidden) + product(1., hidden, output));
        let predictor = match nce.predictor {
            true => batch * (product(1., output, hidden) + product(1., hidden, output)),
            false => 0.,
        };
        let against = batch * product(1., output, negatives);
        return Ok(
            directions * (on_global + 3. * on_visible + 4. * projection + 3. * predictor + 2. * against)
        );
    }
    let globals = global.count as f64;
    let locals = if config.has_dino() { local.count as f64 } else { 0. };
    let on_local = match local.count {
        0 => 0.,
        _ => batch * vit_forward(vit, local.size as usize, 1.),
    };
    let row = network.dino_head.as_ref().map_or(0., head_forward);
    let patch_head = network.ibot_head.as_ref().or(network.dino_head.as_ref());
    let masked = match patch_head {
        Some(head) if config.has_ibot() => {
            let ratio = (config.masks.ratio[0] + config.masks.ratio[1]) / 2.;
            let patches = (vit.native_grid().pow(2)) as f64;
            globals * batch * config.masks.probability * ratio * patches * head_forward(head)
        }
        _ => 0.,
    };
    let of_class = if config.has_dino() { batch * row } else { 0. };
    let teacher = globals * (on_global + of_class) + masked;
    let decoders = [
        &network.pixel_decoder,
        &network.hog_decoder,
        &network.words_decoder,
    ];
    let decoding = decoders.into_iter().flatten().map(|decoder| {
        let [input, hidden, output] =
            [decoder.input, decoder.hidden, decoder.output].map(|width| width as f64);
        batch
            * match decoder.hidden {
                0 => product(1., input, output),
                _ => product(1., input, hidden) + product(1., hidden, output),
            }
    });
    let decoding: f64 = decoding.sum();
    let student = globals * (on_visible + of_class + decoding) + locals * (on_local + of_class) + masked;
    Ok(teacher + 3. * student)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::recipes::{DataFacts, Overrides, recipe};

    /// The operations of a step of `name` over one image with a network small enough to count by hand.
    fn counted(name: &str, more: &[&str]) -> f64 {
        let facts = DataFacts {
            images: 100,
            side: 28,
            grey: true,
            framed: true,
        };
        let mut overrides = Overrides::default();
        let small = [
            "batch_size=1",
            "backbone.embed_dim=4",
            "backbone.depth=1",
            "backbone.num_heads=1",
            "backbone.patch_size=14",
            "image_size=28",
            "crops.local.count=0",
            "loss.koleo_weight=0.0",
        ];
        for setting in small.iter().chain(more) {
            overrides.set(setting).unwrap();
        }
        let config = overrides.apply(recipe(name, "x", &facts).unwrap(), 100).unwrap();
        step_operations(&config).unwrap()
    }

    /// 4 patches of 588 values, `tokens` of 4: patch embedding, qkv and projection, scores and sums, both layers.
    fn vit(tokens: f64) -> f64 {
        2. * (4. * 588. * 4.)
            + 2. * (tokens * 4. * 16.)
            + 2. * 2. * (tokens * 4. * tokens)
            + 2. * 2. * (tokens * 4. * 16.)
    }

    const HEAD: f64 = 2. * (4. * 512. + 512. * 512. + 512. * 128. + 128. * 1024.);

    #[test]
    fn operations_are_those_counted_by_hand() {
        let step = counted("dino", &[]);
        assert!((step - 4. * 2. * (vit(5.) + HEAD)).abs() < 1., "{step}");
    }

    #[test]
    fn a_stem_is_counted_and_what_it_leaves_to_the_projection() {
        let step = counted(
            "dino",
            &["backbone.stem=[{channels=5,stride=1},{channels=6,stride=2}]"],
        );
        // Windows of 27 values at 784 places, of 45 at 196, and patches of 7 x 7 places of 6 channels instead of 588 values.
        let stem = 2. * (784. * 27. * 5. + 196. * 45. * 6.);
        let embedding = 2. * (4. * 294. * 4.) - 2. * (4. * 588. * 4.);
        let expected = 4. * 2. * (vit(5.) + HEAD + stem + embedding);
        assert!((step - expected).abs() < 1., "{step} {expected}");
    }

    #[test]
    fn a_student_that_sees_half_costs_less() {
        let settings = [
            "backbone.patch_drop_rate=0.5",
            "loss.pixel_weight=1.0",
            "loss.pixel_hidden=8",
            "loss.hog_weight=1.0",
            "loss.hog_hidden=8",
        ];
        let step = counted("dino", &settings);
        let pixels = 2. * (4. * 8. + 8. * 3. * 28. * 28.);
        let decoding = pixels + 2. * (4. * 8. + 8. * 8. * 14. * 14.);
        let expected = 2. * (vit(5.) + HEAD) + 3. * 2. * (vit(3.) + HEAD + decoding);
        assert!((step - expected).abs() < 1., "{step} {expected}");
    }
}
