//! Intersection over union of a segmentation, by class and in the mean, over the pixels of one image or of a whole set
//! (mmseg `total_intersect_and_union`): the mean is over classes, each of whose pixels are pooled over all images.

use std::ops::AddAssign;

/// The label of pixels that are left out.
pub const VOID: u8 = 255;

/// Pixels of each class that agree, that are labelled so and that are predicted so; pixels labelled [`VOID`] are in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PixelCounts {
    /// Labelled and predicted so.
    pub agreed: Vec<u64>,
    /// Labelled so.
    pub labelled: Vec<u64>,
    /// Predicted so.
    pub predicted: Vec<u64>,
}

impl PixelCounts {
    /// No pixel of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self {
            agreed: vec![0; classes],
            labelled: vec![0; classes],
            predicted: vec![0; classes],
        }
    }

    /// Counts the pixels of one image.
    ///
    /// # Panics
    /// If the lengths differ, a prediction is not below `classes`, or a label neither that nor [`VOID`].
    pub fn count(predicted: &[u8], labels: &[u8], classes: usize) -> Self {
        assert_eq!(predicted.len(), labels.len(), "one label a pixel");
        let mut counts = Self::new(classes);
        for (&predicted, &label) in predicted.iter().zip(labels) {
            if label == VOID {
                continue;
            }
            counts.labelled[usize::from(label)] += 1;
            counts.predicted[usize::from(predicted)] += 1;
            counts.agreed[usize::from(label)] += u64::from(label == predicted);
        }
        counts
    }

    /// Intersection over union of each class; none where it is neither labelled nor predicted.
    pub fn iou(&self) -> Vec<Option<f64>> {
        (0..self.agreed.len()).map(|class| self.iou_of(class)).collect()
    }

    /// Intersection over union of one class.
    pub fn iou_of(&self, class: usize) -> Option<f64> {
        let agreed = self.agreed[class];
        ratio(agreed, self.labelled[class] + self.predicted[class] - agreed)
    }

    /// Mean of [`Self::iou`] over the classes that have one (mmseg `nanmean`); NaN where none has.
    pub fn mean_iou(&self) -> f64 {
        mean(self.iou())
    }

    /// Share of each class's labelled pixels that are predicted so; none without labelled pixels.
    pub fn accuracy(&self) -> Vec<Option<f64>> {
        let pairs = self.agreed.iter().zip(&self.labelled);
        pairs
            .map(|(&agreed, &labelled)| ratio(agreed, labelled))
            .collect()
    }

    /// Mean of [`Self::accuracy`] over the classes that have one; NaN where none has.
    pub fn mean_accuracy(&self) -> f64 {
        mean(self.accuracy())
    }

    /// Share of all labelled pixels that are predicted right; NaN where there is none.
    pub fn pixel_accuracy(&self) -> f64 {
        let sum = |counts: &[u64]| counts.iter().sum();
        ratio(sum(&self.agreed), sum(&self.labelled)).unwrap_or(f64::NAN)
    }

    /// Adds another's pixels `times` times.
    pub fn add_times(&mut self, other: &Self, times: u64) {
        let add = |into: &mut Vec<u64>, from: &[u64]| {
            into.iter_mut()
                .zip(from)
                .for_each(|(into, from)| *into += times * from);
        };
        add(&mut self.agreed, &other.agreed);
        add(&mut self.labelled, &other.labelled);
        add(&mut self.predicted, &other.predicted);
    }
}

impl AddAssign<&Self> for PixelCounts {
    fn add_assign(&mut self, other: &Self) {
        self.add_times(other, 1);
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn mean(values: Vec<Option<f64>>) -> f64 {
    let known: Vec<f64> = values.into_iter().flatten().collect();
    known.iter().sum::<f64>() / known.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        // 0 0 0 1 1 1 2 and one pixel left out, predicted as 0 0 1 1 1 0 3, 0 there.
        let labels = [0, 0, 0, 1, VOID, 1, 1, 2];
        let predicted = [0, 0, 1, 1, 0, 1, 0, 3];
        let counts = PixelCounts::count(&predicted, &labels, 5);
        assert_eq!(counts.agreed, [2, 2, 0, 0, 0]);
        assert_eq!(counts.labelled, [3, 3, 1, 0, 0]);
        assert_eq!(counts.predicted, [3, 3, 0, 1, 0]);
        // unions: 3 + 3 - 2, the same, 1, 1, none
        assert_eq!(counts.iou(), [Some(0.5), Some(0.5), Some(0.0), Some(0.0), None]);
        assert_eq!(counts.mean_iou(), 0.25);
        assert_eq!(
            counts.accuracy(),
            [Some(2.0 / 3.0), Some(2.0 / 3.0), Some(0.0), None, None]
        );
        assert!((counts.mean_accuracy() - 4.0 / 9.0).abs() < 1e-15);
        assert!((counts.pixel_accuracy() - 4.0 / 7.0).abs() < 1e-15);
    }

    #[test]
    fn images_are_pooled_before_the_ratio() {
        let mut all = PixelCounts::count(&[0, 0, 0, 1], &[0, 0, 1, 1], 2);
        all += &PixelCounts::count(&[1, 1], &[0, 1], 2);
        // class 0: 2 agreed, 3 labelled, 3 predicted; class 1: 2, 3, 3
        assert_eq!(all.iou(), [Some(0.5), Some(0.5)]);
        let mut twice = PixelCounts::new(2);
        twice.add_times(&all, 2);
        assert_eq!((twice.labelled[0], twice.mean_iou()), (6, 0.5));
        assert!(PixelCounts::new(2).mean_iou().is_nan() && PixelCounts::new(2).pixel_accuracy().is_nan());
    }

    #[test]
    fn values_are_mmsegs() {
        let expected = crate::testing::reference("mean_iou");
        let classes = expected.number("classes") as usize;
        let mut all = PixelCounts::new(classes);
        for (predicted, labels) in expected
            .named("predicted")
            .rows()
            .zip(expected.named("labels").rows())
        {
            all += &PixelCounts::count(&predicted.bytes(), &labels.bytes(), classes);
        }
        for (name, found) in [("iou", all.iou()), ("accuracy", all.accuracy())] {
            for (found, expected) in found.iter().zip(expected.named(name).options()) {
                let close = match (found, expected) {
                    (Some(found), Some(expected)) => (found - expected).abs() < 1e-12,
                    // numpy's NaN: a class that is nowhere.
                    (None, None) => true,
                    _ => false,
                };
                assert!(close, "{name}: {found:?} {expected:?}");
            }
        }
        assert!((all.pixel_accuracy() - expected.number("pixel_accuracy")).abs() < 1e-12);
    }
}
