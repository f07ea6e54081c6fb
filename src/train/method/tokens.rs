//! What is asked of class tokens beside agreement, whichever way crops agree: that they tell what their crop shows, and that they
//! spread.

use candle_core::Tensor;

use super::crops::Crops;
use super::{Method, StepLoss};
use crate::cluster;
use crate::train::config::LossConfig;
use crate::train::losses::{Vocabulary, hog_targets, koleo_loss, reconstruction_loss, reduced};
use crate::{Result, rng};

impl Method {
    /// What class tokens `cls` [B, D] say of their crops [B, C, S, S], which are this `share` of the step's: their pixels, gradients and visual words,
    /// terms of these `names`.
    pub(super) fn reconstruction_terms(
        &self,
        names: [&'static str; 3],
        crops: &Tensor,
        cls: &Tensor,
        share: f64,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let weights = &self.config.loss;
        if let Some(decoder) = &self.student.pixel_decoder {
            let pixels = reduced(crops)?;
            let term = reconstruction_loss("pixels", &decoder.project(cls)?, &pixels, self.ranks.as_ref());
            loss.push(names[0], &term?, share * weights.pixel_weight)?;
        }
        if let Some(decoder) = &self.student.hog_decoder {
            let histograms = hog_targets(crops)?;
            let term = reconstruction_loss("hog", &decoder.project(cls)?, &histograms, self.ranks.as_ref());
            loss.push(names[1], &term?, share * weights.hog_weight)?;
        }
        if let (Some(decoder), Some(vocabulary)) = (&self.student.words_decoder, &self.memory.vocabulary) {
            let words = vocabulary.targets(crops, weights.words.cell)?;
            let term = reconstruction_loss("words", &decoder.project(cls)?, &words, self.ranks.as_ref());
            loss.push(names[2], &term?, share * weights.words.weight)?;
        }
        Ok(())
    }

    /// Learns the vocabulary of the visual words from the first crops of the run, those of all ranks in the order that one would have them.
    pub(super) fn learn_words(&mut self, crops: &Crops) -> Result<()> {
        if self.memory.vocabulary.as_ref().is_none_or(Vocabulary::is_learnt) {
            return Ok(());
        }
        let pixels = reduced(&crops.global)?;
        let of_crop = |crop: usize| {
            let rows = pixels
                .narrow(0, crop * crops.batch, crops.batch)?
                .flatten_from(1)?;
            self.ranks.gather(&rows)
        };
        let all = (0..self.config.crops.global.count).map(of_crop);
        let all = Tensor::cat(&all.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let (_, channels, side, _) = pixels.dims4()?;
        let pixels = all.reshape(((), channels, side, side))?;
        let mut rng = rng::stream(self.config.seed, "words", 0);
        if let Some(vocabulary) = &mut self.memory.vocabulary {
            vocabulary.learn(&pixels, &mut rng)?;
        }
        Ok(())
    }

    /// KoLeo on the class tokens `cls` [B, D] of each image's global crop of this number.
    pub(super) fn spread_term(&self, crop: usize, cls: Tensor, loss: &mut StepLoss) -> Result<()> {
        let LossConfig {
            koleo_weight,
            koleo_group,
            ..
        } = self.config.loss;
        if koleo_weight > 0. {
            let term = koleo_loss(&self.neighbours(cls)?, koleo_group)?;
            loss.push(["koleo_first", "koleo_second"][crop.min(1)], &term, koleo_weight)?;
        }
        Ok(())
    }

    /// The class tokens among which KoLeo looks for the neighbours of `cls` [B, D]: those of all ranks, unless their groups are whole on
    /// each of them.
    fn neighbours(&self, cls: Tensor) -> candle_core::Result<Tensor> {
        if self.ranks.is_one() {
            return Ok(cls);
        }
        let (rows, group) = (cls.dim(0)?, self.config.loss.koleo_group);
        let cut = group == 0 || !rows.is_multiple_of(group);
        match self.ranks.any(cut).map_err(candle_core::Error::wrap)? {
            true => cluster::gather_with_gradient(&self.ranks, &cls),
            false => Ok(cls),
        }
    }
}
