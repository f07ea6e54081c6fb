//! What the frozen teacher gives the student's objective: its outputs for the global crops of a batch, on the student's
//! patch grid, from the network or from the cache; the frozen heads; labels.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::align::{PixelFit, resample_grid};
use super::cache::TeacherCache;
use super::labels::Labels;
use super::teacher::{FrozenTeacher, TeacherFeatures, Wanted};
use crate::data::loader::Batch;
use crate::data::mask::Grid;
use crate::data::transform::of_colours;
use crate::data::{Source, SourceIdentity};
use crate::identity::decoding_of;
use crate::train::config::{DistillConfig, Term, TrainConfig};
use crate::{Error, Result};

/// A teacher beside the geometry, cache and labels of one run.
pub struct FrozenTargets {
    teacher: Box<dyn FrozenTeacher>,
    fit: PixelFit,
    grid: Grid,
    wanted: Wanted,
    layout: Layout,
    /// Whether crops come again: outputs must then not depend on the other images of a batch.
    alone: bool,
    cache: Option<TeacherCache>,
    labels: Option<Labels>,
    device: Device,
}

/// Values of each output for one crop, in the order in which they lie in a record; 0 for what is not asked for. A record
/// holds the outputs of the G global crops of one image, output after output, crop after crop.
#[derive(Debug, Clone, Copy)]
struct Layout {
    crops: usize,       // G
    values: [usize; 4], // cls, patch, patch_mean, scores
}

impl FrozenTargets {
    /// What the run of `config` on `source` wants of `teacher`.
    ///
    /// # Errors
    /// A teacher other than the one the run began with, labels that the source lacks, a cache that cannot be used.
    pub fn new(
        config: &TrainConfig,
        teacher: Box<dyn FrozenTeacher>,
        source: &dyn Source,
        device: &Device,
    ) -> Result<Self> {
        let distill = config
            .distill
            .as_ref()
            .ok_or_else(|| Error::failed("distillation", "expected the section distill, found none"))?;
        let facts = teacher.facts();
        if facts.sha256 != distill.teacher_sha256 {
            let reason = format!(
                "expected the teacher that the run began with, SHA-256 {}, found {}",
                distill.teacher_sha256, facts.sha256
            );
            return Err(Error::input(distill.teacher.clone(), reason));
        }
        let side = facts
            .size
            .resolve(distill.teacher_size as usize, config.crops.global.size as usize)?;
        let own = (
            of_colours("crops.mean", &config.crops.mean)?,
            of_colours("crops.std", &config.crops.std)?,
        );
        let fit = PixelFit::new(own, facts.normalisation, side);
        let grid = config.grid()?;
        let wanted = wanted(config, distill);
        let layout = Layout::new(config, distill, &wanted, grid);
        let labels = match distill.has_labels() {
            true => Some(Labels::read(source)?),
            false => None,
        };
        let cache = match &distill.cache {
            None => None,
            Some(folder) => {
                let views = source.len().saturating_mul(distill.cache_epochs);
                let key = cache_key(config, teacher.as_ref(), &fit, &layout, source)?;
                let (folder, values) = (Path::new(folder), layout.record());
                Some(TeacherCache::open(folder, &key, values, views, distill.cache_gb)?)
            }
        };
        Ok(Self {
            teacher,
            fit,
            grid,
            wanted,
            layout,
            alone: distill.cache_epochs > 0,
            cache,
            labels,
            device: device.clone(),
        })
    }

    /// The teacher's outputs for the global crops [G B, 3, S, S] of `batch`, crop-major, patch tokens on the student's grid.
    ///
    /// # Errors
    /// Failures of the teacher or of the cache's disk.
    pub fn features(&mut self, global: &Tensor, batch: &Batch) -> Result<TeacherFeatures> {
        if !self.alone {
            return self.forward(global);
        }
        let mut records = Vec::with_capacity(batch.size);
        let mut new = Vec::new();
        for sample in 0..batch.size {
            let view = batch.views[sample].map(|pass| (batch.rows[sample], pass));
            let cache = self.cache.as_mut();
            let known = view
                .zip(cache)
                .and_then(|((row, pass), cache)| cache.get(row, pass));
            let record = match known {
                Some(record) => record,
                None => {
                    let record = self.of_sample(global, sample, batch.size)?;
                    new.extend(view.map(|view| (view, record.clone())));
                    record
                }
            };
            records.push(record);
        }
        if let Some(cache) = &mut self.cache {
            cache.put(&new)?;
        }
        self.layout
            .assemble(&records, self.grid, &self.device)
            .map_err(Error::from)
    }

    /// The frozen DINO head on class tokens [n, D]: [n, K].
    ///
    /// # Errors
    /// A teacher without one.
    pub fn cls_logits(&self, tokens: &Tensor) -> Result<Tensor> {
        self.teacher.cls_logits(tokens)
    }

    /// The frozen iBOT head on patch tokens [m, D]: [m, K].
    ///
    /// # Errors
    /// A teacher without one.
    pub fn patch_logits(&self, tokens: &Tensor) -> Result<Tensor> {
        self.teacher.patch_logits(tokens)
    }

    /// Of `crops` global crops of the images in `rows`, crop-major, the places of those with a label, and their classes.
    pub fn labelled(&self, rows: &[u64], crops: usize) -> (Vec<u32>, Vec<u32>) {
        let Some(labels) = &self.labels else {
            return Default::default();
        };
        let all = (0..crops).flat_map(|_| rows.iter().copied());
        (0..)
            .zip(all)
            .filter_map(|(place, row)| Some((place, labels.class(row)?)))
            .unzip()
    }

    /// One pass of the teacher over crops [n, 3, S, S].
    fn forward(&mut self, crops: &Tensor) -> Result<TeacherFeatures> {
        let pixels = self.fit.apply(crops)?;
        let mut features = self.teacher.features(&pixels, &self.wanted)?;
        if let Some((tokens, grid)) = features.patch.take() {
            let tokens = resample_grid(&tokens, grid, self.grid)?;
            features.patch = Some((tokens, self.grid));
        }
        Ok(features)
    }

    /// The record of one image.
    fn of_sample(&mut self, global: &Tensor, sample: usize, batch: usize) -> Result<Vec<f32>> {
        let crops: candle_core::Result<Vec<Tensor>> = (0..self.layout.crops)
            .map(|crop| global.narrow(0, crop * batch + sample, 1))
            .collect();
        let crops = crops.and_then(|crops| Tensor::cat(&crops, 0))?;
        let features = self.forward(&crops)?;
        let mut record = Vec::with_capacity(self.layout.record());
        let patch = features.patch.map(|(tokens, _)| tokens);
        for (output, values) in [features.cls, patch, features.patch_mean, features.scores]
            .into_iter()
            .zip(self.layout.values)
        {
            let Some(output) = output.filter(|_| values > 0) else {
                continue;
            };
            let flat = output.flatten_all().and_then(|flat| flat.to_vec1::<f32>())?;
            record.extend(flat);
        }
        if record.len() != self.layout.record() {
            let reason = format!(
                "expected {} values an image, found {}",
                self.layout.record(),
                record.len()
            );
            return Err(Error::failed("distill.teacher", reason));
        }
        Ok(record)
    }
}

/// The outputs that the terms of `config` compare with.
fn wanted(config: &TrainConfig, distill: &DistillConfig) -> Wanted {
    let relation = distill.has(Term::Relation);
    Wanted {
        cls: config.has_dino()
            || distill.has(Term::Cls)
            || distill.logits_are_prototypes()
            || (relation && distill.offer.cls > 0),
        patch: config.has_ibot() || distill.has(Term::Patch),
        patch_mean: distill.has(Term::PatchMean) || (relation && distill.offer.cls == 0),
        scores: distill.has(Term::Logits) && !distill.logits_are_prototypes(),
    }
}

/// Everything that decides what is in the cache.
fn cache_key(
    config: &TrainConfig,
    teacher: &dyn FrozenTeacher,
    fit: &PixelFit,
    layout: &Layout,
    source: &dyn Source,
) -> Result<serde_json::Value> {
    let facts = teacher.facts();
    Ok(json!({
        "version": 2,
        "teacher_sha256": facts.sha256,
        "engine": facts.engine,
        "normalisation": facts.normalisation,
        "side": fit.side(),
        "values": layout.values,
        "crops": config.crops,
        "decode": decoding_of(&config.data.loader.decode())?,
        "seed": config.seed,
        "source": SourceIdentity::from_source(source).without_labels(),
    }))
}

impl Layout {
    fn new(config: &TrainConfig, distill: &DistillConfig, wanted: &Wanted, grid: Grid) -> Self {
        let offer = &distill.offer;
        let of = |wanted: bool, values: usize| if wanted { values } else { 0 };
        Self {
            crops: config.crops.global.count,
            values: [
                of(wanted.cls, offer.cls),
                of(wanted.patch, grid.patches() * offer.patch),
                of(wanted.patch_mean, offer.patch_mean),
                of(wanted.scores, offer.classes),
            ],
        }
    }

    /// Values of a record.
    fn record(&self) -> usize {
        self.crops * self.values.iter().sum::<usize>()
    }

    /// The outputs of a batch from its images' records.
    fn assemble(
        &self,
        records: &[Vec<f32>],
        grid: Grid,
        device: &Device,
    ) -> candle_core::Result<TeacherFeatures> {
        let rows = self.crops * records.len();
        let mut start = 0;
        let mut outputs = Vec::with_capacity(self.values.len());
        for values in self.values {
            let mut all = Vec::with_capacity(rows * values);
            for crop in 0..self.crops {
                for record in records {
                    all.extend_from_slice(&record[start + crop * values..][..values]);
                }
            }
            start += self.crops * values;
            outputs.push(match values {
                0 => None,
                _ => Some(Tensor::from_vec(all, (rows, values), device)?),
            });
        }
        let mut outputs = outputs.into_iter();
        let mut next = || outputs.next().flatten();
        let (cls, patch, patch_mean, scores) = (next(), next(), next(), next());
        let patch = match patch {
            None => None,
            Some(tokens) => {
                let width = tokens.dim(1)? / grid.patches();
                Some((tokens.reshape((rows, grid.patches(), width))?, grid))
            }
        };
        Ok(TeacherFeatures {
            cls,
            patch,
            patch_mean,
            scores,
        })
    }
}
