//! How a graph takes images: which of its inputs they are, in which order of axes and of which type, and what its other
//! inputs are given.

use std::borrow::Cow;
use std::fmt;

use half::f16;
use ort::session::SessionInputValue;
use ort::value::{Tensor, TensorRef};

use super::tensors::{Dim, TensorInfo};

/// The order of the axes of a batch of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axes {
    /// Batch, channels, height, width.
    ChannelsFirst,
    /// Batch, height, width, channels.
    ChannelsLast,
}

/// The type of the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Samples {
    F32,
    F16,
    /// Levels from 0 to 255.
    U8,
}

/// What a graph takes.
#[derive(Debug)]
pub(super) struct Inputs {
    image: TensorInfo,
    axes: Axes,
    samples: Samples,
    constants: Vec<Constant>,
}

/// An input that is the same whatever the images show.
#[derive(Debug)]
struct Constant {
    name: String,
    element: Element,
    dims: Vec<Size>,
    /// 0 or 1.
    value: u8,
}

#[derive(Debug, Clone, Copy)]
enum Element {
    Bool,
    I64,
    I32,
    F32,
}

/// One dimension of a constant.
#[derive(Debug, Clone, Copy)]
enum Size {
    Fixed(usize),
    Batch,
    Height,
    Width,
}

/// The shape that a constant must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One value.
    Switch,
    /// A value a pixel, `[batch, height, width]`.
    Pixels,
    /// A value a patch, `[batch, N]` with N fixed.
    Patches,
}

/// The inputs beside the images that have one value for a picture that is seen whole: transformers' names.
const KNOWN: [(&str, Form, u8); 9] = [
    // The position table as it is: an image of another size than the table's is then the graph's own error.
    ("interpolate_pos_encoding", Form::Switch, 0),
    ("output_attentions", Form::Switch, 0),
    ("output_hidden_states", Form::Switch, 0),
    ("return_dict", Form::Switch, 0),
    ("training", Form::Switch, 0),
    ("is_training", Form::Switch, 0),
    // No pixel is padding, no patch is masked.
    ("pixel_mask", Form::Pixels, 1),
    ("pixel_attention_mask", Form::Pixels, 1),
    ("bool_masked_pos", Form::Patches, 0),
];

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.image.fmt(f)
    }
}

impl Inputs {
    /// Finds the images among `inputs`: the one input of four axes of floats or bytes, or of several the one that is called
    /// `pixel_values`. The others must be [`KNOWN`].
    ///
    /// # Errors
    /// A reason that names the input for which there is no value.
    pub(super) fn new(inputs: Vec<TensorInfo>) -> Result<Self, String> {
        let described: Vec<String> = inputs.iter().map(TensorInfo::to_string).collect();
        let is_known = |input: &TensorInfo| KNOWN.iter().any(|(name, ..)| *name == input.name);
        let (images, others): (Vec<_>, Vec<_>) = inputs
            .into_iter()
            .partition(|input| samples(input).is_some() && input.dims.len() == 4 && !is_known(input));
        let place = match images.len() {
            1 => Some(0),
            _ => images.iter().position(|image| image.name == "pixel_values"),
        };
        let Some(place) = place else {
            let found = match described.is_empty() {
                true => "no input".to_owned(),
                false => described.join(" and "),
            };
            return Err(format!(
                "expected one input of images, float or uint8 [batch, channels, height, width] or \
                 [batch, height, width, channels], found {found}"
            ));
        };
        let mut images = images;
        let image = images.swap_remove(place);
        let constants = others
            .into_iter()
            .chain(images)
            .map(|input| constant(&input))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            axes: axes(&image.dims),
            samples: samples(&image).unwrap_or(Samples::F32),
            image,
            constants,
        })
    }

    /// The images as the file describes them.
    pub(super) fn image(&self) -> &TensorInfo {
        &self.image
    }

    /// Batch, channels, height and width, in this order.
    pub(super) fn dims(&self) -> [&Dim; 4] {
        let [first, second, third, fourth] = std::array::from_fn(|axis| &self.image.dims[axis]);
        match self.axes {
            Axes::ChannelsFirst => [first, second, third, fourth],
            Axes::ChannelsLast => [first, fourth, second, third],
        }
    }

    /// Whether the samples are levels from 0 to 255.
    pub(super) fn takes_levels(&self) -> bool {
        self.samples == Samples::U8
    }

    /// Refuses values that an input of halves would turn into infinity.
    pub(super) fn check_range(&self, batch: &[f32]) -> Result<(), String> {
        let beyond = |value: &&f32| value.is_finite() && f16::from_f32(**value).is_infinite();
        match (self.samples, batch.iter().find(beyond)) {
            (Samples::F16, Some(value)) => Err(format!(
                "input `{}`: expected values up to {} for f16, found {value}",
                self.image.name,
                f16::MAX
            )),
            _ => Ok(()),
        }
    }

    /// The values of one run for `batch`, `[B, C, H, W]` row-major.
    pub(super) fn values<'v>(
        &'v self,
        batch: &'v [f32],
        shape: [usize; 4],
    ) -> ort::Result<Vec<(Cow<'v, str>, SessionInputValue<'v>)>> {
        let (ordered, ordered_shape) = match self.axes {
            Axes::ChannelsFirst => (Cow::Borrowed(batch), shape),
            Axes::ChannelsLast => {
                let [n, channels, height, width] = shape;
                (
                    Cow::Owned(channels_last(batch, shape)),
                    [n, height, width, channels],
                )
            }
        };
        let image: SessionInputValue = match (self.samples, ordered) {
            (Samples::F32, Cow::Borrowed(values)) => {
                TensorRef::from_array_view((ordered_shape, values))?.into()
            }
            (Samples::F32, Cow::Owned(values)) => Tensor::from_array((ordered_shape, values))?.into(),
            (Samples::F16, values) => {
                let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
                Tensor::from_array((ordered_shape, halves))?.into()
            }
            (Samples::U8, values) => {
                // `as` cuts off at 0 and 255.
                let levels: Vec<u8> = values.iter().map(|value| value.round() as u8).collect();
                Tensor::from_array((ordered_shape, levels))?.into()
            }
        };
        let mut all = vec![(Cow::Borrowed(self.image.name.as_str()), image)];
        for constant in &self.constants {
            all.push((Cow::Borrowed(constant.name.as_str()), constant.tensor(shape)?));
        }
        Ok(all)
    }
}

impl Constant {
    /// The tensor beside a batch of `[B, C, H, W]`.
    fn tensor(&self, [batch, _, height, width]: [usize; 4]) -> ort::Result<SessionInputValue<'static>> {
        let size = |dim: &Size| match *dim {
            Size::Fixed(size) => size,
            Size::Batch => batch,
            Size::Height => height,
            Size::Width => width,
        };
        let shape: Vec<usize> = self.dims.iter().map(size).collect();
        let len = shape.iter().product();
        Ok(match self.element {
            Element::Bool => Tensor::from_array((shape, vec![self.value == 1; len]))?.into(),
            Element::I64 => Tensor::from_array((shape, vec![i64::from(self.value); len]))?.into(),
            Element::I32 => Tensor::from_array((shape, vec![i32::from(self.value); len]))?.into(),
            Element::F32 => Tensor::from_array((shape, vec![f32::from(self.value); len]))?.into(),
        })
    }
}

fn samples(input: &TensorInfo) -> Option<Samples> {
    match input.element.as_str() {
        "f32" => Some(Samples::F32),
        "f16" => Some(Samples::F16),
        "u8" => Some(Samples::U8),
        _ => None,
    }
}

/// Where the channels are: the axis of three, else the one that a name or a size of 1 to 4 tells; first where nothing does.
fn axes(dims: &[Dim]) -> Axes {
    let is_three = |dim: &Dim| *dim == Dim::Fixed(3);
    let is_like_channels = |dim: &Dim| match dim {
        Dim::Fixed(size) => (1..=4).contains(size),
        Dim::Dynamic(name) => name.to_lowercase().contains("channel"),
    };
    let (second, fourth) = (&dims[1], &dims[3]);
    let last = if is_three(second) || is_three(fourth) {
        !is_three(second)
    } else {
        is_like_channels(fourth) && !is_like_channels(second)
    };
    if last {
        Axes::ChannelsLast
    } else {
        Axes::ChannelsFirst
    }
}

/// `[B, C, H, W]` to `[B, H, W, C]`.
fn channels_last(batch: &[f32], [_, channels, height, width]: [usize; 4]) -> Vec<f32> {
    let area = height * width;
    let image = |image: &[f32]| -> Vec<f32> {
        let pixel = |place: usize| (0..channels).map(move |channel| (channel, place));
        (0..area)
            .flat_map(pixel)
            .map(|(channel, place)| image[channel * area + place])
            .collect()
    };
    batch.chunks_exact(channels * area).flat_map(image).collect()
}

/// The constant for an input beside the images.
fn constant(input: &TensorInfo) -> Result<Constant, String> {
    let known = KNOWN.iter().find(|(name, ..)| *name == input.name);
    let names: Vec<&str> = KNOWN.iter().map(|(name, ..)| *name).collect();
    let &(_, form, value) = known.ok_or_else(|| {
        format!(
            "input `{input}`: expected images alone, or beside them only {}; there is no value to give it",
            names.join(", ")
        )
    })?;
    let element = match input.element.as_str() {
        "bool" => Element::Bool,
        "i64" => Element::I64,
        "i32" => Element::I32,
        "f32" => Element::F32,
        _ => return Err(format!("input `{input}`: expected bool, i64, i32 or f32")),
    };
    let of_axis = |axis: usize, dim: &Dim| match (dim, form, axis) {
        (Dim::Fixed(1) | Dim::Dynamic(_), Form::Switch, _) => Some(Size::Fixed(1)),
        (Dim::Fixed(_), Form::Switch, _) => None,
        (Dim::Fixed(size), ..) => Some(Size::Fixed(*size)),
        (Dim::Dynamic(_), _, 0) => Some(Size::Batch),
        (Dim::Dynamic(_), Form::Pixels, 1) => Some(Size::Height),
        (Dim::Dynamic(_), Form::Pixels, 2) => Some(Size::Width),
        _ => None,
    };
    let dims: Option<Vec<Size>> = input
        .dims
        .iter()
        .enumerate()
        .map(|(axis, dim)| of_axis(axis, dim))
        .collect();
    let rank = match form {
        Form::Switch => input.dims.len() <= 1,
        Form::Pixels => input.dims.len() == 3,
        Form::Patches => input.dims.len() == 2,
    };
    match dims.filter(|_| rank) {
        Some(dims) => Ok(Constant {
            name: input.name.clone(),
            element,
            dims,
            value,
        }),
        None => Err(format!(
            "input `{input}`: expected {}",
            match form {
                Form::Switch => "one value",
                Form::Pixels => "[batch, height, width]",
                Form::Patches => "[batch, N] with a fixed N",
            }
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, element: &str, dims: &[i64]) -> TensorInfo {
        let dim = |&size: &i64| match usize::try_from(size) {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Dynamic(String::new()),
        };
        TensorInfo {
            name: name.to_owned(),
            element: element.to_owned(),
            dims: dims.iter().map(dim).collect(),
        }
    }

    #[test]
    fn the_axis_of_channels_is_told_by_size_or_name() {
        let of = |dims: &[i64]| axes(&info("x", "f32", dims).dims);
        assert_eq!(of(&[-1, 3, 224, 224]), Axes::ChannelsFirst);
        assert_eq!(of(&[-1, 224, 224, 3]), Axes::ChannelsLast);
        assert_eq!(of(&[1, 3, 3, 3]), Axes::ChannelsFirst);
        assert_eq!(of(&[-1, -1, -1, 3]), Axes::ChannelsLast);
        assert_eq!(of(&[-1, -1, -1, -1]), Axes::ChannelsFirst);
        assert_eq!(of(&[-1, 64, 64, 1]), Axes::ChannelsLast);
        assert_eq!(of(&[-1, 1, 64, 64]), Axes::ChannelsFirst);
        let named = ["batch", "height", "width", "num_channels"].map(|name| Dim::Dynamic(name.to_owned()));
        assert_eq!(axes(&named), Axes::ChannelsLast);
    }

    #[test]
    fn values_beyond_halves_are_refused_where_the_input_takes_halves() {
        let of = |element: &str| Inputs::new(vec![info("pixel_values", element, &[-1, 3, -1, -1])]).unwrap();
        let batch = |value: f32| [0.5, -65504.0, value, f32::NAN];
        assert_eq!(of("f16").check_range(&batch(65504.0)), Ok(()));
        assert_eq!(of("f32").check_range(&batch(1e9)), Ok(()));
        let error = of("f16").check_range(&batch(-1e9)).unwrap_err();
        assert_eq!(
            error,
            "input `pixel_values`: expected values up to 65504 for f16, found -1000000000"
        );
    }

    #[test]
    fn axes_are_exchanged_image_by_image() {
        let batch: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let last = channels_last(&batch, [2, 3, 1, 2]);
        assert_eq!(last, [0., 2., 4., 1., 3., 5., 6., 8., 10., 7., 9., 11.]);
    }

    #[test]
    fn other_inputs_are_known_by_name_and_shape_or_refused_by_name() {
        let image = || info("pixel_values", "f32", &[-1, 3, -1, -1]);
        let with = |others: &[TensorInfo]| {
            let mut all = vec![image()];
            all.extend_from_slice(others);
            Inputs::new(all)
        };
        let known = [
            info("interpolate_pos_encoding", "bool", &[]),
            info("pixel_mask", "i64", &[-1, -1, -1]),
            info("bool_masked_pos", "bool", &[-1, 256]),
        ];
        assert_eq!(with(&known).unwrap().constants.len(), 3);
        for (other, words) in [
            (info("input_ids", "i64", &[-1, -1]), "`input_ids i64 [?, ?]`"),
            (
                info("bool_masked_pos", "bool", &[-1, -1]),
                "[batch, N] with a fixed N",
            ),
            (info("pixel_mask", "i64", &[-1, -1]), "[batch, height, width]"),
            (info("training", "str", &[]), "expected bool"),
            (info("interpolate_pos_encoding", "bool", &[2, 2]), "one value"),
        ] {
            let error = with(&[other]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        // Of two batches of images only the usual name tells which is meant, and then the other has no value.
        let both = with(&[info("depth", "f32", &[-1, 3, -1, -1])]).unwrap_err();
        assert!(both.starts_with("input `depth f32 [?, 3, ?, ?]`"), "{both}");
    }
}
