//! What `hnsw_rs` leaves undone in the lowest layer: a full list drops its farthest link without a look at who else leads there, so
//! that some rows end with few ways to them or none. These take the places of links that their targets can spare.

use hnsw_rs::anndists::dist::distances::Distance;

use super::distance::RowDistance;

/// Lists of the lowest layer, while they are mended.
struct Mender<'a> {
    lists: &'a mut [Vec<u32>],
    /// Links in a list, at most.
    most: usize,
    /// Ways to a row, at least, where there is room for them.
    wanted: usize,
    /// Ways to each row.
    ways: Vec<usize>,
    distance: &'a RowDistance,
}

/// Leads to each row of `lists` from at least `wanted` others, those near it that its links lead to in one step or two, where these have
/// fewer than `most` links or one to spare.
pub(super) fn mend(lists: &mut [Vec<u32>], most: usize, wanted: usize, distance: &RowDistance) {
    let mut ways = vec![0; lists.len()];
    lists.iter().flatten().for_each(|&to| ways[to as usize] += 1);
    let mut mender = Mender {
        lists,
        most,
        wanted,
        ways,
        distance,
    };
    for row in 0..mender.lists.len() {
        if mender.ways[row] < wanted {
            mender.lead_to(row as u32);
        }
    }
}

impl Mender<'_> {
    fn between(&self, a: u32, b: u32) -> f32 {
        self.distance.eval(&[a], &[b])
    }

    fn lead_to(&mut self, row: u32) {
        for from in self.around(row) {
            if self.ways[row as usize] >= self.wanted {
                break;
            }
            self.link(from, row);
        }
    }

    /// What the links of `row` lead to in one step or two, nearest first.
    fn around(&self, row: u32) -> Vec<u32> {
        let own = &self.lists[row as usize];
        let mut rows: Vec<u32> = own
            .iter()
            .flat_map(|&to| &self.lists[to as usize])
            .chain(own)
            .copied()
            .collect();
        rows.sort_unstable();
        rows.dedup();
        let mut near: Vec<(f32, u32)> = rows
            .into_iter()
            .filter(|&other| other != row)
            .map(|other| (self.between(row, other), other))
            .collect();
        near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        near.into_iter().map(|(_, other)| other).collect()
    }

    /// Links `from` to `row`, in place of its farthest link to spare if it has no room.
    fn link(&mut self, from: u32, row: u32) {
        let list = &self.lists[from as usize];
        if list.contains(&row) {
            return;
        }
        if list.len() < self.most {
            self.lists[from as usize].push(row);
        } else {
            let spare = (0..list.len()).filter(|&place| self.ways[list[place] as usize] > self.wanted);
            let far = |&a: &usize, &b: &usize| {
                self.between(from, list[a])
                    .total_cmp(&self.between(from, list[b]))
            };
            let Some(place) = spare.max_by(far) else { return };
            let lost = std::mem::replace(&mut self.lists[from as usize][place], row);
            self.ways[lost as usize] -= 1;
        }
        self.ways[row as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Matrix;

    #[test]
    fn a_row_that_nothing_leads_to_takes_the_place_of_a_link_to_spare() {
        let angles = [0.0f32, 0.1, 0.2, 0.3, 1.0];
        let data = angles
            .iter()
            .flat_map(|angle| [angle.cos(), angle.sin()])
            .collect();
        let distance = RowDistance::Exact(Arc::new(Matrix::new(data, 5, 2).unwrap()));
        let mut lists = vec![vec![1, 2], vec![0, 2], vec![1, 3], vec![2, 1], vec![3, 2]];
        mend(&mut lists, 2, 1, &distance);
        // Row 3 is the nearest of 4's links. Of its own, 1 is farther than 2, and others lead there too.
        assert_eq!(
            lists,
            [vec![1, 2], vec![0, 2], vec![1, 3], vec![2, 4], vec![3, 2]]
        );
        let mended = lists.clone();
        mend(&mut lists, 2, 1, &distance);
        assert_eq!(lists, mended);
        // With room, more ways are made.
        mend(&mut lists, 3, 2, &distance);
        let ways = |row: u32| lists.iter().filter(|list| list.contains(&row)).count();
        assert!((0..5).all(|row| ways(row) >= 2), "{lists:?}");
    }
}
