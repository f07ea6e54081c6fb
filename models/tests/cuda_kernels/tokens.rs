//! From pixels to the tokens of the first block.

use candle_core::{DType, Device, Tensor, Var};
use macula_models::ops::cuda::emulated;
use macula_models::ops::{SpecialTokens, assemble_tokens, composed, linear, patch_rows};

use crate::cuda_emulation::launcher;
use crate::{SINGLE, check, random, values};

#[test]
#[ignore = "needs a C++ compiler"]
fn token_assembly() {
    for (batch, count, registers, width) in [(1, 1, 0, 1), (2, 5, 4, 7), (5, 9, 1, 130), (6, 70, 0, 33)] {
        let masks: Vec<u8> = (0..batch * count).map(|place| u8::from(place % 3 == 0)).collect();
        let masks = Tensor::from_vec(masks, (batch, count), &Device::Cpu).unwrap();
        for masks in [None, Some(&masks)] {
            let mut inputs = vec![
                random(1, &[batch, count, width]),
                random(2, &[1, 1 + count, width]),
                random(3, &[1, 1, width]),
            ];
            inputs.extend((registers > 0).then(|| random(4, &[1, registers, width])));
            inputs.extend(masks.map(|_| random(5, &[1, width])));
            let what = format!(
                "[{batch}, 1 + {registers} + {count}, {width}], masks {}",
                masks.is_some()
            );
            check(&what, &inputs, SINGLE, &|x| {
                let special = SpecialTokens {
                    cls: &x[2],
                    registers: (registers > 0).then(|| &x[3]),
                    mask: masks.map(|_| &x[x.len() - 1]),
                };
                assemble_tokens(&x[0], &x[1], special, masks)
            });
        }
    }
}

/// To the bit, with zeros behind the values of a patch; and the embedding made of them.
#[test]
#[ignore = "needs a C++ compiler"]
fn patches_as_rows() {
    for (batch, channels, patch, rows, columns) in [
        (1, 1, 1, 1, 1),
        (2, 3, 14, 2, 3),
        (3, 3, 4, 5, 1),
        (1, 2, 5, 3, 4),
        (2, 1, 16, 1, 2),
    ] {
        let pixels = random(1, &[batch, channels, patch * rows, patch * columns]);
        let depth = channels * patch * patch;
        let padded = depth.next_multiple_of(8);
        let weight = random(2, &[7, depth]);
        for dtype in [DType::F32, DType::BF16] {
            let expected = composed(|| patch_rows(&pixels, patch, dtype)).unwrap();
            assert_eq!(expected.dims(), [batch, rows * columns, depth]);
            let found = emulated(launcher(), || patch_rows(&pixels, patch, dtype)).unwrap();
            assert_eq!(
                (found.dims(), found.dtype()),
                (&[batch, rows * columns, padded][..], dtype)
            );
            let own = found.narrow(2, 0, depth).unwrap();
            assert_eq!(values(&own), values(&expected.to_dtype(dtype).unwrap()));
            let beyond = found.narrow(2, depth, padded - depth).unwrap();
            assert!(values(&beyond).iter().all(|&value| value == 0.));
        }
        check("patches and their weights", &[weight], SINGLE, &|x| {
            let patches = patch_rows(&pixels, patch, DType::F32)?;
            let weight = x[0].pad_with_zeros(1, 0, patches.dim(2)? - depth)?;
            linear(&patches.to_dtype(x[0].dtype())?, &weight, None, x[0].dtype())
        });
    }
    let tracked = Var::from_tensor(&random(1, &[1, 1, 4, 4])).unwrap();
    let found = emulated(launcher(), || patch_rows(&tracked, 3, DType::F32));
    assert!(
        found
            .unwrap_err()
            .to_string()
            .contains("multiples of 3, found 4 x 4")
    );
    let found = emulated(launcher(), || patch_rows(&tracked, 2, DType::BF16)).unwrap();
    assert_eq!((found.dims(), found.dtype()), (&[1, 4, 4][..], DType::F32));
}
