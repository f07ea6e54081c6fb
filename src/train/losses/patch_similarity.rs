//! How alike the patches of an image are to each other, held to what another network says of the same image: dense features that
//! must not lose their edges while class tokens learn (Siméoni et al. 2025, DINOv3, section 4; Yeo et al. 2025, PaKA,
//! arXiv 2509.05606).

use candle_core::{D, DType, Result, Tensor, bail};
use macula_models::ops;
use serde::{Deserialize, Serialize};

/// Keeps the length of a constant image's kernel away from 0.
const EPS: f64 = 1e-6;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchSimilarity {
    /// The mean squared difference of the cosines of all pairs of patches, 0 to 4 (DINOv3's Gram anchoring).
    Gram,
    /// `1 - CKA`, centred kernel alignment of the products of all pairs, 0 to 2: which patches belong together, whatever the scale of
    /// their features (PaKA).
    KernelAlignment,
}

/// The mean over images of how far the similarities of `student` [B, N, D] are from those of `other` [B, N, E]. Only the student
/// gets a gradient.
///
/// # Errors
/// Shapes that do not fit, no patch.
pub fn patch_similarity_loss(student: &Tensor, other: &Tensor, measure: PatchSimilarity) -> Result<Tensor> {
    let (batch, patches, _) = student.dims3()?;
    let found = other.dims3()?;
    if (found.0, found.1) != (batch, patches) || batch * patches == 0 {
        bail!(
            "patch similarity: expected {batch} x {patches} patches, at least one, of both networks, found {} x {}",
            found.0,
            found.1
        );
    }
    let student = student.to_dtype(DType::F32)?;
    let other = other.detach().to_dtype(DType::F32)?;
    match measure {
        PatchSimilarity::Gram => {
            let cosines = |tokens| products(&ops::l2_normalize(tokens, 1e-12)?);
            (cosines(&student)? - cosines(&other)?)?.sqr()?.mean_all()
        }
        PatchSimilarity::KernelAlignment => {
            let kernel = |tokens| centred(&products(tokens)?)?.flatten_from(1); // [B, N N]
            let [student, other] = [kernel(&student)?, kernel(&other)?];
            let length = |kernel: &Tensor| (kernel.sqr()?.sum(D::Minus1)? + EPS)?.sqrt();
            let shared = (&student * &other)?.sum(D::Minus1)?;
            let alignment = (shared / (length(&student)? * length(&other)?)?)?;
            alignment.mean_all()?.affine(-1., 1.)
        }
    }
}

/// Products of all pairs of `tokens` [B, N, D] of an image: [B, N, N].
fn products(tokens: &Tensor) -> Result<Tensor> {
    tokens.matmul(&tokens.transpose(1, 2)?.contiguous()?)
}

/// `kernel` [B, N, N] as if the tokens had mean 0: rows and columns without their means.
fn centred(kernel: &Tensor) -> Result<Tensor> {
    let rows = kernel.mean_keepdim(D::Minus1)?;
    let centred = kernel.broadcast_sub(&rows)?;
    let columns = centred.mean_keepdim(1)?;
    centred.broadcast_sub(&columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, values};
    use candle_core::{Device, Var};

    const MEASURES: [PatchSimilarity; 2] = [PatchSimilarity::Gram, PatchSimilarity::KernelAlignment];

    fn tokens<const B: usize>(rows: &[[[f32; 2]; 3]; B]) -> Tensor {
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    fn right_angles() -> Tensor {
        tokens(&[[[2., 0.], [0., 3.], [-1., 0.]], [[1., 1.], [1., -1.], [0.5, 0.]]])
    }

    #[test]
    fn turned_and_scaled_features_are_as_alike() {
        let angle = 0.7f32;
        let turn = Tensor::new(
            &[[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]],
            &Device::Cpu,
        )
        .unwrap();
        let features = right_angles();
        let turned = features.broadcast_matmul(&turn).unwrap();
        let turned = (turned * 5.).unwrap();
        for measure in MEASURES {
            let found = patch_similarity_loss(&turned, &features, measure).unwrap();
            assert!(values(&found)[0].abs() < 1e-5, "{measure:?}: {found}");
        }
    }

    #[test]
    fn known_values() {
        // Cosines of the first image are 1, 0, -1 | 0, 1, 0 | -1, 0, 1; of three equal patches all 1: differences of 1 at four pairs and
        // of 2 at two.
        let first = right_angles().narrow(0, 0, 1).unwrap();
        let equal = tokens(&[[[1., 2.]; 3]]);
        let found = patch_similarity_loss(&first, &equal, PatchSimilarity::Gram).unwrap();
        assert_scalar("gram", &found, (4. + 2. * 4.) / 9., 1e-6);
        // Without their mean, (2, 0), (0, 3), (-1, 0) are (5, -3), (-1, 6), (-4, -3) thirds, and (0, 1), (0, -1), (0, 0) are
        // themselves: kernels with products a, of which those along the second axis alone are b.
        let line = tokens(&[[[0., 1.], [0., -1.], [0., 0.]]]);
        let x = [[5., -3.], [-1., 6.], [-4., -3.]];
        let y = [1., -1., 0.];
        let (mut shared, mut own, mut other) = (0f64, 0f64, 0f64);
        for i in 0..3 {
            for j in 0..3 {
                let a: f64 = (x[i][0] * x[j][0] + x[i][1] * x[j][1]) / 9.;
                let b: f64 = y[i] * y[j];
                shared += a * b;
                own += a * a;
                other += b * b;
            }
        }
        let expected = 1. - shared / (own * other).sqrt();
        let found = patch_similarity_loss(&first, &line, PatchSimilarity::KernelAlignment).unwrap();
        assert_scalar("kernel alignment", &found, expected, 1e-5);
    }

    #[test]
    fn gradients_are_those_of_finite_differences_and_the_students_alone() {
        let other = Var::from_tensor(&tokens(&[
            [[0.3, -1.], [0.8, 0.4], [-0.2, 0.9]],
            [[1., 0.2], [-0.5, 0.6], [0.1, -0.7]],
        ]))
        .unwrap();
        let start = right_angles();
        for measure in MEASURES {
            let student = Var::from_tensor(&start).unwrap();
            let loss = patch_similarity_loss(&student, &other, measure).unwrap();
            let store = loss.backward().unwrap();
            assert!(store.get(&other).is_none());
            let at = |place: usize, by: f32| {
                let mut moved = start.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                moved[place] += by;
                let moved = Tensor::from_vec(moved, start.shape(), &Device::Cpu).unwrap();
                values(&patch_similarity_loss(&moved, &other, measure).unwrap())[0]
            };
            let slope = |place| (at(place, 1e-2) - at(place, -1e-2)) / 2e-2;
            let slopes: Vec<f64> = (0..start.elem_count()).map(slope).collect();
            let expected = Tensor::from_vec(slopes, start.shape(), &Device::Cpu).unwrap();
            let found = store.get(&student).unwrap();
            assert_close(&format!("{measure:?}"), found, &expected, 2e-3);
        }
    }

    #[test]
    fn a_flat_image_has_a_finite_gradient() {
        let student = Var::from_tensor(&tokens(&[[[1., 1.]; 3]])).unwrap();
        for measure in MEASURES {
            let loss = patch_similarity_loss(&student, &right_angles().narrow(0, 0, 1).unwrap(), measure);
            let store = loss.unwrap().backward().unwrap();
            let slopes = values(store.get(&student).unwrap());
            assert!(
                slopes.iter().all(|slope| slope.is_finite()),
                "{measure:?}: {slopes:?}"
            );
        }
    }

    #[test]
    fn other_patches_are_refused() {
        let short = right_angles().narrow(1, 0, 2).unwrap();
        let error = patch_similarity_loss(&right_angles(), &short, PatchSimilarity::Gram).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("patch similarity: expected 2 x 3 patches") && error.contains("found 2 x 2"),
            "{error}"
        );
    }
}
