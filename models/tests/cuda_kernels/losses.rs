//! Cross-entropies, and the rows that they are chosen by.

use candle_core::{DType, Var};
use macula_models::ops::cuda::emulated;
use macula_models::ops::{gather_rows, product_cross_entropy, soft_cross_entropy};

use crate::cuda_emulation::launcher;
use crate::{SINGLE, SIZES, check, random, values};

#[test]
#[ignore = "needs a C++ compiler"]
fn cross_entropies_and_chosen_rows() {
    for (rows, classes) in [(1, 1), (1, 7), (3, 33), (5, 1000), (2, 5000), (70, 16)] {
        for temperature in [1., 0.25] {
            let inputs = [random(1, &[rows, classes])];
            let targets = random(2, &[rows, classes]).abs().unwrap();
            let what = format!("soft_cross_entropy [{rows}, {classes}]");
            check(&what, &inputs, SINGLE, &|x| {
                soft_cross_entropy(&x[0], &targets, None, temperature)
            });
        }
        let targets = random(3, &[2, classes]).abs().unwrap();
        let chosen: Vec<u32> = (0..rows as u32).map(|row| row % 2).collect();
        let inputs = [random(1, &[rows, 3]), random(2, &[classes, 3])];
        let what = format!("product_cross_entropy [{rows}, 3] x [{classes}, 3]");
        check(&what, &inputs, SINGLE, &|x| {
            product_cross_entropy(&x[0], &x[1], &targets, Some(&chosen), 0.5, DType::F32)
        });
    }
    for (rows, width) in SIZES {
        let chosen: Vec<u32> = (0..2 * rows as u32 + 1)
            .map(|i| i * 7919 % rows as u32 / 2)
            .collect();
        let what = format!("gather_rows [{rows}, {width}]");
        check(&what, &[random(1, &[rows, width])], SINGLE, &|x| {
            gather_rows(&x[0], &chosen)
        });
    }
    // No row at all is no launch.
    let none = emulated(launcher(), || gather_rows(&random(1, &[3, 4]), &[])).unwrap();
    assert_eq!(none.dims(), [0, 4]);
}

/// The products' gradient takes the place of the logits, which a second backward pass must compute anew.
#[test]
#[ignore = "needs a C++ compiler"]
fn two_backward_passes_agree() {
    let points = Var::from_tensor(&random(1, &[4, 3])).unwrap();
    let (prototypes, targets) = (random(2, &[6, 3]), random(3, &[4, 6]));
    emulated(launcher(), || {
        let loss = product_cross_entropy(&points, &prototypes, &targets, None, 0.5, DType::F32).unwrap();
        let [first, second] = [(); 2].map(|()| {
            let grads = loss.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&prototypes).is_none());
            values(grads.get(&points).unwrap())
        });
        assert_eq!(first, second);
    });
}
