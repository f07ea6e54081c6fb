//! NumPy's `.npy` (NEP 1, versions 1 to 3): one array of `[rows, columns]`, `[rows, columns, bands]`, or, where that is stated,
//! `[bands, rows, columns]`.

use super::{Layout, Samples, Target, counted};
use crate::data::bands::BandImage;
use crate::data::decode::{DecodeError, DecodeOptions, check_size};

pub(super) const NAME: &str = "npy";
const MAGIC: &[u8] = b"\x93NUMPY";
/// The types that are read, as headers name them without the order of bytes.
const TYPES: &str = "u1, u2, u4, i2, i4, f4, f8";

/// Whether the first bytes announce an array.
pub(in crate::data::decode) fn is_meant(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

pub(super) fn read(
    bytes: &[u8],
    options: &DecodeOptions,
    target: &mut Target,
) -> Result<BandImage, DecodeError> {
    let (header, data) = split(bytes).ok_or_else(|| target.refuse("cut short within its header"))?;
    let header = Header::read(header).map_err(|reason| target.refuse(reason))?;
    let layout = layout(&header, target)?;
    check_size(NAME, layout.width, layout.height, options)?;
    let mut words = Words {
        data,
        big_endian: header.big_endian,
        layout,
        target,
    };
    match header.kind.as_str() {
        "u1" => words.scaled(|[byte]| f64::from(byte), Samples::BYTES),
        "u2" => words.scaled(|word| f64::from(u16::from_le_bytes(word)), Samples::unsigned(16)),
        "u4" => words.scaled(|word| f64::from(u32::from_le_bytes(word)), Samples::unsigned(32)),
        "i2" => words.scaled(|word| f64::from(i16::from_le_bytes(word)), Samples::signed(16)),
        "i4" => words.scaled(|word| f64::from(i32::from_le_bytes(word)), Samples::signed(32)),
        "f4" => words.scaled(|word| f64::from(f32::from_le_bytes(word)), Samples::float(32)),
        "f8" => words.scaled(f64::from_le_bytes, Samples::float(64)),
        other => {
            let reason = format!("expected samples of type {TYPES}, found {other}");
            Err(words.target.refuse(reason))
        }
    }
}

/// The header's text, and what comes after it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (start, len): (usize, usize) = match rest.first()? {
        1 => (
            4,
            usize::from(u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?)),
        ),
        _ => (6, u32::from_le_bytes(rest.get(2..6)?.try_into().ok()?) as usize),
    };
    let end = start.checked_add(len)?;
    Some((rest.get(start..end)?, rest.get(end..)?))
}

/// What a header says.
#[derive(Debug, PartialEq)]
struct Header {
    /// Letter and bytes of the type.
    kind: String,
    big_endian: bool,
    /// Whether the first axis runs fastest.
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads a Python dictionary of `descr`, `fortran_order` and `shape`.
    fn read(text: &[u8]) -> Result<Self, String> {
        let unreadable = || "a header that cannot be read".to_owned();
        let text = std::str::from_utf8(text).map_err(|_| unreadable())?;
        let after = |key: &str| {
            let at = text.find(&format!("'{key}'"))? + key.len() + 2;
            text[at..].trim_start().strip_prefix(':').map(str::trim_start)
        };
        let descr = after("descr")
            .and_then(|rest| rest.strip_prefix('\''))
            .and_then(|rest| rest.split_once('\''))
            .ok_or_else(|| format!("expected samples of type {TYPES}, found a header without one"))?
            .0;
        let (big_endian, kind) = match descr.split_at_checked(1) {
            Some((">", kind)) => (true, kind),
            Some(("<" | "|" | "=", kind)) => (false, kind),
            _ => (false, descr),
        };
        let order = after("fortran_order").ok_or_else(unreadable)?;
        let shape = after("shape")
            .and_then(|rest| rest.strip_prefix('('))
            .and_then(|rest| rest.split_once(')'))
            .ok_or_else(unreadable)?
            .0;
        let axes = shape.split(',').map(str::trim).filter(|axis| !axis.is_empty());
        Ok(Self {
            kind: kind.to_owned(),
            big_endian,
            fortran: order.starts_with("True"),
            shape: axes
                .map(|axis| axis.parse().map_err(|_| unreadable()))
                .collect::<Result<_, String>>()?,
        })
    }

    /// Samples from one place of each axis to the next.
    fn steps(&self) -> Option<Vec<usize>> {
        let axes = self.shape.len();
        let mut steps = vec![1_usize; axes];
        let mut step = 1_usize;
        for place in 0..axes {
            let axis = if self.fortran { place } else { axes - 1 - place };
            steps[axis] = step;
            step = step.checked_mul(self.shape[axis])?;
        }
        Some(steps)
    }
}

/// Where the samples of the image lie.
fn layout(header: &Header, target: &Target) -> Result<Layout, DecodeError> {
    let shape = &header.shape;
    let steps = header
        .steps()
        .ok_or_else(|| target.refuse(format!("shape {shape:?}: more samples than memory has places")))?;
    let first = target.bands.is_first();
    let (rows, columns, bands) = match (shape.len(), first) {
        (2, _) => (0, 1, None),
        (3, false) => (0, 1, Some(2)),
        (3, true) => (1, 2, Some(0)),
        _ => {
            let expected = if first { "[C, H, W]" } else { "[H, W, C]" };
            return Err(target.refuse(format!("expected shape [H, W] or {expected}, found {shape:?}")));
        }
    };
    let found = bands.map_or(1, |axis| shape[axis]);
    let expected = target.bands.count();
    if found != expected {
        let hint = match !first && shape.first() == Some(&expected) {
            true => format!("; --bands {expected},first says that bands come first"),
            false => String::new(),
        };
        let reason = format!(
            "expected {}, found {found} (shape {shape:?}){hint}",
            counted(expected)
        );
        return Err(target.refuse(reason));
    }
    let side = |axis: usize| {
        u32::try_from(shape[axis]).map_err(|_| target.refuse(format!("shape {shape:?}: too many pixels")))
    };
    Ok(Layout {
        width: side(columns)?,
        height: side(rows)?,
        bands: found,
        row: steps[rows],
        column: steps[columns],
        band: bands.map_or(1, |axis| steps[axis]),
    })
}

/// The samples of an array as they are stored.
struct Words<'a, 'b> {
    data: &'a [u8],
    big_endian: bool,
    layout: Layout,
    target: &'a mut Target<'b>,
}

impl Words<'_, '_> {
    /// The image of samples of `N` bytes, each of which `value` makes a number of, low byte first.
    fn scaled<const N: usize>(
        &mut self,
        value: impl Fn([u8; N]) -> f64,
        samples: Samples,
    ) -> Result<BandImage, DecodeError> {
        let (words, rest) = self.data.as_chunks::<N>();
        if !rest.is_empty() {
            let reason = format!("cut short: {} bytes of a sample of {N}", rest.len());
            return Err(self.target.refuse(reason));
        }
        let big_endian = self.big_endian;
        let ordered = |mut word: [u8; N]| {
            if big_endian {
                word.reverse();
            }
            value(word)
        };
        self.target.scaled(self.layout, words, ordered, samples)
    }
}
