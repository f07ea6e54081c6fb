//! A bias of attention by the relative position of two patches (BEiT, section 2.2 of Bao et al. 2021; Swin): its table for
//! another grid, and which of its rows belongs to which pair of tokens.

use candle_core::Tensor;

use super::position::resize_grid;
use crate::Result;

/// Rows of the table that belong to the class token: it to others, others to it, it to itself.
const OF_CLASS: usize = 3;

/// Weights of PyTorch's bilinear interpolation without antialias from `source` to `target` samples, `[target, source]`.
fn linear(source: usize, target: usize) -> Vec<f32> {
    let step = source as f64 / target as f64;
    let mut weights = vec![0.; target * source];
    for (i, row) in weights.chunks_exact_mut(source).enumerate() {
        let at = (step * (i as f64 + 0.5) - 0.5).max(0.);
        let first = (at.floor() as usize).min(source - 1);
        let share = at - first as f64;
        row[first] += (1. - share) as f32;
        row[(first + 1).min(source - 1)] += share as f32;
    }
    weights
}

/// The table `[(2 M - 1)^2 + 3, heads]` for a grid of `rows` x `columns`: `[(2 rows - 1) (2 columns - 1) + 3, heads]`
/// (transformers `BeitRelativePositionBias`). What belongs to the class token stays.
pub(crate) fn resized_relative_table(table: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let (entries, heads) = table.dims2()?;
    let pairs = entries.saturating_sub(OF_CLASS);
    let (side, sides) = (pairs.isqrt(), [2 * rows - 1, 2 * columns - 1]);
    if sides == [side, side] {
        return Ok(table.clone());
    }
    let grid = table.narrow(0, 0, pairs)?.reshape((1, pairs, heads))?;
    let grid = resize_grid(&grid, sides.map(|target| linear(side, target)), sides)?;
    let grid = grid.reshape((sides[0] * sides[1], heads))?;
    Ok(Tensor::cat(&[&grid, &table.narrow(0, pairs, OF_CLASS)?], 0)?)
}

/// The row of the table for each pair of tokens, query by query, `[T T]` with T = 1 + rows columns.
pub(crate) fn relative_index(rows: usize, columns: usize) -> Vec<u32> {
    let (patches, width) = (rows * columns, 2 * columns - 1);
    let pairs = (2 * rows - 1) * width;
    let mut index = Vec::with_capacity((1 + patches).pow(2));
    index.push(pairs + 2);
    index.extend(std::iter::repeat_n(pairs, patches));
    for query in 0..patches {
        index.push(pairs + 1);
        index.extend((0..patches).map(|key| {
            let row = query / columns + rows - 1 - key / columns;
            row * width + query % columns + columns - 1 - key % columns
        }));
    }
    index.into_iter().map(|row| row as u32).collect()
}

/// The bias of every pair of tokens, `[heads, T, T]`, from the table of the native grid.
pub(super) fn relative_bias(table: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let table = resized_relative_table(table, rows, columns)?;
    let (index, tokens) = (relative_index(rows, columns), 1 + rows * columns);
    let index = Tensor::from_vec(index, tokens * tokens, table.device())?;
    let bias = table.index_select(&index, 0)?; // [T T, heads]
    let bias = bias.t()?.contiguous()?;
    Ok(bias.reshape(((), tokens, tokens))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn pairs_of_equal_offset_share_a_row() {
        // A grid of 2 x 3: rows of 5 offsets, 15 in all; then the class token's.
        let index = relative_index(2, 3);
        let tokens = 7;
        assert_eq!(index.len(), tokens * tokens);
        let at = |query: usize, key: usize| index[query * tokens + key];
        assert_eq!((at(0, 0), at(0, 4), at(4, 0)), (17, 15, 16));
        // The middle of 3 x 5 offsets.
        assert!((1..7).all(|token| at(token, token) == 7));
        assert_eq!(at(1, 2), at(5, 6));
        assert_eq!((at(1, 2), at(2, 1), at(1, 4), at(4, 1)), (6, 8, 2, 12));
        assert_eq!((at(1, 6), at(6, 1)), (0, 14));
    }

    #[test]
    fn the_native_grid_keeps_the_table_and_weights_sum_to_one() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let table = Tensor::from_vec(values.clone(), (12, 1), &Device::Cpu).unwrap();
        let read = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(read(resized_relative_table(&table, 2, 2).unwrap()), values);
        let larger = read(resized_relative_table(&table, 3, 2).unwrap());
        assert_eq!(larger.len(), 5 * 3 + 3);
        assert_eq!(larger[15..], values[9..]);
        for (source, target) in [(3, 5), (5, 3), (1, 4), (7, 7)] {
            for row in linear(source, target).chunks(source) {
                assert!((row.iter().sum::<f32>() - 1.).abs() < 1e-6);
            }
        }
    }
}
