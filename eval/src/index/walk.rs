//! The search of a graph index (Malkov & Yashunin 2016, algorithms 2 and 5): down the layers to a row near the query, then
//! through the lowest one with the `ef` nearest rows in hand.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use super::Hit;
use super::distance::{distance, fetch_ahead};
use super::links::Links;
use crate::MatrixView;

/// A row and its distance to the query, nearest first: the bits of a float that is not negative order as it does, and of
/// equal distances the lower row comes first.
type Key = u64;

fn key(distance: f32, row: u32) -> Key {
    (u64::from(distance.to_bits()) << 32) | u64::from(row)
}

fn row_of(key: Key) -> u32 {
    key as u32
}

fn distance_of(key: Key) -> f32 {
    f32::from_bits((key >> 32) as u32)
}

/// What a walk needs to remember; walks take one and give it back, so that none has to be made anew.
#[derive(Debug, Default)]
pub(super) struct Walkers {
    idle: Mutex<Vec<Walker>>,
}

#[derive(Debug, Default)]
struct Walker {
    /// The walk that saw each row last.
    seen: Vec<u32>,
    walk: u32,
    /// Rows whose links are still to be looked at.
    candidates: BinaryHeap<Reverse<Key>>,
    /// The nearest rows so far, the farthest on top.
    nearest: BinaryHeap<Key>,
    /// Links of a row that this walk has not seen.
    unseen: Vec<u32>,
}

impl Walkers {
    /// The `k` rows of `vectors` nearest to `query`, best first, found with a walk of width `ef`, at least `k`.
    pub(super) fn search(
        &self,
        vectors: MatrixView<'_>,
        links: &Links,
        query: &[f32],
        k: usize,
        ef: usize,
    ) -> Vec<Hit> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut walker = idle().pop().unwrap_or_default();
        walker.begin(vectors.rows());
        let start = descend(vectors, links, query);
        walker.walk(vectors, links, query, start, ef);
        let mut found = std::mem::take(&mut walker.nearest).into_sorted_vec();
        found.truncate(k);
        idle().push(walker);
        let hit = |key: Key| Hit {
            row: row_of(key),
            similarity: 1.0 - distance_of(key),
        };
        found.into_iter().map(hit).collect()
    }
}

/// The row that no link of a layer above the lowest brings nearer to the query.
fn descend(vectors: MatrixView<'_>, links: &Links, query: &[f32]) -> Key {
    let to = |row: u32| key(distance(query, vectors.row(row as usize)), row);
    let mut nearest = to(links.entry());
    for layer in (0..links.upper_layers()).rev() {
        loop {
            let around = links.above(layer, row_of(nearest));
            let best = around.iter().map(|&row| to(row)).min().unwrap_or(nearest);
            if distance_of(best) >= distance_of(nearest) {
                break;
            }
            nearest = best;
        }
    }
    nearest
}

impl Walker {
    fn begin(&mut self, rows: usize) {
        self.seen.resize(rows, 0);
        self.walk = self.walk.wrapping_add(1);
        if self.walk == 0 {
            self.seen.fill(0);
            self.walk = 1;
        }
        self.candidates.clear();
        self.nearest.clear();
    }

    fn see(&mut self, row: u32) -> bool {
        std::mem::replace(&mut self.seen[row as usize], self.walk) != self.walk
    }

    /// Leaves the `ef` nearest rows in `self.nearest`.
    fn walk(&mut self, vectors: MatrixView<'_>, links: &Links, query: &[f32], start: Key, ef: usize) {
        self.see(row_of(start));
        self.candidates.push(Reverse(start));
        self.nearest.push(start);
        while let Some(Reverse(candidate)) = self.candidates.pop() {
            let farthest = self.nearest.peek().copied().unwrap_or(Key::MAX);
            if self.nearest.len() >= ef && candidate > farthest {
                break;
            }
            let mut unseen = std::mem::take(&mut self.unseen);
            unseen.extend(
                links
                    .of_row(row_of(candidate))
                    .iter()
                    .filter(|&&row| self.see(row)),
            );
            for (place, &row) in unseen.iter().enumerate() {
                if let Some(&next) = unseen.get(place + 1) {
                    fetch_ahead(vectors.row(next as usize));
                }
                self.offer(key(distance(query, vectors.row(row as usize)), row), ef);
            }
            unseen.clear();
            self.unseen = unseen;
        }
    }

    fn offer(&mut self, found: Key, ef: usize) {
        if self.nearest.len() < ef {
            self.nearest.push(found);
        } else if let Some(mut farthest) = self.nearest.peek_mut()
            && found < *farthest
        {
            *farthest = found;
        } else {
            return;
        }
        self.candidates.push(Reverse(found));
    }
}
