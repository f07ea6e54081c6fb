//! The settings that both tasks train by, and the choice of the learning rate on held-out training images.

use serde::Serialize;
use serde_json::{Value, json};

use super::head::Training;
use super::recipe::{Protocol, Recipe};
use crate::split::{check_fraction, hold_out, split_name};
use crate::{Error, Result};

/// A learning rate and how it did on the held-out images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Learning rate.
    pub learning_rate: f64,
    /// Mean IoU, or RMSE, on the held-out images; none where there was nothing to choose.
    pub held_out: Option<f64>,
}

/// How the head of either task is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadTraining {
    /// Learning rates to choose among, one for no choice.
    pub learning_rates: Vec<f64>,
    /// AdamW's decay of the weights, 0 to 1.
    pub weight_decay: f64,
    /// Steps of AdamW, at least 1.
    pub iterations: usize,
    /// Windows of one step, at least 1.
    pub batch_size: usize,
    /// Share of the training images that the learning rate is chosen on, between 0 and 1.
    pub val_fraction: f64,
}

/// What the configurations of both tasks have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common<'a> {
    pub protocol: Protocol,
    pub training: &'a HeadTraining,
    pub seed: u64,
    pub recipe: Recipe,
}

impl Common<'_> {
    /// Refuses settings out of range.
    pub(super) fn validate(&self) -> Result<()> {
        check_fraction(self.training.val_fraction)?;
        if self.training.learning_rates.is_empty() {
            return Err(Error::config(
                "learning_rates",
                "expected at least one value, found none",
            ));
        }
        if let Some(rate) = self
            .training
            .learning_rates
            .iter()
            .find(|rate| !(rate.is_finite() && **rate > 0.0))
        {
            return Err(Error::config(
                "learning_rates",
                format!("expected numbers above 0, found {rate}"),
            ));
        }
        if !(0.0..=1.0).contains(&self.training.weight_decay) {
            return Err(Error::config(
                "weight_decay",
                format!(
                    "expected a number from 0 to 1, found {}",
                    self.training.weight_decay
                ),
            ));
        }
        for (field, value) in [
            ("iterations", self.training.iterations),
            ("batch_size", self.training.batch_size),
        ] {
            if value == 0 {
                return Err(Error::config(field, "expected at least 1, found 0"));
            }
        }
        Ok(())
    }

    /// Training at one learning rate.
    pub(super) fn training(&self, learning_rate: f64) -> Training {
        Training {
            iterations: self.training.iterations,
            batch_size: self.training.batch_size,
            learning_rate,
            weight_decay: self.training.weight_decay,
            seed: self.seed,
            recipe: self.recipe,
        }
    }

    /// Every learning rate with what `held_out(rate, windows to fit on, windows to choose on)` says of it. One rate is not
    /// tried: there is nothing to choose, and all images are left to train on.
    pub(super) fn trials(
        &self,
        image_of: &[usize],
        held_out: impl Fn(f64, &[usize], &[usize]) -> f64,
    ) -> Result<Vec<Trial>> {
        if let [learning_rate] = self.training.learning_rates[..] {
            return Ok(vec![Trial {
                learning_rate,
                held_out: None,
            }]);
        }
        let (fit, choose) = self.split(image_of)?;
        let trial = |&learning_rate: &f64| Trial {
            learning_rate,
            held_out: Some(held_out(learning_rate, &fit, &choose)),
        };
        Ok(self.training.learning_rates.iter().map(trial).collect())
    }

    /// Divides windows by their images: those to fit on and those to choose on.
    fn split(&self, image_of: &[usize]) -> Result<(Vec<usize>, Vec<usize>)> {
        let images = image_of.iter().max().map_or(0, |last| last + 1);
        let split = hold_out(images, self.training.val_fraction, self.seed)?;
        Ok((0..image_of.len()).partition(|&window| split.fit.binary_search(&image_of[window]).is_ok()))
    }

    /// The settings for the result.
    pub(super) fn settings(
        &self,
        trials: &[Trial],
        chosen: usize,
        [head, loss, optimizer]: [&str; 3],
    ) -> Value {
        let selected_on = match trials {
            [_] => "nothing: one learning rate".to_owned(),
            _ => split_name(self.training.val_fraction),
        };
        json!({
            "protocol": self.protocol,
            "learning_rate": trials[chosen].learning_rate,
            "learning_rates": trials,
            "weight_decay": self.training.weight_decay,
            "iterations": self.training.iterations,
            "batch_size": self.training.batch_size,
            "selected_on": selected_on,
            "val_fraction": self.training.val_fraction,
            "refit": "chosen learning rate, all training images",
            "augmentation": "none: features are extracted once",
            "seed": self.seed,
            "head": head,
            "loss": loss,
            "optimizer": optimizer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::dense::head::testing::PLAIN;

    fn training(learning_rates: &[f64]) -> HeadTraining {
        HeadTraining {
            learning_rates: learning_rates.to_vec(),
            weight_decay: 0.0,
            iterations: 1,
            batch_size: 1,
            val_fraction: 0.5,
        }
    }

    fn common(training: &HeadTraining) -> Common<'_> {
        Common {
            training,
            seed: 1,
            protocol: Protocol::Fast,
            recipe: PLAIN,
        }
    }

    #[test]
    fn windows_of_one_image_stay_together() {
        let training = training(&[0.1]);
        let common = common(&training);
        let image_of = [0, 0, 1, 2, 2, 2, 3];
        let (fit, held_out) = common.split(&image_of).unwrap();
        assert_eq!(fit.len() + held_out.len(), 7);
        assert!(
            fit.iter()
                .all(|&a| held_out.iter().all(|&b| image_of[a] != image_of[b]))
        );
        let one_image = common.split(&[0, 0]).unwrap_err().to_string();
        assert!(one_image.starts_with("val_fraction"), "{one_image}");
    }

    #[test]
    fn one_rate_is_not_tried() {
        let (two, one) = (training(&[0.1, 0.2]), training(&[0.3]));
        let (two, one) = (common(&two), common(&one));
        let trials = two.trials(&[0, 1], |rate, fit, choose| {
            rate + (fit.len() + choose.len()) as f64
        });
        let found: Vec<Option<f64>> = trials.unwrap().iter().map(|trial| trial.held_out).collect();
        assert_eq!(found, [Some(2.1), Some(2.2)]);
        // Not even two images are needed.
        let trials = one.trials(&[0], |_, _, _| panic!("nothing to choose")).unwrap();
        assert_eq!(
            (trials.len(), trials[0].learning_rate, trials[0].held_out),
            (1, 0.3, None)
        );
        assert_eq!(
            one.settings(&trials, 0, ["", "", ""])["selected_on"],
            "nothing: one learning rate"
        );
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = HeadTraining {
            val_fraction: 0.1,
            ..training(&[0.1])
        };
        assert!(common(&good).validate().is_ok());
        let with = |change: fn(&mut HeadTraining)| {
            let mut training = good.clone();
            change(&mut training);
            training
        };
        for (bad, field) in [
            (with(|bad| bad.learning_rates = vec![]), "learning_rates"),
            (with(|bad| bad.learning_rates = vec![f64::NAN]), "learning_rates"),
            (
                with(|bad| bad.learning_rates = vec![0.1, f64::INFINITY]),
                "learning_rates",
            ),
            (with(|bad| bad.learning_rates = vec![0.0]), "learning_rates"),
            (with(|bad| bad.learning_rates = vec![-0.1]), "learning_rates"),
            (with(|bad| bad.weight_decay = -0.1), "weight_decay"),
            (with(|bad| bad.iterations = 0), "iterations"),
            (with(|bad| bad.batch_size = 0), "batch_size"),
            (with(|bad| bad.val_fraction = 1.0), "val_fraction"),
        ] {
            let error = common(&bad).validate().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
