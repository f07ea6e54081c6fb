//! Decoded images kept in memory. Nothing is ever thrown out: within an epoch every row is wanted once, in an order that is
//! new each time, so that any image is as good to keep as another, and the least recently used would be the next one wanted.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use crate::data::image::Image;

/// Images by row, up to a number of bytes.
pub(super) struct ImageCache {
    limit: usize, // bytes of samples
    held: RwLock<Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    images: HashMap<u64, Image>,
}

impl ImageCache {
    /// Room for `limit` bytes of samples.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: RwLock::default(),
        }
    }

    /// The image of a row, where it is kept.
    pub(super) fn get(&self, row: u64) -> Option<Image> {
        if self.limit == 0 {
            return None;
        }
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.images.get(&row).cloned()
    }

    /// Keeps the image of a row, where there is room.
    pub(super) fn put(&self, row: u64, image: &Image) {
        let size = image.bytes();
        if size > self.limit {
            return;
        }
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let bytes = held.bytes + size;
        if bytes <= self.limit && !held.images.contains_key(&row) {
            held.bytes = bytes;
            held.images.insert(row, image.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::RgbImage;

    fn grey(level: u8) -> Image {
        RgbImage::from_grey(2, 2, &[level; 4]).unwrap().into() // 12 bytes
    }

    #[test]
    fn what_fits_is_kept_and_no_more() {
        let cache = ImageCache::new(30);
        for row in 0..4 {
            cache.put(row, &grey(row as u8));
        }
        cache.put(0, &grey(0));
        assert_eq!(cache.get(0), Some(grey(0)));
        assert_eq!(cache.get(1), Some(grey(1)));
        assert_eq!(cache.get(2), None);
        assert_eq!(cache.held.read().unwrap().bytes, 24);
        let none = ImageCache::new(0);
        none.put(0, &grey(0));
        assert_eq!(none.get(0), None);
    }
}
