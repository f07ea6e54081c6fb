//! Which patches of the global crops the student does not see: block masks, and their assignment to the crops of a batch
//! (facebookresearch/dinov2: dinov2/data/masking.py, dinov2/data/collate.py).

use std::ops::Range;

use rand::Rng;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::augment::uniform;
use crate::{Error, Result};

/// Attempts to place one block before a mask is left as it is.
const ATTEMPTS: usize = 10;
/// The largest number of rows or columns of a grid.
const MAX_SIDE: usize = 1 << 12;

/// How masks are drawn. What a file leaves out has the reference's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// Share of a batch's crops that have a mask, 0 to 1, rounded down to whole crops. Default 0.5.
    pub probability: f64,
    /// Least and largest share of a masked crop's patches, 0 to 1: each masked crop of a batch draws from its own slice
    /// of this range. Default `[0.1, 0.5]`.
    pub ratio: [f64; 2],
    /// Patches of the smallest block, at least 1, before rounding to whole rows and columns. Default 4.
    pub min_block: usize,
    /// Least and largest proportion of a block's rows to its columns, above 0, drawn uniformly by logarithm.
    /// Default `[0.3, 1 / 0.3]`.
    pub aspect: [f64; 2],
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self {
            probability: 0.5,
            ratio: [0.1, 0.5],
            min_block: 4,
            aspect: [0.3, 1.0 / 0.3],
        }
    }
}

impl MaskConfig {
    /// Checks every field's range; the error names the field as it stands in the file.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &str, expected: &str, found: String| {
            Err(Error::input(field, format!("expected {expected}, found {found}")))
        };
        if !(0.0..=1.0).contains(&self.probability) {
            return refuse(
                "probability",
                "a number from 0 to 1",
                self.probability.to_string(),
            );
        }
        let [min, max] = self.ratio;
        if !(0.0 <= min && min <= max && max <= 1.0) {
            return refuse(
                "ratio",
                "two rising numbers from 0 to 1",
                format!("{:?}", self.ratio),
            );
        }
        if self.min_block == 0 {
            return refuse("min_block", "at least 1 patch", "0".to_owned());
        }
        let [min, max] = self.aspect;
        if !(0.0 < min && min <= max && max.is_finite()) {
            return refuse(
                "aspect",
                "two rising numbers above 0",
                format!("{:?}", self.aspect),
            );
        }
        Ok(())
    }
}

/// Rows and columns of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of patches: the crop's height over the patch size.
    pub rows: usize,
    /// Columns of patches: the crop's width over the patch size.
    pub columns: usize,
}

impl Grid {
    /// Patches of one crop, N.
    pub fn patches(self) -> usize {
        self.rows * self.columns
    }

    /// Patches that one block may add at most: half the rows, rounded down, times the columns. For a square crop that is
    /// the reference's `0.5 * size // patch * size // patch`.
    pub fn max_block(self) -> usize {
        self.rows / 2 * self.columns
    }
}

/// The masks of a batch's global crops.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchMasks {
    /// `[n_crops, N]`, 1 where a patch is masked, rows of the grid one after the other.
    pub masks: Vec<u8>,
    /// Places of the masked patches in `masks`, rising: `[M]`.
    pub indices: Vec<u32>,
    /// One over the number of masked patches of the crop that each of `indices` lies in: `[M]`. Summed over a batch
    /// they weigh every masked crop alike.
    pub weights: Vec<f32>,
    /// The largest M that these settings allow for a batch of this size: room for a buffer that fits every batch.
    pub upper_bound: usize,
}

impl BatchMasks {
    /// Those of the crops of `images` alone, of a batch of `whole` images with `crops` crops each, crop-major. The room they need stays
    /// the whole batch's.
    pub fn of_images(self, crops: usize, whole: usize, images: Range<usize>) -> Self {
        if images == (0..whole) {
            return self;
        }
        let patches = self.masks.len() / (crops * whole).max(1);
        let of_place = |place: usize| images.clone().map(move |image| place * whole + image);
        let chosen: Vec<Vec<u8>> = (0..crops)
            .flat_map(of_place)
            .map(|crop| self.masks[crop * patches..(crop + 1) * patches].to_vec())
            .collect();
        collate(&chosen, self.upper_bound)
    }
}

/// Draws masks for `n_crops` crops of one `grid`. The share of masked patches is spread evenly over `cfg.ratio` within a
/// batch, and which crops have a mask is random: both crops of an image, one, or neither. Fails on settings out of range, a
/// grid without patches or beyond 4096 a side, and a batch whose places do not fit u32.
pub fn masks_for_batch(
    n_crops: usize,
    grid: Grid,
    cfg: &MaskConfig,
    rng: &mut impl Rng,
) -> Result<BatchMasks> {
    cfg.validate()?;
    let patches = checked_patches(n_crops, grid)?;
    let masked_crops = (n_crops as f64 * cfg.probability) as usize;
    // Edges of the slices of the ratio, as many slices as masked crops.
    let edge = |place: usize| {
        let share = place as f64 / masked_crops as f64;
        cfg.ratio[0] + (cfg.ratio[1] - cfg.ratio[0]) * share
    };
    let part = |ratio: f64| (patches as f64 * ratio) as usize;
    let mut upper_bound = 0;
    let mut crops = Vec::with_capacity(n_crops);
    for place in 0..masked_crops {
        let (from, to) = (edge(place), edge(place + 1));
        let target = part(uniform([from, to], rng));
        crops.push(block_mask(grid, target, cfg, rng));
        upper_bound += part(to);
    }
    crops.resize(n_crops, vec![0; patches]);
    crops.shuffle(rng);
    Ok(collate(&crops, upper_bound))
}

/// Patches of one crop, where a batch of them can be numbered.
fn checked_patches(n_crops: usize, grid: Grid) -> Result<usize> {
    let sides = 1..=MAX_SIDE;
    let Grid { rows, columns } = grid;
    if !sides.contains(&rows) || !sides.contains(&columns) {
        let reason = format!("expected 1 to {MAX_SIDE} rows and columns, found {rows} x {columns}");
        return Err(Error::input("patch grid", reason));
    }
    let places = n_crops.checked_mul(grid.patches());
    if places.is_none_or(|places| u32::try_from(places).is_err()) {
        let reason = format!("{n_crops} crops of {rows} x {columns} patches are more than can be numbered");
        return Err(Error::input("global crops", reason));
    }
    Ok(grid.patches())
}

/// One after the other, with the places and weights of the masked patches.
fn collate(crops: &[Vec<u8>], upper_bound: usize) -> BatchMasks {
    let masks = crops.concat(); // [n_crops, N]
    let mut weights = Vec::new();
    for crop in crops {
        let count = crop.iter().filter(|&&cell| cell == 1).count();
        weights.extend(std::iter::repeat_n(1.0 / count.max(1) as f32, count));
    }
    let places = (0_u32..).zip(&masks);
    BatchMasks {
        indices: places
            .filter(|(_, cell)| **cell == 1)
            .map(|(place, _)| place)
            .collect(),
        masks,
        weights,
        upper_bound,
    }
}

/// A mask of the `grid`, `[rows, columns]`, with at most `target` ones: blocks are added until there are as many, or until
/// none fits. `cfg` is valid.
pub fn block_mask(grid: Grid, target: usize, cfg: &MaskConfig, rng: &mut impl Rng) -> Vec<u8> {
    let mut mask = vec![0; grid.patches()];
    let mut count = 0;
    while count < target {
        let max = (target - count).min(grid.max_block());
        match add_block(&mut mask, grid, max, cfg, rng) {
            0 => break,
            added => count += added,
        }
    }
    mask
}

/// Masks one more block that adds `max` patches at most and leaves at least one row and one column of the grid free;
/// returns how many it added, 0 when no attempt fitted.
fn add_block(mask: &mut [u8], grid: Grid, max: usize, cfg: &MaskConfig, rng: &mut impl Rng) -> usize {
    let log_aspect = cfg.aspect.map(f64::ln);
    for _ in 0..ATTEMPTS {
        // Near the target `max` may be the smaller end.
        let area = uniform([cfg.min_block as f64, max as f64], rng);
        let aspect = uniform(log_aspect, rng).exp();
        let rows = (area * aspect).sqrt().round_ties_even() as usize;
        let columns = (area / aspect).sqrt().round_ties_even() as usize;
        if rows >= grid.rows || columns >= grid.columns {
            continue;
        }
        let top = rng.random_range(0..=grid.rows - rows);
        let left = rng.random_range(0..=grid.columns - columns);
        let rectangle = (top..top + rows, left..left + columns);
        let free = cells(mask, grid, &rectangle).filter(|cell| **cell == 0).count();
        if (1..=max).contains(&free) {
            cells(mask, grid, &rectangle).for_each(|cell| *cell = 1);
            return free;
        }
    }
    0
}

/// The cells of a mask, `[rows, columns]`, in a range of rows and one of columns.
fn cells<'a>(
    mask: &'a mut [u8],
    grid: Grid,
    (rows, columns): &'a (Range<usize>, Range<usize>),
) -> impl Iterator<Item = &'a mut u8> {
    let rows = &mut mask[rows.start * grid.columns..rows.end * grid.columns];
    rows.chunks_exact_mut(grid.columns)
        .flat_map(|row| &mut row[columns.clone()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    const GRID: Grid = Grid {
        rows: 16,
        columns: 16,
    };

    fn square(size: usize, patch: usize) -> Grid {
        Grid {
            rows: size / patch,
            columns: size / patch,
        }
    }

    fn ones(mask: &[u8]) -> usize {
        mask.iter().filter(|&&cell| cell == 1).count()
    }

    #[test]
    fn a_block_may_be_as_large_as_the_references() {
        let sizes = [(224, 14), (224, 16), (518, 14)];
        let max = sizes.map(|(size, patch)| square(size, patch).max_block());
        assert_eq!(max, [128, 98, 666]);
    }

    #[test]
    fn masks_reach_their_target_or_fall_short_of_it() {
        let mut rng = rng::stream(5, "masks", 0);
        let mut total = 0;
        for target in 0..=128 {
            let mask = block_mask(GRID, target, &MaskConfig::default(), &mut rng);
            assert_eq!(mask.len(), 256);
            assert!(mask.iter().all(|&cell| cell <= 1));
            assert!(ones(&mask) <= target);
            total += ones(&mask);
        }
        // Sum of 0..=128; a block that would exceed the target is refused, so the last patches may be missing.
        assert!(total * 100 > 8256 * 97, "{total}");
    }

    #[test]
    fn a_first_block_keeps_its_bounds() {
        let mut rng = rng::stream(6, "masks", 0);
        let cfg = MaskConfig::default();
        let (mut min, mut max) = (usize::MAX, 0);
        let grid = Grid { rows: 6, columns: 9 };
        for _ in 0..3000 {
            let mut mask = vec![0; grid.patches()];
            let added = add_block(&mut mask, grid, grid.max_block(), &cfg, &mut rng);
            assert_eq!(added, ones(&mask));
            let columns: Vec<usize> = (0..9).filter(|&x| (0..6).any(|y| mask[y * 9 + x] == 1)).collect();
            let rows: Vec<usize> = (0..6).filter(|&y| (0..9).any(|x| mask[y * 9 + x] == 1)).collect();
            // One rectangle, smaller than the grid both ways.
            assert_eq!(rows.len() * columns.len(), added);
            assert!(rows.len() < grid.rows && columns.len() < grid.columns);
            min = min.min(added);
            max = max.max(added);
        }
        assert!(min >= 3 && max <= grid.max_block() && max > 20, "{min} {max}");
    }

    #[test]
    fn a_grid_too_small_for_a_block_stays_free() {
        let mut rng = rng::stream(7, "masks", 0);
        for grid in [Grid { rows: 1, columns: 9 }, Grid { rows: 9, columns: 1 }] {
            let mask = block_mask(grid, 4, &MaskConfig::default(), &mut rng);
            assert_eq!(ones(&mask), 0);
        }
    }

    #[test]
    fn half_the_crops_are_masked_over_the_whole_range() {
        let batch =
            masks_for_batch(64, GRID, &MaskConfig::default(), &mut rng::stream(8, "masks", 0)).unwrap();
        let mut counts: Vec<usize> = batch.masks.chunks_exact(256).map(ones).collect();
        let masked_first = counts[..32].iter().filter(|&&count| count > 0).count();
        assert!((8..24).contains(&masked_first), "{masked_first}");
        counts.sort_unstable();
        assert_eq!(counts.iter().filter(|&&count| count > 0).count(), 32);
        // The k-th slice of 0.1..0.5 ends at 256 * (0.1 + 0.0125 k).
        for (slice, &count) in (1..).zip(&counts[32..]) {
            assert!(count <= (256.0 * (0.1 + 0.0125 * f64::from(slice))) as usize);
        }
        let expected: usize = (1..=32)
            .map(|slice| (256.0 * (0.1 + 0.0125 * f64::from(slice))) as usize)
            .sum();
        assert_eq!(batch.upper_bound, expected);
        assert!(batch.indices.len() <= expected && batch.indices.len() * 100 > expected * 90);
    }

    #[test]
    fn weights_make_every_masked_crop_count_once() {
        let cfg = MaskConfig::default();
        let batch = masks_for_batch(9, GRID, &cfg, &mut rng::stream(9, "masks", 0)).unwrap();
        assert_eq!(batch.masks.len(), 9 * 256);
        assert_eq!(batch.indices.len(), ones(&batch.masks));
        assert_eq!(batch.indices.len(), batch.weights.len());
        assert!(batch.indices.is_sorted_by(|a, b| a < b));
        for (&place, &weight) in batch.indices.iter().zip(&batch.weights) {
            assert_eq!(batch.masks[place as usize], 1);
            let crop = place as usize / 256;
            assert_eq!(
                weight,
                1.0 / ones(&batch.masks[crop * 256..(crop + 1) * 256]) as f32
            );
        }
        let total: f32 = batch.weights.iter().sum();
        assert!((total - 4.0).abs() < 1e-4, "{total}"); // half of 9, rounded down
    }

    #[test]
    fn the_same_stream_gives_the_same_masks() {
        let draw = |seed| {
            masks_for_batch(
                16,
                GRID,
                &MaskConfig::default(),
                &mut rng::stream(seed, "masks", 3),
            )
            .unwrap()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).masks, draw(2).masks);
    }

    #[test]
    fn the_masks_of_some_images_are_those_of_the_batch() {
        let draw =
            || masks_for_batch(10, GRID, &MaskConfig::default(), &mut rng::stream(4, "masks", 0)).unwrap();
        let whole = draw();
        assert_eq!(draw().of_images(2, 5, 0..5), whole);
        let crop = |place: usize| whole.masks[place * 256..(place + 1) * 256].to_vec();
        let mut masked = 0;
        for images in [0..2, 2..4, 4..5] {
            let part = draw().of_images(2, 5, images.clone());
            let expected: Vec<u8> = [images.clone(), images.start + 5..images.end + 5]
                .into_iter()
                .flatten()
                .flat_map(crop)
                .collect();
            assert_eq!(part.masks, expected);
            assert!(part.indices.iter().all(|&place| part.masks[place as usize] == 1));
            assert_eq!(
                (part.indices.len(), part.weights.len()),
                (ones(&expected), ones(&expected))
            );
            masked += part.indices.len();
        }
        assert_eq!(masked, whole.indices.len());
    }

    #[test]
    fn no_crop_or_no_mask_is_no_error() {
        let mut rng = rng::stream(1, "masks", 0);
        let none = masks_for_batch(0, GRID, &MaskConfig::default(), &mut rng).unwrap();
        assert_eq!((none.masks.len(), none.upper_bound), (0, 0));
        let never = MaskConfig {
            probability: 0.0,
            ..MaskConfig::default()
        };
        let free = masks_for_batch(3, GRID, &never, &mut rng).unwrap();
        assert_eq!(
            (ones(&free.masks), free.masks.len(), free.upper_bound),
            (0, 768, 0)
        );
        assert!(free.indices.is_empty() && free.weights.is_empty());
    }

    #[test]
    fn settings_and_sizes_out_of_range_are_named() {
        let mut rng = rng::stream(1, "masks", 0);
        for (toml, field) in [
            ("probability = 1.5", "probability"),
            ("probability = nan", "probability"),
            ("ratio = [0.5, 0.1]", "ratio"),
            ("ratio = [0.1, 1.1]", "ratio"),
            ("min_block = 0", "min_block"),
            ("aspect = [0.0, 1.0]", "aspect"),
            ("aspect = [1.0, inf]", "aspect"),
        ] {
            let cfg: MaskConfig = toml::from_str(toml).unwrap();
            let error = masks_for_batch(2, GRID, &cfg, &mut rng).unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("{field}: expected")),
                "{error}"
            );
            assert_eq!(error.exit_code(), 2);
        }
        let mut draw = |n_crops, rows| {
            let grid = Grid { rows, columns: 16 };
            masks_for_batch(n_crops, grid, &MaskConfig::default(), &mut rng)
                .unwrap_err()
                .to_string()
        };
        assert!(draw(2, 0).contains("0 x 16"));
        assert!(draw(2, 5000).contains("5000 x 16"));
        assert!(draw(usize::MAX, 16).contains("global crops"));
        assert!(toml::from_str::<MaskConfig>("ratios = 1").is_err());
    }

    #[test]
    fn defaults_are_written_and_read_back() {
        let cfg: MaskConfig = toml::from_str("").unwrap();
        assert_eq!(cfg, MaskConfig::default());
        let written = toml::to_string(&cfg).unwrap();
        assert_eq!(toml::from_str::<MaskConfig>(&written).unwrap(), cfg);
    }
}
