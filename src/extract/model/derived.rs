//! Outputs made of a model's own: several side by side (`cls+patch_mean`), patch tokens pooled by generalised mean
//! (`patch_gem`), rows of unit length.

use rayon::prelude::*;

use super::FeatureModel;
use crate::extract::OutputSpec;
use crate::{Error, Result};

/// Name of the pooled patch tokens.
const GEM: &str = "patch_gem";
/// Its exponent (Radenovic et al. 2019, section 3.2).
const GEM_POWER: f64 = 3.;
/// Least value that is raised to it, as there.
const GEM_MIN: f64 = 1e-6;

/// One part of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    /// Place of the model's own output.
    base: usize,
    pooled: bool,
}

/// A model whose outputs are made of another's.
pub struct DerivedModel {
    inner: Box<dyn FeatureModel>,
    terms: Vec<Vec<Term>>,
    outputs: Vec<OutputSpec>,
    normalize: bool,
    /// The inner model's outputs of the images at hand.
    values: Vec<Vec<f32>>,
}

/// Whether one of `names` is not a model's own output.
pub(super) fn is_derived<S: AsRef<str>>(names: &[S]) -> bool {
    names.iter().any(|name| {
        let name = name.as_ref();
        name.contains('+') || name == GEM
    })
}

/// The outputs of a model that `names` are made of, each once.
pub(super) fn bases<S: AsRef<str>>(names: &[S]) -> Vec<String> {
    let mut bases: Vec<String> = Vec::new();
    for term in names.iter().flat_map(|name| name.as_ref().split('+')) {
        let base = if term == GEM { "patch" } else { term };
        if !bases.iter().any(|known| known == base) {
            bases.push(base.to_owned());
        }
    }
    bases
}

impl DerivedModel {
    /// `names` of the outputs of `inner`, which has [`bases`] of them.
    ///
    /// # Errors
    /// A term that the model does not give.
    pub(super) fn new<S: AsRef<str>>(inner: Box<dyn FeatureModel>, names: &[S]) -> Result<Self> {
        let available = inner.outputs().to_vec();
        let term = |text: &str| {
            let (name, pooled) = if text == GEM {
                ("patch", true)
            } else {
                (text, false)
            };
            let base = available.iter().position(|output| output.name == name);
            let base = base.ok_or_else(|| {
                Error::setting(
                    "output",
                    format!("expected outputs of the model between `+`, found `{text}`"),
                )
            })?;
            Ok(Term { base, pooled })
        };
        let terms: Vec<Vec<Term>> = names
            .iter()
            .map(|name| name.as_ref().split('+').map(term).collect())
            .collect::<Result<_>>()?;
        let width = |term: &Term| match term.pooled {
            true => available[term.base].shape.last().copied().unwrap_or(1),
            false => available[term.base].width(),
        };
        let outputs = names
            .iter()
            .zip(&terms)
            .map(|(name, terms)| OutputSpec {
                name: name.as_ref().to_owned(),
                shape: match terms.as_slice() {
                    [one] if !one.pooled => available[one.base].shape.clone(),
                    terms => vec![terms.iter().map(width).sum()],
                },
            })
            .collect();
        Ok(Self {
            values: vec![Vec::new(); available.len()],
            inner,
            terms,
            outputs,
            normalize: false,
        })
    }

    /// All outputs of `inner`, each vector brought to length 1: of patch tokens every token.
    pub fn normalized(inner: Box<dyn FeatureModel>) -> Self {
        let outputs = inner.outputs().to_vec();
        let terms = (0..outputs.len()).map(|base| vec![Term { base, pooled: false }]);
        Self {
            values: vec![Vec::new(); outputs.len()],
            terms: terms.collect(),
            outputs,
            inner,
            normalize: true,
        }
    }
}

impl FeatureModel for DerivedModel {
    fn outputs(&self) -> &[OutputSpec] {
        &self.outputs
    }

    fn describe(&self) -> serde_json::Value {
        let mut description = self.inner.describe();
        if self.normalize
            && let Some(fields) = description.as_object_mut()
        {
            fields.insert("normalized".to_owned(), true.into());
        }
        description
    }

    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        self.values.iter_mut().for_each(Vec::clear);
        self.inner.run(pixels, n, &mut self.values)?;
        let specs = self.inner.outputs();
        for ((terms, spec), out) in self.terms.iter().zip(&self.outputs).zip(outputs) {
            let (start, width) = (out.len(), spec.width());
            out.resize(start + n * width, 0.);
            let rows = out[start..].par_chunks_exact_mut(width.max(1)).enumerate();
            rows.for_each(|(row, out)| {
                let mut filled = 0;
                for term in terms {
                    let (base, spec) = (&self.values[term.base], &specs[term.base]);
                    let values = &base[row * spec.width()..(row + 1) * spec.width()];
                    let dim = spec.shape.last().copied().unwrap_or(1);
                    let len = if term.pooled { dim } else { values.len() };
                    let part = &mut out[filled..filled + len];
                    match term.pooled {
                        true => generalised_mean(values, part),
                        false => part.copy_from_slice(values),
                    }
                    filled += len;
                }
                if self.normalize {
                    let dim = spec.shape.last().copied().unwrap_or(1).max(1);
                    out.chunks_exact_mut(dim).for_each(to_unit_length);
                }
            });
        }
        Ok(())
    }
}

/// `mean(max(x, least)^3)^(1/3)` over tokens [N, D] for each dimension: [D].
fn generalised_mean(tokens: &[f32], out: &mut [f32]) {
    let width = out.len().max(1);
    let mut sums = vec![0f64; width];
    for token in tokens.chunks_exact(width) {
        for (sum, &value) in sums.iter_mut().zip(token) {
            *sum += f64::from(value).max(GEM_MIN).powf(GEM_POWER);
        }
    }
    let count = (tokens.len() / width).max(1) as f64;
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (sum / count).powf(1. / GEM_POWER) as f32;
    }
}

/// Length 1; a vector of zeros stays.
fn to_unit_length(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1. / squares.sqrt().max(1e-12);
    for value in vector {
        *value = (f64::from(*value) * scale) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the first pixel of each image as `cls` [1] and four pixels as `patch` [2, 2].
    struct Fake(Vec<OutputSpec>);

    impl Fake {
        fn boxed() -> Box<dyn FeatureModel> {
            let spec = |name: &str, shape: &[usize]| OutputSpec {
                name: name.into(),
                shape: shape.to_vec(),
            };
            Box::new(Self(vec![spec("cls", &[1]), spec("patch", &[2, 2])]))
        }
    }

    impl FeatureModel for Fake {
        fn outputs(&self) -> &[OutputSpec] {
            &self.0
        }

        fn describe(&self) -> serde_json::Value {
            serde_json::json!({ "kind": "fake" })
        }

        fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
            for image in pixels.chunks_exact(pixels.len() / n) {
                outputs[0].push(image[0]);
                outputs[1].extend_from_slice(&image[..4]);
            }
            Ok(())
        }
    }

    #[test]
    fn outputs_stand_side_by_side_and_are_pooled() {
        let names = ["patch_gem", "cls+patch_gem+cls", "patch"];
        assert!(is_derived(&names) && !is_derived(&["cls", "patch"]));
        assert_eq!(bases(&names), ["patch", "cls"]);
        let mut model = DerivedModel::new(Fake::boxed(), &names).unwrap();
        let shapes: Vec<&[usize]> = model.outputs().iter().map(|o| o.shape.as_slice()).collect();
        assert_eq!(shapes, [&[2][..], &[4], &[2, 2]]);
        let mut outputs = vec![vec![9.], Vec::new(), Vec::new()];
        // Two images; dimension 0 has 1 and 3, dimension 1 has -5 (as good as 0) and 2.
        let pixels = [1., -5., 3., 2., 2., 2., 2., 2.];
        model.run(&pixels, 2, &mut outputs).unwrap();
        let gem = [14f32.cbrt(), 4f32.cbrt(), 2., 2.];
        assert_eq!(outputs[0][0], 9.);
        for (found, expected) in outputs[0][1..].iter().zip(gem) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(outputs[1][0], 1.);
        assert_eq!(outputs[1][3], 1.);
        assert_eq!(outputs[1][4..], [2.; 4]);
        assert_eq!(outputs[2], pixels);
        let error = DerivedModel::new(Fake::boxed(), &["cls+other"]).err().unwrap();
        assert!(error.to_string().contains("found `other`"), "{error}");
    }

    #[test]
    fn pooled_tokens_are_as_wide_as_one() {
        let mut fake = Fake::boxed();
        assert_eq!(fake.outputs().len(), 2);
        let spec = |name: &str, shape: &[usize]| OutputSpec {
            name: name.into(),
            shape: shape.to_vec(),
        };
        // Four tokens of one value.
        fake = Box::new(Fake(vec![spec("cls", &[1]), spec("patch", &[4, 1])]));
        let mut model = DerivedModel::new(fake, &["patch_gem+cls"]).unwrap();
        assert_eq!(model.outputs()[0].shape, [2]);
        let mut outputs = vec![Vec::new()];
        model.run(&[1., 2., 3., 0.], 1, &mut outputs).unwrap();
        assert!((outputs[0][0] - 9f32.cbrt()).abs() < 1e-6, "{outputs:?}");
        assert_eq!(outputs[0][1..], [1.]);
    }

    #[test]
    fn every_vector_gets_length_one() {
        let mut model = DerivedModel::normalized(Fake::boxed());
        assert_eq!(model.describe()["normalized"], true);
        let mut outputs = vec![Vec::new(); 2];
        model.run(&[-3., 4., 0., 0.], 1, &mut outputs).unwrap();
        assert_eq!(outputs[0], [-1.]);
        assert_eq!(outputs[1], [-0.6, 0.8, 0., 0.]);
    }
}
