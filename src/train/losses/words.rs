//! Visual words, as targets that a student tells: which small patches a crop has, and where. The vocabulary is learnt from the run's own
//! first crops: patches of 3 x 3 pixels without their brightness and contrast, whitened and clustered (Coates & Ng 2011), each of which
//! counts softly for the words like it within cells of the crop (Gidaris et al. 2020 have students tell such counts of features).

use candle_core::{DType, Device, Result, Tensor, bail};
use macula_eval::Matrix;
use macula_eval::linalg::kmeans::{KMeansConfig, kmeans};
use macula_eval::linalg::normalise::l2_normalised;
use macula_eval::linalg::whiten::Whitening;
use rand::Rng;

use super::key_queue::standard_normal;
use super::reconstruction::{largest_divisor, reconstruction_side, reduced};
use crate::train::config::WordsConfig;
use crate::train::kernels::{PATCH, PatchReader, WordTables, kernels};

/// Patches that the vocabulary is learnt from, at the most.
const LEARNT_FROM: usize = 50_000;
/// Places that are looked at for one of these: most of an image may be flat.
const PLACES_FOR_EACH: usize = 4;
/// Share of a patch's variance that must be left after the division by its contrast for it to be learnt from.
const CLEAR: f32 = 0.25;
/// Variance added along all axes before they are whitened: along the narrowest there is noise.
const RIDGE: f64 = 0.1;
const ITERATIONS: usize = 20;

/// Words for patches of 3 x 3 pixels of crops of C channels: d = 9 C values.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    mean: Tensor,  // [1, d]
    axes: Tensor,  // [d, d]
    words: Tensor, // [d, K]
    learnt: bool,
}

/// Number of values that tell the words of a crop of `side` pixels.
pub fn words_size(config: &WordsConfig, side: usize) -> usize {
    config.vocabulary * cells(config.cell, reconstruction_side(side)).pow(2)
}

/// Cells along a side of `side` pixels.
fn cells(cell: usize, side: usize) -> usize {
    side / largest_divisor(side, cell)
}

impl Vocabulary {
    /// One of `size` words for `channels` that is still to be learnt.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn unlearnt(size: usize, channels: usize, device: &Device) -> Result<Self> {
        let values = PATCH * channels;
        let zeros = |rows, columns| Tensor::zeros((rows, columns), DType::F32, device);
        Ok(Self {
            mean: zeros(1, values)?,
            axes: zeros(values, values)?,
            words: zeros(values, size)?,
            learnt: false,
        })
    }

    /// Whether it has been learnt.
    pub fn is_learnt(&self) -> bool {
        self.learnt
    }

    /// Learns it from `pixels` [N, C, s, s] of [`reduced`]. Of images without edges, where there is nothing to learn, words point anywhere.
    ///
    /// # Errors
    /// Pixels of other channels than it is for, NaN or infinity among them.
    pub fn learn(&mut self, pixels: &Tensor, rng: &mut impl Rng) -> Result<()> {
        let (values, size) = self.words.dims2()?;
        let (_, channels, _, _) = pixels.dims4()?;
        if values != PATCH * channels {
            bail!("words: expected patches of {values} values, found {channels} channels")
        }
        let mut patches = clear_patches(pixels, rng)?;
        // As many as there are words, wherever they point.
        let missing = size.saturating_sub(patches.len() / values) * values;
        patches.extend((0..missing).map(|_| standard_normal(rng)));
        let count = patches.len() / values;
        let patches = Matrix::new(patches, count, values).map_err(wrapped)?;
        let whitening = Whitening::fit_with_ridge(patches.view(), RIDGE).map_err(wrapped)?;
        let white = whitening.apply(patches.view()).and_then(l2_normalised);
        let white = white.map_err(wrapped)?;
        let config = KMeansConfig {
            k: size,
            iterations: ITERATIONS,
            seeding_rows: None,
            seed: rng.random(),
        };
        let clusters = kmeans(white.view(), &config).map_err(wrapped)?;
        let words = l2_normalised(clusters.centroids).map_err(wrapped)?;
        let device = self.words.device();
        let tensor = |rows: &[f32], shape: (usize, usize)| Tensor::from_slice(rows, shape, device);
        *self = Self {
            mean: tensor(whitening.mean(), (1, values))?,
            axes: tensor(whitening.axes().data(), (values, values))?,
            words: tensor(words.view().data(), (size, values))?.t()?.contiguous()?,
            learnt: true,
        };
        Ok(())
    }

    /// How far each word counts within the cells of `crops` [B, C, S, S], averaged to s x s pixels with s of [`reconstruction_side`]:
    /// [B, K, c, c] for cells of `cell` pixels; f32, without a gradient.
    ///
    /// A patch whose whitened cosine with word k is u_k counts `K softmax(15 u)_k` for it, and nothing where it is flat: 1 where all words are
    /// alike. A cell has the root of the mean of its patches.
    ///
    /// # Errors
    /// Crops that are not square, other channels.
    pub fn targets(&self, crops: &Tensor, cell: usize) -> Result<Tensor> {
        let pixels = reduced(crops)?;
        let side = pixels.dim(3)?;
        let tables = WordTables {
            mean: &self.mean,
            axes: &self.axes,
            words: &self.words,
        };
        kernels(pixels.device()).visual_words(&pixels, &tables, largest_divisor(side, cell))
    }

    /// What a checkpoint keeps of it, by name.
    pub fn tensors(&self) -> [(&'static str, &Tensor); 3] {
        [("mean", &self.mean), ("axes", &self.axes), ("words", &self.words)]
    }

    /// That of a checkpoint: tensors of the shapes and in the order of [`Self::tensors`].
    ///
    /// # Errors
    /// Failures of candle.
    pub fn from_tensors([mean, axes, words]: [Tensor; 3]) -> Result<Self> {
        let learnt = words.sqr()?.sum_all()?.to_scalar::<f32>()? > 0.;
        Ok(Self {
            mean,
            axes,
            words,
            learnt,
        })
    }
}

/// Up to [`LEARNT_FROM`] patches that show something, of random places of `pixels` [N, C, s, s], one after the other.
fn clear_patches(pixels: &Tensor, rng: &mut impl Rng) -> Result<Vec<f32>> {
    let (count, channels, side, _) = pixels.dims4()?;
    let images: Vec<f32> = pixels.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let reader = PatchReader { channels, side };
    let mut patch = vec![0.; PATCH * channels];
    let mut found = Vec::new();
    for _ in 0..LEARNT_FROM * PLACES_FOR_EACH {
        let [image, row, column] = [count, side, side].map(|places| rng.random_range(0..places));
        let len = channels * side * side;
        let variance = reader.read(&images[image * len..][..len], row, column, &mut patch);
        if variance > CLEAR {
            found.extend_from_slice(&patch);
        }
        if found.len() == LEARNT_FROM * patch.len() {
            break;
        }
    }
    Ok(found)
}

fn wrapped(error: macula_eval::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::train::testing::{assert_close, fixture, values};

    fn waves(count: usize, side: usize) -> Tensor {
        let place = |i: usize| {
            (
                (i % side) as f32,
                (i / side % side) as f32,
                (i / (side * side)) as f32,
            )
        };
        let value = |i: usize| {
            let (x, y, wave) = place(i);
            (x * (0.3 + 0.1 * wave) + y * (1.1 - 0.17 * wave)).sin()
        };
        let values = (0..count * 3 * side * side).map(value).collect::<Vec<_>>();
        Tensor::from_vec(values, (count, 3, side, side), &Device::Cpu).unwrap()
    }

    fn learnt(pixels: &Tensor, size: usize) -> Vocabulary {
        let mut vocabulary = Vocabulary::unlearnt(size, 3, &Device::Cpu).unwrap();
        assert!(!vocabulary.is_learnt());
        vocabulary.learn(pixels, &mut stream(5, "words", 0)).unwrap();
        assert!(vocabulary.is_learnt());
        vocabulary
    }

    fn bits(vocabulary: &Vocabulary) -> Vec<Vec<f64>> {
        vocabulary
            .tensors()
            .iter()
            .map(|(_, tensor)| values(tensor))
            .collect()
    }

    /// What numpy makes of the same crops and vocabulary in f64 (`tests/fixtures/make_terms.py`): as they are, averaged down, and with cells
    /// of one pixel.
    #[test]
    fn words_are_numpys() {
        let golden = fixture("terms.safetensors");
        let of = |name: &str| golden[&format!("words.{name}")].clone();
        let vocabulary = Vocabulary::from_tensors([of("mean"), of("axes"), of("words")]).unwrap();
        let config = WordsConfig {
            vocabulary: 10,
            ..WordsConfig::default()
        };
        for side in [12, 44, 33] {
            let crops = &golden[&format!("hog.crops.{side}")];
            let found = vocabulary.targets(crops, config.cell).unwrap();
            let expected = of(&side.to_string());
            assert_eq!(
                expected.elem_count() / expected.dim(0).unwrap(),
                words_size(&config, side)
            );
            assert_close(&format!("side {side}"), &found, &expected, 2e-5);
        }
    }

    #[test]
    fn a_vocabulary_has_directions_that_patches_are_near() {
        let pixels = waves(6, 16);
        let vocabulary = learnt(&pixels, 12);
        let lengths = vocabulary.words.sqr().unwrap().sum(0).unwrap();
        for length in values(&lengths) {
            assert!((length - 1.).abs() < 1e-5, "{length}");
        }
        // Most of a softmax of 15 times the cosines falls to a few words, so patches are near them: spread evenly, each had 1 of 12.
        let counts = vocabulary.targets(&pixels, 1).unwrap().sqr().unwrap(); // [6, 12, 16, 16]
        let largest = values(&counts.max(1).unwrap());
        let mean = largest.iter().sum::<f64>() / largest.len() as f64;
        assert!(mean > 4.8, "{mean}");
        let sums = values(&counts.sum(1).unwrap());
        assert!(sums.iter().all(|sum| (sum - 12.).abs() < 1e-3));
    }

    #[test]
    fn the_same_crops_give_the_same_vocabulary_which_a_checkpoint_keeps() {
        let pixels = waves(4, 12);
        let vocabulary = learnt(&pixels, 8);
        assert_eq!(bits(&vocabulary), bits(&learnt(&pixels, 8)));
        let saved = vocabulary.tensors().map(|(_, tensor)| tensor.clone());
        let loaded = Vocabulary::from_tensors(saved).unwrap();
        assert!(loaded.is_learnt());
        assert_eq!(bits(&loaded), bits(&vocabulary));
        let unlearnt = Vocabulary::unlearnt(8, 3, &Device::Cpu).unwrap();
        let saved = unlearnt.tensors().map(|(_, tensor)| tensor.clone());
        assert!(!Vocabulary::from_tensors(saved).unwrap().is_learnt());
    }

    #[test]
    fn brightness_is_no_word_and_contrast_hardly_one() {
        let pixels = (waves(2, 12) * 3.).unwrap();
        let vocabulary = learnt(&pixels, 8);
        let before = vocabulary.targets(&pixels, 4).unwrap();
        let after = vocabulary.targets(&((pixels * 2.).unwrap() + 1.).unwrap(), 4);
        let moved = (before - after.unwrap())
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() < 0.06);
    }

    /// Of images of one colour there is nothing to learn and nothing to tell; those that come later have words all the same.
    #[test]
    fn flat_images_have_no_words() {
        let flat = Tensor::full(0.7f32, (3, 3, 12, 12), &Device::Cpu).unwrap();
        let vocabulary = learnt(&flat, 8);
        let counts = vocabulary.targets(&flat, 4).unwrap();
        assert!(values(&counts).iter().all(|count| *count == 0.));
        let counts = vocabulary.targets(&waves(1, 12), 4).unwrap();
        let sums = values(&counts.sqr().unwrap().sum(1).unwrap());
        assert!(sums.iter().all(|sum| (sum - 8.).abs() < 1e-3), "{sums:?}");
    }

    #[test]
    fn other_channels_are_refused() {
        let mut vocabulary = Vocabulary::unlearnt(8, 1, &Device::Cpu).unwrap();
        let error = vocabulary.learn(&waves(1, 12), &mut stream(5, "words", 0));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("expected patches of 9 values, found 3 channels"),
            "{error}"
        );
    }
}
