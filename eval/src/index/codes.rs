//! Unit rows in a byte a value, for walks: a quarter of what f32 has to be read from memory. A row is the centre of all rows and
//! whole multiples of a step of its own; similarities by codes only choose which rows are compared exactly.

use rayon::prelude::*;

use super::distance::dot;
use super::integer;
use crate::linalg::nearest_neighbours;
use crate::{MatrixView, Result};

/// Bytes in a line of the cache, where every row begins.
const LINE: usize = 64;
/// Narrowest rows that are coded: f32 rows of less fill few lines of the cache themselves.
const MIN_DIM: usize = 64;
/// Widest rows whose products of codes fit 32 bits.
const MAX_DIM: usize = 1 << 17;
/// Greatest code.
const MAX_CODE: f32 = 127.0;
/// Rows whose largest value is not above this are coded as zeros.
const LEAST: f32 = 1e-30;
/// Most rows that the centre is the mean of.
const CENTRE_ROWS: usize = 1 << 16;
/// Rows whose neighbours are looked at to judge the codes, and how many of each.
const PROBES: usize = 32;
const NEIGHBOURS: usize = 10;
/// How many times the error of a similarity must fit into the distance of a neighbour.
const ROOM: f64 = 32.0;

/// Codes of all rows of an index.
#[derive(Debug)]
pub(super) struct Codes {
    /// Codes from `start` on, `stride` a row.
    values: Vec<i8>,
    start: usize,
    stride: usize,
    /// What a code of 1 is worth, by row.
    steps: Vec<f32>,
    /// Half the centre's squared length, and the centre times what the row adds to it.
    offsets: Vec<f32>,
}

/// A query in whole multiples of a step, finer than a row's.
#[derive(Debug, Default)]
pub(super) struct QueryCodes {
    pub(super) values: Vec<i16>,
    /// What 1 is worth.
    pub(super) step: f32,
}

impl Codes {
    /// Codes of unit rows; none where rows are too narrow to gain from them, or where neighbours are nearer to each other than
    /// codes can tell.
    ///
    /// # Errors
    /// As [`nearest_neighbours`].
    pub(super) fn of(unit: MatrixView<'_>) -> Result<Option<Self>> {
        if !(MIN_DIM..=MAX_DIM).contains(&unit.dim()) || unit.rows() <= NEIGHBOURS {
            return Ok(None);
        }
        let codes = Self::new(unit);
        Ok(codes.tell_neighbours_apart(unit)?.then_some(codes))
    }

    /// Codes of unit rows, however well they tell them apart.
    pub(super) fn new(unit: MatrixView<'_>) -> Self {
        let centre = &centre(unit)[..];
        let mut codes = Self::zeros(unit.rows(), unit.dim().next_multiple_of(LINE));
        let half = dot(centre, centre) / 2.0;
        (codes.steps, codes.offsets) = codes.values[codes.start..]
            .par_chunks_exact_mut(codes.stride)
            .zip(unit.data().par_chunks_exact(unit.dim()))
            .map_init(Vec::new, |rest: &mut Vec<f32>, (codes, row)| {
                rest.clear();
                rest.extend(row.iter().zip(centre).map(|(value, middle)| value - middle));
                (encode(rest, codes), half + dot(centre, rest))
            })
            .unzip();
        codes
    }

    fn zeros(rows: usize, stride: usize) -> Self {
        let values = vec![0i8; rows * stride + LINE - 1];
        Self {
            // Only speed depends on where a row begins.
            start: values.as_ptr().align_offset(LINE).min(LINE - 1),
            values,
            stride,
            steps: vec![0.0; rows],
            offsets: vec![0.0; rows],
        }
    }

    /// The same with the row at each place of `order`.
    pub(super) fn in_order(&self, order: &[u32]) -> Self {
        let mut codes = Self::zeros(self.len(), self.stride);
        codes.values[codes.start..]
            .par_chunks_exact_mut(self.stride)
            .zip(order)
            .for_each(|(values, &row)| values.copy_from_slice(self.row(row)));
        codes.steps = order.iter().map(|&row| self.steps[row as usize]).collect();
        codes.offsets = order.iter().map(|&row| self.offsets[row as usize]).collect();
        codes
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether the error of similarities by codes is small beside the distances of near neighbours.
    fn tell_neighbours_apart(&self, unit: MatrixView<'_>) -> Result<bool> {
        let probes: Vec<usize> = (0..PROBES).map(|probe| probe * unit.rows() / PROBES).collect();
        let found = nearest_neighbours(unit.select(&probes).view(), unit, NEIGHBOURS + 1)?;
        let (mut error, mut distance) = (0.0, 0.0);
        for (place, &probe) in probes.iter().enumerate() {
            for (&row, &exact) in found.indices_of(place).iter().zip(found.similarities_of(place)) {
                if row as usize != probe {
                    error += f64::from(self.similarity(probe as u32, row) - exact).powi(2);
                    distance += f64::from(1.0 - exact);
                }
            }
        }
        let pairs = (PROBES * NEIGHBOURS) as f64;
        let error = (error / pairs).sqrt().max(f64::from(f32::EPSILON));
        Ok(ROOM * error < distance / pairs)
    }

    /// Cosine similarity of two rows, as well as codes tell it.
    pub(super) fn similarity(&self, a: u32, b: u32) -> f32 {
        let (i, j) = (a as usize, b as usize);
        let common = integer::dot(self.row(a), self.row(b)) as f32;
        self.offsets[i] + self.offsets[j] + self.steps[i] * self.steps[j] * common
    }

    /// Codes of a row, padded with zeros.
    pub(super) fn row(&self, row: u32) -> &[i8] {
        let first = self.start + row as usize * self.stride;
        &self.values[first..first + self.stride]
    }

    /// What a code of 1 is worth in `row`.
    pub(super) fn step(&self, row: u32) -> f32 {
        self.steps[row as usize]
    }

    /// Codes of a unit query into `codes`, as fine as the product with any row's codes allows in 32 bits.
    pub(super) fn encode_query(&self, query: &[f32], codes: &mut QueryCodes) {
        let finest = (i32::MAX as usize / (MAX_CODE as usize * self.stride) - 1).min(i16::MAX as usize - 1);
        let most = largest(query);
        let scale = if most > LEAST { finest as f32 / most } else { 0.0 };
        codes.step = most / finest as f32;
        codes.values.clear();
        codes
            .values
            .extend(query.iter().map(|value| rounded(value * scale) as i16));
        codes.values.resize(self.stride, 0);
    }
}

/// Mean of evenly spaced rows.
fn centre(unit: MatrixView<'_>) -> Vec<f32> {
    let every = unit.rows().div_ceil(CENTRE_ROWS);
    let mut sum = vec![0.0f64; unit.dim()];
    for row in (0..unit.rows()).step_by(every) {
        sum.iter_mut()
            .zip(unit.row(row))
            .for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let count = unit.rows().div_ceil(every) as f64;
    sum.into_iter().map(|sum| (sum / count) as f32).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// What the conversion to a whole number cuts off to the nearest.
fn rounded(value: f32) -> f32 {
    value + 0.5f32.copysign(value)
}

/// Writes the nearest codes and returns what 1 is worth.
fn encode(values: &[f32], codes: &mut [i8]) -> f32 {
    let most = largest(values);
    let scale = if most > LEAST { MAX_CODE / most } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = rounded(value * scale) as i8;
    }
    most / MAX_CODE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Matrix;
    use crate::linalg::normalise::l2_normalise;

    /// Unit rows around `middle` (1 in every column), with noise of up to `spread`.
    fn rows(n: usize, dim: usize, middle: f32, spread: f32) -> Matrix {
        let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
        let data = (0..n * dim).map(|i| middle + spread * noise(i)).collect();
        l2_normalise(Matrix::new(data, n, dim).unwrap().view()).unwrap()
    }

    proptest! {
        #[test]
        fn similarities_are_near_the_exact_ones(n in 1usize..40, dim in 1usize..300, middle in 0f32..4.0) {
            let unit = rows(n, dim, middle, 1.0);
            let codes = Codes::new(unit.view());
            let (mut query, wide) = (QueryCodes::default(), integer::wide_dot());
            let centre = centre(unit.view());
            for a in 0..n as u32 {
                codes.encode_query(unit.view().row(a as usize), &mut query);
                for b in 0..n as u32 {
                    let exact = dot(unit.view().row(a as usize), unit.view().row(b as usize));
                    // Half a step in each value, of both rows, against the other's length, which is at most 2.
                    let bound = (codes.step(a) + codes.step(b)) / 2.0 * (dim as f32).sqrt() * 2.2 + 1e-5;
                    prop_assert!((codes.similarity(a, b) - exact).abs() <= bound);
                    let common = wide(&query.values, codes.row(b)) as f32 * query.step * codes.step(b);
                    let by_query = dot(&centre, unit.view().row(a as usize)) + common;
                    prop_assert!((by_query - exact).abs() <= bound);
                }
            }
        }
    }

    #[test]
    fn codes_are_used_where_they_tell_neighbours_apart() {
        let coded = |unit: Matrix| Codes::of(unit.view()).unwrap().is_some();
        assert!(coded(rows(500, 100, 0.0, 1.0)));
        assert!(coded(rows(500, 100, 10.0, 1.0)), "a common part does not count");
        assert!(!coded(rows(500, 63, 0.0, 1.0)), "narrow");
        assert!(!coded(rows(10, 100, 0.0, 1.0)), "few");
        assert!(!coded(rows(500, 100, 1.0, 0.0)), "equal");
        let mut pair = rows(2, 100, 0.0, 1.0).into_data().repeat(250);
        pair.iter_mut()
            .enumerate()
            .for_each(|(i, value)| *value += (i % 17) as f32 * 1e-6);
        assert!(
            !coded(Matrix::new(pair, 500, 100).unwrap()),
            "two clusters far narrower than their distance"
        );
    }

    #[test]
    fn rows_in_another_order_are_the_same_rows() {
        let codes = Codes::new(rows(5, 70, 0.5, 1.0).view());
        let turned = codes.in_order(&[4, 2, 0, 1, 3]);
        assert_eq!((turned.row(1), turned.step(1)), (codes.row(2), codes.step(2)));
        assert_eq!(turned.similarity(0, 4), codes.similarity(4, 3));
        assert_eq!(turned.row(3).as_ptr().align_offset(LINE), 0);
    }
}
