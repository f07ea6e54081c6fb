//! Which image comes when: an endless stream of random permutations of the source's rows.

use rand::seq::SliceRandom as _;

use crate::{Error, Result, rng};

/// One image of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Place in the run, from 0.
    pub number: u64,
    /// Pass over the source, from 0.
    pub epoch: u64,
    /// Row of the source.
    pub row: u64,
}

/// The permutation of the epoch asked for last. Image number i belongs to epoch i / n and is entry i % n of its permutation,
/// so nothing of the past is needed.
pub(super) struct Order {
    seed: u64,
    rows: u32,
    epoch: Option<u64>,
    entries: Vec<u32>,
}

impl Order {
    /// The order of a source of `rows` rows, at least one.
    ///
    /// # Errors
    /// More rows than u32 can number: a permutation of them would not fit memory.
    pub(super) fn new(seed: u64, rows: u64) -> Result<Self> {
        let rows = u32::try_from(rows).ok().filter(|&rows| rows > 0).ok_or_else(|| {
            let reason = format!("expected 1 to {} images, found {rows}", u32::MAX);
            Error::input("training images", reason)
        })?;
        Ok(Self {
            seed,
            rows,
            epoch: None,
            entries: Vec::new(),
        })
    }

    /// Image number `number` of the run. Cheap while numbers rise; another epoch is another shuffle.
    pub(super) fn image(&mut self, number: u64) -> Image {
        let rows = u64::from(self.rows);
        let (epoch, entry) = (number / rows, number % rows);
        if self.epoch != Some(epoch) {
            self.entries.clear();
            self.entries.extend(0..self.rows);
            self.entries.shuffle(&mut rng::stream(self.seed, "order", epoch));
            self.epoch = Some(epoch);
        }
        let row = u64::from(self.entries[entry as usize]);
        Image { number, epoch, row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_row_once_in_an_order_of_its_own() {
        let mut order = Order::new(3, 50).unwrap();
        let mut epochs = Vec::new();
        for epoch in 0..4 {
            let images: Vec<Image> = (0..50).map(|entry| order.image(epoch * 50 + entry)).collect();
            assert!(images.iter().all(|image| image.epoch == epoch));
            let rows: Vec<u64> = images.iter().map(|image| image.row).collect();
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert!(sorted == (0..50).collect::<Vec<u64>>() && sorted != rows);
            epochs.push(rows);
        }
        assert!((1..4).all(|epoch| epochs[..epoch].iter().all(|other| *other != epochs[epoch])));
        let other = Order::new(4, 50).unwrap().image(0).row;
        let first = Order::new(3, 50).unwrap().image(0).row;
        assert_eq!(first, epochs[0][0]);
        assert!(other != first || Order::new(4, 50).unwrap().image(1).row != epochs[0][1]);
    }

    #[test]
    fn any_image_is_found_without_those_before_it() {
        let mut whole = Order::new(9, 7).unwrap();
        let all: Vec<Image> = (0..70).map(|number| whole.image(number)).collect();
        for number in [69, 3, 35, 34] {
            assert_eq!(Order::new(9, 7).unwrap().image(number), all[number as usize]);
            assert_eq!(whole.image(number), all[number as usize]);
        }
        let one = Order::new(9, 1).unwrap().image(u64::MAX);
        assert_eq!((one.epoch, one.row), (u64::MAX, 0));
    }

    #[test]
    fn a_source_without_rows_or_beyond_u32_is_refused() {
        for rows in [0, 1 << 32] {
            assert!(Order::new(0, rows).is_err());
        }
    }
}
