//! The rows of a graph index as walks see them. Where they have codes, these lie in an order that puts like rows side by side, and
//! the graph speaks of the places in that order: what a walk reads is then often in the cache, or in a page that it has just read.

use std::sync::Arc;

use super::codes::Codes;
use super::distance::RowDistance;
use super::order::likes_together;
use crate::{Matrix, Result};

/// Rows, and what walks compare queries with.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// Unit rows, as they were given.
    pub(super) exact: Arc<Matrix>,
    /// Their codes by place, where these are as good for choosing; places are rows otherwise.
    pub(super) codes: Option<Arc<Codes>>,
    /// The row at each place.
    pub(super) order: Arc<Vec<u32>>,
}

impl Rows {
    /// Of unit rows.
    ///
    /// # Errors
    /// As [`Codes::of`].
    pub(super) fn new(unit: Matrix) -> Result<Self> {
        let (codes, order) = match Codes::of(unit.view())? {
            Some(codes) => {
                let order = likes_together(&codes);
                (Some(Arc::new(codes.in_order(&order))), order)
            }
            None => (None, (0..unit.view().rows() as u32).collect()),
        };
        Ok(Self {
            exact: Arc::new(unit),
            codes,
            order: Arc::new(order),
        })
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// The place of each row.
    pub(super) fn places(&self) -> Vec<u32> {
        let mut places = vec![0; self.order.len()];
        for (place, &row) in self.order.iter().enumerate() {
            places[row as usize] = place as u32;
        }
        places
    }

    /// Distances of places to each other.
    pub(super) fn distance(&self) -> RowDistance {
        match &self.codes {
            Some(codes) => RowDistance::Coded(codes.clone()),
            None => RowDistance::Exact(self.exact.clone()),
        }
    }
}
