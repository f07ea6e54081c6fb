//! A model as dense tasks see it: windows of one size in, one feature a patch out.

use serde_json::{Value, json};

use super::{DenseRequest, request_error};
use crate::data::transform::Resize;
use crate::data::{Preprocess, Source};
use crate::extract::model::{self, FeatureModel, ModelOptions, OpenModel, OutputChoice, grid_of};
use crate::{Error, Result};

/// How a model's outputs become features of patches.
enum Reading {
    /// Patch tokens `[N, D]`, and class tokens `[D]` that every patch gets; side by side.
    Tokens,
    /// Pixels `[C, H, W]`, averaged over cells of this side.
    Pixels { channels: usize, cell: usize },
}

/// A frozen model with its windows.
pub(super) struct DenseModel {
    model: Box<dyn FeatureModel>,
    reading: Reading,
    /// Normalisation, filter and resize of images; without a crop.
    pub preprocess: Preprocess,
    /// Height and width of a window.
    pub window: (usize, usize),
    /// Rows and columns of patches in a window.
    pub grid: (usize, usize),
    /// Channels of a patch.
    pub dim: usize,
}

impl DenseModel {
    /// Opens the model of `request`; `cls` adds class tokens to the patches.
    pub(super) fn open(request: &DenseRequest, source: &dyn Source, cls: bool) -> Result<Self> {
        let options = ModelOptions {
            outputs: OutputChoice::Patches {
                layers: request.layers.clone(),
                cls,
            },
            ..request.options.clone()
        };
        let OpenModel { model, preprocess } = model::open(&request.model, source, &options)?;
        preprocess.need_rgb(&request.model)?;
        let window = preprocess
            .output_size()
            .ok_or_else(|| Error::setting("crop", "expected a size above 0, found none"))?;
        let (reading, grid, dim) = reading(&request.model, model.as_ref(), window, request.cell)?;
        let resize = match request.options.preprocess.resize {
            Some(Resize::Shorter(0)) => None,
            Some(resize) => Some(resize),
            None => Some(Resize::Shorter(window.0.min(window.1) as u32)),
        };
        Ok(Self {
            model,
            reading,
            preprocess: Preprocess {
                resize,
                crop: None,
                ..preprocess
            },
            window,
            grid,
            dim,
        })
    }

    /// Values of one window's features: rows * columns * dim.
    pub(super) fn window_len(&self) -> usize {
        self.grid.0 * self.grid.1 * self.dim
    }

    /// Features `[n, rows * columns, dim]` of windows `[n, 3, H, W]`.
    pub(super) fn features(&mut self, pixels: &[f32], n: usize, into: &mut Vec<f32>) -> Result<()> {
        let mut outputs = vec![Vec::new(); self.model.outputs().len()];
        self.model.run(pixels, n, &mut outputs)?;
        match self.reading {
            Reading::Tokens => self.side_by_side(&outputs, n, into),
            Reading::Pixels { channels, cell } => {
                let plane = self.window.0 * self.window.1;
                for image in outputs[0].chunks_exact(channels * plane) {
                    cells(image, channels, self.window, cell, into);
                }
            }
        }
        Ok(())
    }

    /// Every output's channels of a patch one after the other; an output without patches gives all of them the same.
    fn side_by_side(&self, outputs: &[Vec<f32>], n: usize, into: &mut Vec<f32>) {
        let patches = self.grid.0 * self.grid.1;
        let specs = self.model.outputs();
        for image in 0..n {
            for patch in 0..patches {
                for (spec, values) in specs.iter().zip(outputs) {
                    let width = spec.width();
                    let of_image = &values[image * width..(image + 1) * width];
                    match spec.shape.as_slice() {
                        [_, dim] => into.extend_from_slice(&of_image[patch * dim..(patch + 1) * dim]),
                        _ => into.extend_from_slice(of_image),
                    }
                }
            }
        }
    }

    /// What the model is and what it sees, for the result.
    pub(super) fn describe(&self, request: &DenseRequest) -> Value {
        let outputs: Vec<&str> = self
            .model
            .outputs()
            .iter()
            .map(|output| output.name.as_str())
            .collect();
        json!({
            "model": self.model.describe(),
            "layers": request.layers.to_string(),
            "outputs": outputs,
            "preprocess": self.preprocess,
            "window": [self.window.0, self.window.1],
            "grid": [self.grid.0, self.grid.1],
            "dim": self.dim,
        })
    }
}

/// How the outputs read, the grid of patches and the channels of one.
fn reading(
    file: &str,
    model: &dyn FeatureModel,
    window: (usize, usize),
    cell: u32,
) -> Result<(Reading, (usize, usize), usize)> {
    let outputs = model.outputs();
    if let [pixels] = outputs
        && let [channels, height, width] = *pixels.shape.as_slice()
    {
        let cell = cell as usize;
        if cell == 0 || height % cell != 0 || width % cell != 0 {
            return Err(request_error(
                "cell",
                format!("expected a divisor of the window's {height}x{width} pixels, found {cell}"),
            ));
        }
        return Ok((
            Reading::Pixels { channels, cell },
            (height / cell, width / cell),
            channels,
        ));
    }
    if cell != 1 {
        return Err(request_error(
            "cell",
            format!("is for --model pixels, found {file}"),
        ));
    }
    let tokens = |shape: &[usize]| match shape {
        [tokens, _] => Some(*tokens),
        _ => None,
    };
    let counts: Vec<usize> = outputs
        .iter()
        .filter_map(|output| tokens(&output.shape))
        .collect();
    let (Some(&first), true) = (counts.first(), counts.windows(2).all(|pair| pair[0] == pair[1])) else {
        let found: Vec<String> = outputs
            .iter()
            .map(|output| format!("{} {:?}", output.name, output.shape))
            .collect();
        return Err(Error::input(
            file,
            format!(
                "expected patch tokens [N, D] of one N, found {}",
                found.join(", ")
            ),
        ));
    };
    let grid = grid_of(first, window).ok_or_else(|| {
        let (height, width) = window;
        Error::input(
            file,
            format!("expected as many patch tokens as {height}x{width} pixels have patches, found {first}"),
        )
    })?;
    let dim = outputs
        .iter()
        .map(|output| output.shape.last().copied().unwrap_or(1))
        .sum();
    Ok((Reading::Tokens, grid, dim))
}

/// Appends the means `[rows * columns, C]` over square cells of `image` `[C, H, W]`.
fn cells(image: &[f32], channels: usize, (height, width): (usize, usize), cell: usize, into: &mut Vec<f32>) {
    let share = 1.0 / (cell * cell) as f32;
    for top in (0..height).step_by(cell) {
        for left in (0..width).step_by(cell) {
            for plane in image.chunks_exact(height * width).take(channels) {
                let rows = (top..top + cell).map(|y| &plane[y * width + left..y * width + left + cell]);
                into.push(rows.flatten().sum::<f32>() * share);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::OutputSpec;

    /// Gives each output's shape filled with numbers that count up.
    struct Counting(Vec<OutputSpec>);

    impl FeatureModel for Counting {
        fn outputs(&self) -> &[OutputSpec] {
            &self.0
        }

        fn describe(&self) -> Value {
            json!({ "kind": "test" })
        }

        fn run(&mut self, _: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
            for (place, (spec, out)) in self.0.iter().zip(outputs).enumerate() {
                out.extend((0..n * spec.width()).map(|i| (100 * place + i) as f32));
            }
            Ok(())
        }
    }

    fn counting(outputs: &[(&str, &[usize])]) -> Box<dyn FeatureModel> {
        let spec = |&(name, shape): &(&str, &[usize])| OutputSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
        };
        Box::new(Counting(outputs.iter().map(spec).collect()))
    }

    #[test]
    fn tokens_of_several_outputs_lie_side_by_side() {
        let model = counting(&[("patch", &[2, 2]), ("cls", &[1])]);
        let (reading, grid, dim) = reading("m.onnx", model.as_ref(), (4, 8), 1).unwrap();
        assert_eq!((grid, dim), ((1, 2), 3));
        let mut dense = DenseModel {
            model,
            reading,
            preprocess: Preprocess::imagenet(8, 8),
            window: (4, 8),
            grid,
            dim,
        };
        let mut out = Vec::new();
        dense.features(&[], 2, &mut out).unwrap();
        assert_eq!(
            out,
            [0.0, 1.0, 100.0, 2.0, 3.0, 100.0, 4.0, 5.0, 101.0, 6.0, 7.0, 101.0]
        );
    }

    #[test]
    fn cells_are_means_with_channels_together() {
        let image = [
            1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0,
        ];
        let mut out = Vec::new();
        cells(&image, 2, (2, 4), 2, &mut out);
        assert_eq!(out, [3.5, 0.0, 5.5, 1.0]);
        out.clear();
        cells(&image, 2, (2, 4), 1, &mut out);
        assert_eq!(out[..4], [1.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn grids_have_square_patches() {
        assert_eq!(grid_of(1369, (518, 518)), Some((37, 37)));
        assert_eq!(grid_of(12, (42, 56)), Some((3, 4)));
        assert_eq!(grid_of(257, (224, 224)), None); // with its class token
        assert_eq!(grid_of(0, (8, 8)), None);
        let error = |outputs: &[(&str, &[usize])], cell| {
            let model = counting(outputs);
            reading("m.onnx", model.as_ref(), (8, 8), cell)
                .err()
                .expect("an error")
                .to_string()
        };
        assert!(error(&[("patch", &[5, 3])], 1).contains("found 5"));
        assert!(error(&[("cls", &[5])], 1).contains("found cls [5]"));
        assert!(error(&[("patch", &[4, 3])], 2).starts_with("cell"));
        assert!(error(&[("pixels", &[3, 8, 8])], 3).contains("8x8 pixels, found 3"));
    }
}
