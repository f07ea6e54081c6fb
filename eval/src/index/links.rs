//! The links of a graph index as flat arrays, taken from `hnsw_rs` once all rows are in it. A walk over them reads two
//! arrays, where the crate's own search follows pointers and takes a lock for every row it looks at.

use hnsw_rs::hnsw::Hnsw;

use super::distance::RowDistance;
use super::mend::mend;
use crate::{Error, Result};

/// Who is linked with whom, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Links {
    /// Where every walk begins: a row of the highest layer.
    entry: u32,
    /// The lowest layer, which holds every row.
    bottom: Layer,
    /// The layers above it, lowest first.
    upper: Vec<Sparse>,
}

/// Lists of links, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    /// End of each list in `links`.
    ends: Vec<usize>,
    links: Vec<u32>,
}

impl Layer {
    fn from_lists(lists: impl Iterator<Item = Vec<u32>>) -> Self {
        let (mut ends, mut links) = (Vec::new(), Vec::new());
        for list in lists {
            links.extend(list);
            ends.push(links.len());
        }
        Self { ends, links }
    }

    fn list(&self, place: usize) -> &[u32] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.links[start..self.ends[place]]
    }

    fn lists(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.ends.len()).map(|place| self.list(place))
    }
}

/// A layer of some rows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sparse {
    /// Ascending.
    rows: Vec<u32>,
    lists: Layer,
}

impl Sparse {
    fn of(mut layer: Vec<(u32, Vec<u32>)>) -> Self {
        layer.sort_unstable_by_key(|(row, _)| *row);
        let (rows, lists): (Vec<u32>, Vec<_>) = layer.into_iter().unzip();
        Self {
            rows,
            lists: Layer::from_lists(lists.into_iter()),
        }
    }
}

impl Links {
    /// The links of `graph`, whose rows are numbered 0 to below `n`. Rows that it does not hold have none.
    pub(super) fn from_graph(graph: &Hnsw<'static, u32, RowDistance>, n: usize) -> Self {
        let points = graph.get_point_indexation();
        let top = usize::from(points.get_max_level_observed());
        let mut layers: Vec<Vec<(u32, Vec<u32>)>> = vec![Vec::new(); top + 1];
        let mut entry = 0;
        for point in points {
            let (row, level) = (point.get_origin_id() as u32, usize::from(point.get_point_id().0));
            if level == top && point.get_point_id().1 == 0 {
                entry = row;
            }
            let lists = point.get_neighborhood_id();
            for (layer, list) in layers.iter_mut().zip(lists).take(level + 1) {
                layer.push((row, list.iter().map(|link| link.get_origin_id() as u32).collect()));
            }
        }
        let mut layers = layers.into_iter();
        let mut bottom = vec![Vec::new(); n];
        for (row, list) in layers.next().unwrap_or_default() {
            bottom[row as usize] = list;
        }
        Self {
            entry,
            bottom: Layer::from_lists(bottom.into_iter()),
            upper: layers.map(Sparse::of).collect(),
        }
    }

    /// Where every walk begins.
    pub(super) fn entry(&self) -> u32 {
        self.entry
    }

    /// The same for rows of other names: row `i` is called `names[i]`, each another number below the number of rows.
    pub(super) fn renamed(&self, names: &[u32]) -> Self {
        let renamed = |list: &[u32]| list.iter().map(|&row| names[row as usize]).collect::<Vec<u32>>();
        let mut bottom = vec![Vec::new(); names.len()];
        for (list, &name) in self.bottom.lists().zip(names) {
            bottom[name as usize] = renamed(list);
        }
        let upper = self.upper.iter().map(|Sparse { rows, lists }| {
            let layer = rows.iter().zip(lists.lists());
            Sparse::of(
                layer
                    .map(|(&row, list)| (names[row as usize], renamed(list)))
                    .collect(),
            )
        });
        Self {
            entry: names[self.entry as usize],
            bottom: Layer::from_lists(bottom.into_iter()),
            upper: upper.collect(),
        }
    }

    /// Leads to each row of the lowest layer from at least `wanted` others where there is room; see [`mend`].
    pub(super) fn mend(&mut self, most: usize, wanted: usize, distance: &RowDistance) {
        let mut lists: Vec<Vec<u32>> = self.bottom.lists().map(<[u32]>::to_vec).collect();
        mend(&mut lists, most, wanted, distance);
        self.bottom = Layer::from_lists(lists.into_iter());
    }

    /// Rows of the lowest layer.
    pub(super) fn rows(&self) -> usize {
        self.bottom.ends.len()
    }

    /// Links of `row` in the lowest layer.
    pub(super) fn of_row(&self, row: u32) -> &[u32] {
        self.bottom.list(row as usize)
    }

    /// Number of layers above the lowest.
    pub(super) fn upper_layers(&self) -> usize {
        self.upper.len()
    }

    /// Links of `row` in layer `layer` above the lowest, counted from 0; none where the layer does not hold it.
    pub(super) fn above(&self, layer: usize, row: u32) -> &[u32] {
        let Sparse { rows, lists } = &self.upper[layer];
        rows.binary_search(&row).map_or(&[], |place| lists.list(place))
    }

    /// As words for a file: the entry, the number of layers above the lowest, for each row of the lowest layer the number of
    /// its links and these, and for each layer above it the number of its rows and for each of these the row, the number of
    /// its links and these.
    pub(super) fn to_words(&self) -> Vec<u32> {
        let mut words = vec![self.entry, self.upper.len() as u32];
        let push = |words: &mut Vec<u32>, list: &[u32]| {
            words.push(list.len() as u32);
            words.extend_from_slice(list);
        };
        for list in self.bottom.lists() {
            push(&mut words, list);
        }
        for Sparse { rows, lists } in &self.upper {
            words.push(rows.len() as u32);
            for (row, list) in rows.iter().zip(lists.lists()) {
                words.push(*row);
                push(&mut words, list);
            }
        }
        words
    }

    /// What [`Self::to_words`] gave, for an index of `n` rows.
    ///
    /// # Errors
    /// Words that are too few or too many, or that name a row that there is not.
    pub(super) fn from_words(words: &[u32], n: usize) -> Result<Self> {
        let mut reader = Reader { words, n };
        let (entry, layers) = (reader.row()?, reader.next()?);
        let bottom = (0..n).map(|_| reader.list()).collect::<Result<Vec<_>>>()?;
        let mut upper = Vec::new();
        for _ in 0..layers {
            let (mut rows, mut lists) = (Vec::new(), Vec::new());
            for _ in 0..reader.next()? {
                rows.push(reader.row()?);
                lists.push(reader.list()?);
            }
            if !rows.is_sorted_by(|a, b| a < b) {
                return Err(Error::data(
                    "links",
                    "expected the rows of a layer in order, each once",
                ));
            }
            upper.push(Sparse {
                rows,
                lists: Layer::from_lists(lists.into_iter()),
            });
        }
        if !reader.words.is_empty() {
            let reason = format!(
                "expected no more than its layers, found {} more words",
                reader.words.len()
            );
            return Err(Error::data("links", reason));
        }
        Ok(Self {
            entry,
            bottom: Layer::from_lists(bottom.into_iter()),
            upper,
        })
    }
}

/// Words that are still to be read.
struct Reader<'a> {
    words: &'a [u32],
    n: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<u32> {
        let (first, rest) = self
            .words
            .split_first()
            .ok_or_else(|| Error::data("links", "expected more words, found the end"))?;
        self.words = rest;
        Ok(*first)
    }

    fn row(&mut self) -> Result<u32> {
        let row = self.next()?;
        self.checked(row)
    }

    fn checked(&self, row: u32) -> Result<u32> {
        if row as usize >= self.n {
            let reason = format!("expected rows below {}, found {row}", self.n);
            return Err(Error::data("links", reason));
        }
        Ok(row)
    }

    fn list(&mut self) -> Result<Vec<u32>> {
        let count = self.next()? as usize;
        let Some((list, rest)) = self.words.split_at_checked(count) else {
            let reason = format!("expected {count} links, found {} words", self.words.len());
            return Err(Error::data("links", reason));
        };
        self.words = rest;
        list.iter().map(|&row| self.checked(row)).collect()
    }
}
