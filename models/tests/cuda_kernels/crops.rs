//! The crops of training.

use candle_core::{Device, Tensor};
use macula_models::ops::cuda::augment::{Change, Crop, CropTable, Weights, crops};
use macula_models::ops::cuda::emulated;

use crate::cuda_emulation::launcher;
use crate::values;

/// Two windows of a small image whose levels are written by hand. That crops are the processor's, however they are made, `macula`'s own
/// tests show.
#[test]
#[ignore = "needs a C++ compiler"]
fn crops_of_a_small_image() {
    // [3, 4], red its place, green 100 more, blue 10 times its place.
    let pixels: Vec<u8> = (0..12)
        .flat_map(|place| [place, 100 + place, 10 * place])
        .collect();
    let pixels = Tensor::from_vec(pixels, 36, &Device::Cpu).unwrap();
    // Rows of words that take the first and the second sample, and one that takes the mean of two.
    let one = 1 << 22;
    let words: Vec<u32> = vec![0, 1, one, 0, 1, 1, one, 0, 0, 2, one / 2, one / 2, 1, 1, one, 0];
    let words = Tensor::new(words, &Device::Cpu).unwrap();
    let taken = Weights { start: 0, words: 4 };
    let crop = Crop {
        start: 1,
        stride: 4,
        width: 2,
        height: 2,
        vertical_first: false,
        columns: taken,
        rows: taken,
        mirrored: false,
        changes: [None; 4],
        grey: false,
        blur: None,
        threshold: None,
    };
    let mut table = CropTable::new(2);
    table.push(&crop).unwrap();
    let other = Crop {
        start: 6,
        vertical_first: true,
        rows: Weights { start: 8, words: 4 },
        mirrored: true,
        changes: [None, Some(Change::Brightness(0.5)), None, None],
        threshold: Some(50),
        ..crop
    };
    table.push(&other).unwrap();
    let levels: Vec<f32> = (0..3 * 256).map(|entry| entry as f32).collect();
    let levels = Tensor::new(levels, &Device::Cpu).unwrap();
    let own = Tensor::new(table.words(), &Device::Cpu).unwrap();
    let shape = table.shape();
    let found = emulated(launcher(), || crops(&pixels, &own, &words, &levels, shape)).unwrap();
    assert_eq!(found.dims(), [2, 3, 2, 2]);
    let found = values(&found);
    assert_eq!(found[..4], [1., 2., 5., 6.]);
    assert_eq!(found[4..8], [101., 102., 105., 106.].map(|level| 256. + level));
    assert_eq!(found[8..12], [10., 20., 50., 60.].map(|level| 512. + level));
    // Rows 6 and 10 are halved to 8, as are 7 and 11 to 9; then half of it, mirrored. From 50 on levels are inverted.
    assert_eq!(found[12..16], [4., 4., 5., 5.]);
    assert_eq!(
        found[16..20],
        [255. - 54., 255. - 54., 255. - 55., 255. - 55.].map(|level| 256. + level)
    );
    assert_eq!(
        found[20..24],
        [45., 40., 255. - 55., 255. - 50.].map(|level| 512. + level)
    );
    let error = emulated(launcher(), || crops(&levels, &own, &words, &levels, shape)).unwrap_err();
    assert!(
        error.to_string().contains("pixels of U8, found [768] of F32"),
        "{error}"
    );
    let error = emulated(launcher(), || crops(&pixels, &words, &words, &levels, shape)).unwrap_err();
    assert!(
        error.to_string().contains("expected 56 words of U32, found [16]"),
        "{error}"
    );
}
