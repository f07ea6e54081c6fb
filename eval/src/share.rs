//! Rows that the processes of a team divide among them, so that each holds its part alone.

use std::ops::Range;

use crate::team::{Alone, Team, encoded, part_length, part_of};
use crate::{Error, Matrix, MatrixView, Result};

/// This process's part of the rows of a team.
#[derive(Clone, Copy)]
pub struct Share<'a> {
    rows: MatrixView<'a>,
    first: usize,
    total: usize,
    team: &'a dyn Team,
}

impl<'a> Share<'a> {
    /// Parts are multiples of this many rows: of the blocks in which k-means multiplies (384) and adds (1,024), so that these are the
    /// same for any number of processes.
    pub const BLOCK: usize = 3072;

    /// The places of this process's rows among `total`.
    pub fn range(total: usize, team: &dyn Team) -> Range<usize> {
        part_of(total, Self::BLOCK, team)
    }

    /// All rows, of one process.
    pub fn alone(rows: MatrixView<'a>) -> Self {
        Self {
            rows,
            first: 0,
            total: rows.rows(),
            team: &Alone,
        }
    }

    /// This process's part of `rows`, all of which every process has.
    pub fn of_all(rows: MatrixView<'a>, team: &'a dyn Team) -> Self {
        let total = rows.rows();
        let range = Self::range(total, team);
        Self {
            rows: rows.range(range.clone()),
            first: range.start,
            total,
            team,
        }
    }

    /// The part `rows`, those of [`Share::range`], of `total`.
    ///
    /// # Errors
    /// Another number of rows than this process should have.
    pub fn of_own(rows: MatrixView<'a>, total: usize, team: &'a dyn Team) -> Result<Self> {
        let range = Self::range(total, team);
        if rows.rows() != range.len() {
            let reason = format!("expected {} rows of {total}, found {}", range.len(), rows.rows());
            return Err(Error::data("features", reason));
        }
        Ok(Self {
            rows,
            first: range.start,
            total,
            team,
        })
    }

    /// The same places with `rows` in the place of those that are here, such as the same ones normalised.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub fn with_rows<'b>(&self, rows: MatrixView<'b>) -> Share<'b>
    where
        'a: 'b,
    {
        assert_eq!(rows.rows(), self.rows.rows(), "as many rows");
        Share { rows, ..*self }
    }

    /// The rows that are here.
    pub fn rows(&self) -> MatrixView<'a> {
        self.rows
    }

    /// The place of the first of them among all.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Number of rows of all processes.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The processes.
    pub fn team(&self) -> &'a dyn Team {
        self.team
    }

    /// The rows at `places` among all, in that order, on every process. All ask for the same.
    ///
    /// # Errors
    /// Processes that cannot reach each other.
    pub fn select(&self, places: &[usize]) -> Result<Matrix> {
        if self.team.size() == 1 {
            return Ok(self.rows.select(places));
        }
        let here = self.first..self.first + self.rows.rows();
        let own: Vec<usize> = places
            .iter()
            .filter(|&place| here.contains(place))
            .map(|place| place - self.first)
            .collect();
        let parts = self
            .team
            .gather(&encoded(self.rows.select(&own).view().data(), f32::to_le_bytes))?;
        let length = part_length(self.total, Self::BLOCK, self.team);
        let dim = self.rows.dim();
        let mut data = Vec::with_capacity(places.len() * dim);
        let mut read = vec![0; parts.len()];
        for place in places {
            let rank = place / length;
            let row = &parts[rank][read[rank]..][..4 * dim];
            data.extend(
                row.as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&word| f32::from_le_bytes(word)),
            );
            read[rank] += row.len();
        }
        Matrix::new(data, places.len(), dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::threads::on_team;

    #[test]
    fn every_process_gets_the_rows_it_asks_for_in_that_order() {
        let n = 2 * Share::BLOCK + 5;
        let all = Matrix::new((0..2 * n).map(|value| value as f32).collect(), n, 2).unwrap();
        let places = [n - 1, 3, Share::BLOCK, 3, 0, Share::BLOCK - 1, n - 2];
        let expected = all.view().select(&places);
        for size in 1..5 {
            let found = on_team(size, |team| {
                let share = Share::of_all(all.view(), team);
                (share.rows().rows(), share.select(&places).unwrap())
            });
            assert_eq!(found.iter().map(|found| found.0).sum::<usize>(), n);
            assert!(found.iter().all(|found| found.1 == expected), "{size}");
        }
    }

    #[test]
    fn another_number_of_rows_is_refused() {
        let rows = Matrix::new(vec![0.; 6], 3, 2).unwrap();
        let error = Share::of_own(rows.view(), 4, &Alone).err().unwrap();
        assert_eq!(error.to_string(), "features: expected 4 rows of 4, found 3");
    }
}
