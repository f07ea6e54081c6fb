//! Which candidate is the better one where no labels say so: the one that sees the neighbours that the others see. What recipes and
//! settings agree on is in the images; what one alone sees is most often its own doing. Over 26 runs this ordered them much as k-NN did,
//! where meters of single runs did not (`benchmarks/history/NOTES.md`, "Choosing without labels"). Ours.

use std::path::Path;

use candle_core::{Device, Tensor};
use macula_eval::MatrixView;
use macula_eval::index::{ExactIndex, Index};
use macula_models::vit::VisionTransformer;
use macula_models::weights::{self, LoadOptions};
use rand::seq::SliceRandom as _;

use crate::data::{BatchReader, Source};
use crate::train::config::TrainConfig;
use crate::train::run;
use crate::{Error, Result, rng};

/// The most images whose neighbours are compared.
const IMAGES: usize = 2048;
/// With fewer that can be read their neighbours say nothing.
const MIN_IMAGES: usize = 64;
/// Neighbours of an image.
const NEIGHBOURS: usize = 10;
/// Images given to a network at a time.
const BATCH: usize = 64;

/// For each image of a sample the places in it of its nearest neighbours, rising; none for an image that cannot be read.
pub type Graph = Vec<Vec<u32>>;

/// Rows of `source`, the same for every candidate.
pub fn sample(source: &dyn Source, seed: u64) -> Vec<u64> {
    let mut rows: Vec<u64> = (0..source.len()).collect();
    let (drawn, _) = rows.partial_shuffle(&mut rng::stream(seed, "agreement", 0), IMAGES);
    // Files are read in the order they lie in.
    drawn.sort_unstable();
    drawn.to_vec()
}

/// The neighbours of the images in `rows` by the class tokens of the run in `folder`, as it stands: cosine similarity, equal ones by
/// place.
///
/// # Errors
/// A run that has saved no network, features that are not finite, fewer than 64 images that can be read.
pub fn neighbours(
    folder: &Path,
    config: &TrainConfig,
    source: &dyn Source,
    rows: &[u64],
    device: &Device,
) -> Result<Graph> {
    let checkpoint = weights::load(&folder.join(run::TEACHER), &LoadOptions::default())?;
    let network = VisionTransformer::from_tensors(&checkpoint.config, &checkpoint.backbone, device)?;
    let reader = BatchReader::new(&run::preprocess(config), &config.data.loader.decode())?;
    let (height, width) = reader.size();
    let (mut features, mut places, mut dim) = (Vec::new(), Vec::new(), 0);
    for (batch, rows) in rows.chunks(BATCH).enumerate() {
        let read = reader.read(source, rows);
        let found = read.places();
        if found.is_empty() {
            continue;
        }
        let shape = (found.len(), reader.channels(), height, width);
        let input = Tensor::from_vec(read.pixels, shape, &Device::Cpu)?.to_device(device)?;
        let cls = network.forward(&input, None)?.cls; // [b, D]
        dim = cls.dim(1)?;
        features.extend(cls.flatten_all()?.to_vec1::<f32>()?);
        places.extend(found.iter().map(|place| (batch * BATCH + place) as u32));
    }
    if places.len() < MIN_IMAGES {
        let found = places.len();
        let reason = format!(
            "expected at least {MIN_IMAGES} images that can be read to compare candidates, found {found}"
        );
        return Err(Error::input("--data", reason));
    }
    let features = MatrixView::new(&features, places.len(), dim)?;
    let index = Index::Exact(ExactIndex::build(features)?);
    let found = index.search(features, NEIGHBOURS + 1, NEIGHBOURS + 1)?;
    let mut graph = Graph::new();
    graph.resize(rows.len(), Vec::new());
    for (own, hits) in (0u32..).zip(&found) {
        let others = hits.iter().map(|hit| hit.row).filter(|&row| row != own);
        let mut near: Vec<u32> = others.take(NEIGHBOURS).map(|row| places[row as usize]).collect();
        near.sort_unstable();
        graph[places[own as usize] as usize] = near;
    }
    Ok(graph)
}

/// The mean share of the neighbours in `own` that `others` see too, 0 to 1; 0 without others.
pub fn agreement(own: &Graph, others: &[&Graph]) -> f64 {
    let shares: f64 = others.iter().map(|other| overlap(own, other)).sum();
    shares / others.len().max(1) as f64
}

fn overlap(first: &Graph, second: &Graph) -> f64 {
    let (mut shared, mut all) = (0, 0);
    for (first, second) in first.iter().zip(second) {
        if !second.is_empty() {
            shared += first
                .iter()
                .filter(|near| second.binary_search(near).is_ok())
                .count();
            all += first.len();
        }
    }
    shared as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_all_neighbours_of_images_that_both_read() {
        let own: Graph = vec![vec![1, 2], vec![0, 3], vec![], vec![1, 2]];
        let other: Graph = vec![vec![1, 3], vec![0, 3], vec![0, 1], vec![]];
        assert_eq!(overlap(&own, &other), 3. / 4.);
        assert_eq!(overlap(&own, &own), 1.);
        assert_eq!(agreement(&own, &[&own, &other]), 7. / 8.);
        assert_eq!(agreement(&own, &[]), 0.);
    }
}
