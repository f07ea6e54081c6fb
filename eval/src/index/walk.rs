//! The search of a graph index (Malkov & Yashunin 2016, algorithms 2 and 5): down the layers to a row near the query, then
//! through the lowest one with the `ef` nearest rows in hand. Walks compare codes where the index has them; what they end with is
//! compared exactly.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use super::Hit;
use super::codes::{Codes, QueryCodes};
use super::distance::{dot, fetch};
use super::integer::{WideDot, wide_dot};
use super::links::Links;
use super::rows::Rows;
use crate::MatrixView;

/// How far a row is from the query, and the row: keys order by distance, and of equal distances the lower row comes first.
type Key = u64;

/// Keys order as distances do: of floats, those below zero have their bits turned, the others only the sign.
fn key(distance: f32, row: u32) -> Key {
    let bits = distance.to_bits();
    let turned = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (u64::from(turned) << 32) | u64::from(row)
}

fn row_of(key: Key) -> u32 {
    key as u32
}

fn distance_of(key: Key) -> f32 {
    let turned = (key >> 32) as u32;
    f32::from_bits(if turned >> 31 == 1 {
        turned & !(1 << 31)
    } else {
        !turned
    })
}

/// How far rows are from a query, in a measure of its own that is smaller for nearer rows.
trait Measure {
    fn key(&self, row: u32) -> Key;
    /// Asks the cache for the row.
    fn fetch(&self, row: u32);
    /// How far beyond another row it may look and still be nearer.
    fn doubt(&self, row: u32) -> f32;
}

struct Exact<'a> {
    rows: MatrixView<'a>,
    query: &'a [f32],
}

impl Measure for Exact<'_> {
    fn key(&self, row: u32) -> Key {
        key(-dot(self.query, self.rows.row(row as usize)), row)
    }

    fn fetch(&self, row: u32) {
        fetch(self.rows.row(row as usize));
    }

    fn doubt(&self, _: u32) -> f32 {
        0.0
    }
}

struct Coded<'a> {
    codes: &'a Codes,
    query: &'a QueryCodes,
    dot: WideDot,
}

impl Measure for Coded<'_> {
    fn key(&self, row: u32) -> Key {
        let common = (self.dot)(&self.query.values, self.codes.row(row));
        key(-(common as f32 * self.codes.step(row)), row)
    }

    fn fetch(&self, row: u32) {
        fetch(self.codes.row(row));
    }

    fn doubt(&self, row: u32) -> f32 {
        DOUBT * self.codes.step(row) / self.query.step.max(f32::MIN_POSITIVE)
    }
}

/// What a walk needs to remember; walks take one and give it back, so that none has to be made anew.
#[derive(Debug)]
pub(super) struct Walkers {
    idle: Mutex<Vec<Walker>>,
    /// Of a query and codes, the fastest of this processor.
    dot: WideDot,
}

impl Default for Walkers {
    fn default() -> Self {
        Self::with(wide_dot())
    }
}

#[derive(Debug, Default)]
struct Walker {
    query: QueryCodes,
    trail: Trail,
}

#[derive(Debug, Default)]
struct Trail {
    /// The walk that saw each row last.
    seen: Vec<u8>,
    walk: u8,
    /// Rows whose links are still to be looked at.
    candidates: BinaryHeap<Reverse<Key>>,
    /// The nearest rows so far, the farthest on top.
    nearest: BinaryHeap<Key>,
    /// Links of a row that this walk has not seen.
    unseen: Vec<u32>,
}

impl Walkers {
    /// Walkers that compare codes by `dot`.
    pub(super) fn with(dot: WideDot) -> Self {
        Self {
            idle: Mutex::default(),
            dot,
        }
    }

    /// The `k` rows nearest to `query`, best first, found with a walk of width `ef`, at least `k`.
    pub(super) fn search(&self, rows: &Rows, links: &Links, query: &[f32], k: usize, ef: usize) -> Vec<Hit> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut walker = idle().pop().unwrap_or_default();
        let exact = Exact {
            rows: rows.exact.view(),
            query,
        };
        let found = match &rows.codes {
            Some(codes) => {
                codes.encode_query(query, &mut walker.query);
                let coded = Coded {
                    codes,
                    query: &walker.query,
                    dot: self.dot,
                };
                walker.trail.search(&coded, links, k, ef)
            }
            None => walker.trail.search(&exact, links, k, ef),
        };
        idle().push(walker);
        let found: Vec<u32> = found
            .into_iter()
            .map(|place| rows.order[place as usize])
            .collect();
        exact_hits(&exact, &found, k)
    }
}

/// The `k` nearest of `found`, compared exactly.
fn exact_hits(exact: &Exact<'_>, found: &[u32], k: usize) -> Vec<Hit> {
    let mut hits: Vec<Hit> = Vec::with_capacity(found.len());
    found.iter().take(1).for_each(|&row| exact.fetch(row));
    for (place, &row) in found.iter().enumerate() {
        if let Some(&next) = found.get(place + 1) {
            exact.fetch(next);
        }
        let similarity = dot(exact.query, exact.rows.row(row as usize)).min(1.0);
        hits.push(Hit { row, similarity });
    }
    hits.sort_unstable_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.row.cmp(&b.row)));
    hits.truncate(k);
    hits
}

/// The row that no link of a layer above the lowest brings nearer to the query.
fn descend(measure: &impl Measure, links: &Links) -> Key {
    let mut nearest = measure.key(links.entry());
    for layer in (0..links.upper_layers()).rev() {
        loop {
            let around = links.above(layer, row_of(nearest));
            let best = around
                .iter()
                .map(|&row| measure.key(row))
                .min()
                .unwrap_or(nearest);
            if best >> 32 >= nearest >> 32 {
                break;
            }
            nearest = best;
        }
    }
    nearest
}

/// Rows asked of the cache ahead of the one that is compared.
const AHEAD: usize = 2;
/// Steps of a row's codes that its similarity may be off, seven times the deviation of a rounding error in every value.
const DOUBT: f32 = 2.0;

impl Trail {
    /// Rows among which are the `k` nearest of those that a walk of width `ef` ends with, in no order.
    fn search(&mut self, measure: &impl Measure, links: &Links, k: usize, ef: usize) -> Vec<u32> {
        self.begin(links.rows());
        self.walk(measure, links, descend(measure, links), ef);
        let mut found: Vec<Key> = self.nearest.drain().collect();
        if found.len() > k {
            let (_, &mut last, _) = found.select_nth_unstable(k - 1);
            found.retain(|&key| distance_of(key) <= distance_of(last) + measure.doubt(row_of(key)));
        }
        found.into_iter().map(row_of).collect()
    }

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

    fn walk(&mut self, measure: &impl Measure, links: &Links, start: Key, ef: usize) {
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
            unseen.iter().take(AHEAD).for_each(|&row| measure.fetch(row));
            if let Some(Reverse(next)) = self.candidates.peek() {
                fetch(links.of_row(row_of(*next)));
            }
            for (place, &row) in unseen.iter().enumerate() {
                if let Some(&next) = unseen.get(place + AHEAD) {
                    measure.fetch(next);
                }
                self.offer(measure.key(row), ef);
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
