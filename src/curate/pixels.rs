//! Images that are copies by their pixels, before any network runs. Equal pixels are found by SHA-256; nearly equal ones by
//! a difference hash: the image shrunk to 17 x 16 in grey, one bit for each pair of neighbours in a row, set where the right
//! one is brighter by a margin, so that flat areas stay 0 under the noise of a codec. Hashes only propose: simple pictures
//! share them without being copies, so two images are joined when their shrunken pixels correlate as well.

use std::collections::HashMap;

use clap::ValueEnum;
use macula_eval::curation::Components;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::data::{DecodeOptions, Interpolation, RgbImage, Source, resize};
use crate::{Error, Result};

/// Columns and rows of differences.
const SIDE: usize = 16;
/// How much brighter the right pixel must be, of 255.
const MARGIN: i32 = 4;
/// A hash with fewer bits set is that of a nearly flat image, which resembles every other such.
const MIN_BITS: u32 = 16;
/// Correlation of the shrunken pixels above which two images with close hashes are copies. Of Fashion-MNIST's images one in
/// a hundred has another above it, and nine in ten of the recompressed and brightened copies of `benchmarks/curate.py`.
const CORRELATION: f64 = 0.995;
/// The most bits in which two hashes may differ.
const MAX_BITS: u32 = 32;

/// Which images are joined by their pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PixelMatch {
    /// None; no image is read.
    #[default]
    None,
    /// Those of equal size and pixels, whatever their file formats.
    Bytes,
    /// Those too whose difference hashes are close.
    Hash,
}

/// 256 bits.
type Hash = [u64; 4];
/// Grey pixels of the shrunken image, `[16, 17]`.
type Thumb = [u8; SIDE * (SIDE + 1)];

/// What is kept of an image.
struct Summary {
    /// SHA-256 of its size and pixels.
    digest: [u8; 32],
    /// None where only equal pixels are asked for, or the image is nearly flat.
    small: Option<(Hash, Thumb)>,
}

/// Refuses a number of bits that would join everything.
pub(super) fn check_bits(bits: u32) -> Result<()> {
    if bits <= MAX_BITS {
        return Ok(());
    }
    Err(Error::setting(
        "hash_bits",
        format!("expected 0 to {MAX_BITS} bits, found {bits}"),
    ))
}

/// Joins the rows of `source` at places `0..rows.len()` of `components` that are copies by their pixels.
///
/// # Errors
/// An image that cannot be read.
pub(super) fn join(
    source: &dyn Source,
    rows: &[u64],
    kind: PixelMatch,
    bits: u32,
    decode: &DecodeOptions,
    components: &mut Components,
) -> Result<()> {
    let summary = |&row: &u64| -> Result<Summary> {
        let image = source.load(row, decode)?;
        let thumb = if kind == PixelMatch::Hash {
            thumb(&image)
        } else {
            None
        };
        let small = thumb.map(|thumb| (difference_hash(&thumb), thumb));
        Ok(Summary {
            digest: digest(&image),
            small: small.filter(|(hash, _)| distance(hash, &[0; 4]) >= MIN_BITS),
        })
    };
    let summaries: Vec<Summary> = rows.par_iter().map(summary).collect::<Result<_>>()?;
    let mut first_of: HashMap<[u8; 32], u32> = HashMap::with_capacity(summaries.len());
    let mut hashes: Vec<(u32, Hash)> = Vec::new();
    for (place, summary) in (0u32..).zip(&summaries) {
        let first = *first_of.entry(summary.digest).or_insert(place);
        components.join(first, place);
        if let Some((hash, _)) = summary.small.filter(|_| first == place) {
            hashes.push((place, hash));
        }
    }
    let correlate = |a: u32, b: u32| match (&summaries[a as usize].small, &summaries[b as usize].small) {
        (Some((_, a)), Some((_, b))) => correlation(a, b) > CORRELATION,
        _ => false,
    };
    join_close(&hashes, bits, correlate, components);
    Ok(())
}

fn digest(image: &RgbImage) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(image.width().to_le_bytes());
    hash.update(image.data());
    hash.finalize().into()
}

/// The shrunken image; none for one that cannot be resized.
fn thumb(image: &RgbImage) -> Option<Thumb> {
    let small = resize(
        &image.view(),
        SIDE as u32 + 1,
        SIDE as u32,
        Interpolation::Bilinear,
    )?;
    let mut thumb = [0; SIDE * (SIDE + 1)];
    for (grey, pixel) in thumb.iter_mut().zip(small.data().chunks_exact(3)) {
        *grey = luma(pixel) as u8;
    }
    Some(thumb)
}

fn difference_hash(thumb: &Thumb) -> Hash {
    let mut hash = [0u64; 4];
    for y in 0..SIDE {
        for x in 0..SIDE {
            let at = y * (SIDE + 1) + x;
            if i32::from(thumb[at + 1]) >= i32::from(thumb[at]) + MARGIN {
                let bit = y * SIDE + x;
                hash[bit / 64] |= 1 << (bit % 64);
            }
        }
    }
    hash
}

/// Pearson's correlation, which neither brightness nor contrast changes; 0 where a side is of one colour.
fn correlation(a: &Thumb, b: &Thumb) -> f64 {
    let n = a.len() as f64;
    let (mut sums, mut squares, mut product) = ([0u32; 2], [0u32; 2], 0u32);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (u32::from(x), u32::from(y));
        sums = [sums[0] + x, sums[1] + y];
        squares = [squares[0] + x * x, squares[1] + y * y];
        product += x * y;
    }
    let sums = sums.map(f64::from);
    let spread = |side: usize| f64::from(squares[side]) - sums[side] * sums[side] / n;
    let lengths = (spread(0) * spread(1)).sqrt();
    if lengths > 0.0 {
        (f64::from(product) - sums[0] * sums[1] / n) / lengths
    } else {
        0.0
    }
}

/// ITU-R 601 luma of an RGB pixel, 0 to 255.
pub(super) fn luma(pixel: &[u8]) -> i32 {
    (299 * i32::from(pixel[0]) + 587 * i32::from(pixel[1]) + 114 * i32::from(pixel[2]) + 500) / 1000
}

fn distance(a: &Hash, b: &Hash) -> u32 {
    a.iter().zip(b).map(|(x, y)| (x ^ y).count_ones()).sum()
}

/// Joins hashes that differ in at most `bits` bits and are `alike`. Of `bits + 1` disjoint sets of bits two such hashes agree
/// in one at least, so only hashes that share one are compared. The bits of a set are spread over the image: whole rows of
/// it would be empty in many pictures at once.
fn join_close(
    hashes: &[(u32, Hash)],
    bits: u32,
    alike: impl Fn(u32, u32) -> bool + Sync,
    components: &mut Components,
) {
    for band in 0..=bits {
        let mask = band_mask(band as usize, bits as usize + 1);
        let mut keyed: Vec<(Hash, usize)> = hashes
            .iter()
            .enumerate()
            .map(|(number, (_, hash))| (std::array::from_fn(|word| hash[word] & mask[word]), number))
            .collect();
        keyed.sort_unstable();
        let same: Vec<&[(Hash, usize)]> = keyed.chunk_by(|a, b| a.0 == b.0).collect();
        let close: Vec<(u32, u32)> = same
            .par_iter()
            .flat_map_iter(|same| {
                same.iter().enumerate().flat_map(|(at, &(_, a))| {
                    let (place, hash) = hashes[a];
                    let others = same[at + 1..].iter().map(|&(_, b)| hashes[b]);
                    let close = others.filter(move |(_, other)| distance(&hash, other) <= bits);
                    close.map(move |(other, _)| (place, other))
                })
            })
            .filter(|&(a, b)| alike(a, b))
            .collect();
        for (a, b) in close {
            components.join(a, b);
        }
    }
}

fn band_mask(band: usize, bands: usize) -> Hash {
    let mut mask = [0u64; 4];
    (band..256)
        .step_by(bands)
        .for_each(|bit| mask[bit / 64] |= 1 << (bit % 64));
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng as _;

    /// A smooth picture of `side` x `side` from a few waves.
    fn picture(side: u32, seed: u64) -> RgbImage {
        let mut rng = crate::rng::stream(seed, "picture", 0);
        let waves: Vec<[f32; 3]> = (0..6)
            .map(|_| std::array::from_fn(|_| rng.random_range(-1.0..1.0f32)))
            .collect();
        let grey: Vec<u8> = (0..side * side)
            .map(|i| {
                let (x, y) = ((i % side) as f32 / side as f32, (i / side) as f32 / side as f32);
                let sum: f32 = waves
                    .iter()
                    .map(|w| (9.0 * (w[0] * x + w[1] * y) + 6.0 * w[2]).sin())
                    .sum();
                (128.0 + 30.0 * sum).clamp(0.0, 255.0) as u8
            })
            .collect();
        RgbImage::from_grey(side, side, &grey).unwrap()
    }

    #[test]
    fn a_resized_and_noisy_copy_is_close_and_another_picture_far() {
        let image = picture(96, 1);
        let smaller = resize(&image.view(), 60, 60, Interpolation::Bicubic).unwrap();
        let mut rng = crate::rng::stream(1, "noise", 0);
        let noisy = smaller
            .data()
            .iter()
            .map(|&v| v.saturating_add(rng.random_range(0..5)).saturating_sub(2));
        let noisy = RgbImage::new(60, 60, noisy.collect()).unwrap();
        let small = |image: &RgbImage| thumb(image).unwrap();
        let hash = |image: &RgbImage| difference_hash(&small(image));
        let near = distance(&hash(&image), &hash(&noisy));
        let far = distance(&hash(&image), &hash(&picture(96, 2)));
        assert!(near <= 16 && far >= 60, "{near} {far}");
        let alike = |other: &RgbImage| correlation(&small(&image), &small(other));
        assert!(alike(&noisy) > CORRELATION && alike(&picture(96, 2)) < 0.9);
        let brighter = image.data().iter().map(|&v| v / 2 + 90).collect();
        assert!(alike(&RgbImage::new(96, 96, brighter).unwrap()) > 0.999);
        let flat = RgbImage::from_grey(20, 20, &[7; 400]).unwrap();
        assert_eq!(alike(&flat), 0.0);
    }

    #[test]
    fn close_hashes_are_those_of_two_loops() {
        let mut rng = crate::rng::stream(3, "hashes", 0);
        let mut hashes: Vec<(u32, Hash)> = Vec::new();
        for place in 0..400u32 {
            let hash = if place < 200 {
                std::array::from_fn(|_| rng.random())
            } else {
                let mut near = hashes[place as usize - 200].1;
                for _ in 0..rng.random_range(0..12) {
                    let bit = rng.random_range(0..256);
                    near[bit / 64] ^= 1 << (bit % 64);
                }
                near
            };
            hashes.push((place, hash));
        }
        for bits in [0, 3, 6, 11] {
            let (mut fast, mut slow) = (Components::new(400), Components::new(400));
            join_close(&hashes, bits, |a, b| a % 7 != 0 || b % 7 != 0, &mut fast);
            for (a, x) in &hashes {
                for (b, y) in &hashes {
                    if distance(x, y) <= bits && (a % 7 != 0 || b % 7 != 0) {
                        slow.join(*a, *b);
                    }
                }
            }
            assert_eq!(fast.numbered(), slow.numbered(), "{bits}");
        }
    }
}
