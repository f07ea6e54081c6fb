//! JPEG, to the bit as Pillow with libjpeg-turbo gives it. [`pillow`] is what Pillow checks first, [`stream`] the markers and
//! [`frame`] the sizes that follow from them; [`scan`] walks through blocks that [`huffman`], [`progressive`] and [`arithmetic`]
//! decode; [`smooth`] estimates what missing scans leave out; [`idct`], [`upsample`], [`colour`] and [`output`] make pixels of
//! coefficients. [`ending`] decides which files without an end Pillow takes, [`lossless`] reads the kind without blocks.

mod arithmetic;
mod colour;
mod ending;
mod frame;
mod huffman;
mod idct;
mod lossless;
mod output;
mod pillow;
mod progressive;
mod scan;
mod smooth;
mod standard;
mod stream;
#[cfg(test)]
mod tests;
mod upsample;

use ::image::metadata::Orientation;

use self::arithmetic::Arithmetic;
use self::colour::Colour;
use self::frame::{Frame, Layout};
use self::huffman::Sequential;
use self::output::Picture;
use self::progressive::Progressive;
use self::scan::{Coder, Coefficients, walk};
use self::smooth::Known;
use self::stream::{Event, Fault, ScanHeader, Stream, damaged};
use super::{DecodeError, DecodeOptions, check_size, orient};
use crate::data::image::RgbImage;

/// The most scans an image may have, and the most blocks in all of them beyond a hundred: a few bytes a scan would otherwise keep
/// a processor busy for hours.
const MAX_SCANS: usize = 1000;
const MAX_BLOCKS: usize = 1 << 28;

/// Decodes a JPEG as Pillow's `Image.open(f).convert("RGB")` does. With `options.jpeg_shorter_side`, as after
/// `draft("RGB", (side, side))`: at an eighth, a quarter or a half of the size, the smallest that leaves the shorter side that
/// many pixels, by inverse transforms of fewer samples.
///
/// # Errors
/// A one-line reason for files that Pillow refuses, and for sizes above the limit.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<RgbImage, DecodeError> {
    let refused = |fault| match fault {
        Fault::Ended => {
            let text = format!("cut short: the image goes on after its {} bytes", bytes.len());
            DecodeError::corrupt("JPEG", text)
        }
        Fault::Damaged(reason) => DecodeError::corrupt("JPEG", reason),
    };
    let header = pillow::read_header(bytes).map_err(refused)?;
    let (width, height) = header.size;
    check_size("JPEG", width.into(), height.into(), options)?;
    let fraction = options.jpeg_shorter_side.map_or(1, |side| {
        let times = u32::from(width.min(height)) / side.max(1);
        [8, 4, 2]
            .into_iter()
            .find(|&fraction| times >= fraction)
            .unwrap_or(1)
    });
    let (size, pixels) = decode_pixels(bytes, header.size, fraction as usize).map_err(refused)?;
    let image = RgbImage::new(size.0 as u32, size.1 as u32, pixels);
    let image = image.ok_or_else(|| DecodeError::corrupt("JPEG", "unexpected sample layout"))?;
    let exif = header.exif.filter(|_| options.exif);
    let orientation = exif.and_then(Orientation::from_exif_chunk);
    Ok(orient(image, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Width, height and pixels, at one `fraction`-th of the size.
fn decode_pixels(
    bytes: &[u8],
    announced: (u16, u16),
    fraction: usize,
) -> Result<((usize, usize), Vec<u8>), Fault> {
    let mut stream = Stream::new(bytes);
    let scan = stream.read_header()?;
    let Some(mut frame) = stream.frame.clone() else {
        return damaged("no frame header");
    };
    if frame.stored != (announced.0.into(), announced.1.into()) {
        return damaged("frame headers of several sizes");
    }
    frame.colour = stream.colour(&frame)?;
    frame.lay_out(fraction)?;
    if frame.is_lossless {
        if frame.is_arithmetic || !matches!(frame.colour, Colour::Grey | Colour::Rgb | Colour::Cmyk) {
            return damaged("lossless coding in YCbCr, or by arithmetic codes");
        }
        let pixels = lossless::decode(&mut stream, &mut frame, scan)?;
        return Ok((frame.size, pixels));
    }
    let is_single = scan.components.len() == frame.components.len() && !frame.is_progressive;
    let pixels = match is_single {
        true => decode_at_once(&mut stream, &mut frame, &scan)?,
        false => decode_scans(&mut stream, &mut frame, scan)?,
    };
    Ok((frame.size, pixels))
}

/// Numbers of the tables of a scan's components.
fn table_numbers(stream: &Stream, scan: &ScanHeader) -> Vec<(u8, u8)> {
    let components = stream.frame.iter().flat_map(|frame| &frame.components);
    let numbers: Vec<(u8, u8)> = components
        .map(|component| (component.dc_table, component.ac_table))
        .collect();
    scan.components.iter().map(|&place| numbers[place]).collect()
}

/// One scan of all components, whose blocks need not be kept.
fn decode_at_once(stream: &mut Stream, frame: &mut Frame, scan: &ScanHeader) -> Result<Vec<u8>, Fault> {
    let layout = Layout::new(stream, frame, &scan.components)?;
    let numbers = table_numbers(stream, scan);
    let frame = &*frame;
    let picture = if frame.is_arithmetic {
        let mut coder = Arithmetic::new(stream, false, scan, &numbers)?;
        let picture = draw(stream, frame, &layout, &mut coder)?;
        stream.finish(at_hand(stream))?;
        picture
    } else {
        let start = stream.clone();
        let mut coder = Sequential::new(stream, &numbers)?;
        let picture = draw(stream, frame, &layout, &mut coder)?;
        if coder.reader.is_near_end() {
            ending::check(&start, frame, &layout, &numbers)?;
        } else {
            stream.finish(at_hand(stream))?;
        }
        picture
    };
    Ok(picture.into_pixels())
}

/// Bytes that Pillow has read by the time the last pixel is there.
fn at_hand(stream: &Stream) -> usize {
    stream.at.next_multiple_of(ending::CHUNK).min(stream.bytes.len())
}

fn draw<'a, 'f, C: Coder<'a>>(
    stream: &mut Stream<'a>,
    frame: &'f Frame,
    layout: &Layout,
    coder: &mut C,
) -> Result<Picture<'f>, Fault> {
    let picture = std::cell::RefCell::new(Picture::new(frame));
    let visit = |coder: Option<&mut C>, slot: usize, place: usize, x: usize, y: usize| {
        let mut block = [0; 64];
        if let Some(coder) = coder {
            coder.block(slot, &mut block);
        }
        let (across, down) = frame.components[place].blocks;
        if x < across && y < down {
            picture.borrow_mut().put(place, x, y, &block);
        }
    };
    walk(stream, frame, layout, coder, visit, |row| {
        picture.borrow_mut().end_row(row)
    })?;
    Ok(picture.into_inner())
}

/// What all scans of an image come to.
struct Scans {
    coefficients: Vec<Coefficients>,
    /// How far coefficients are known, per component.
    known: Vec<Known>,
    /// The same before each component's last scan.
    known_before: Vec<Known>,
    /// The last row of units for which the last scan has data.
    last_good: usize,
}

/// Several scans, which are all read before anything is drawn.
fn decode_scans(stream: &mut Stream, frame: &mut Frame, first: ScanHeader) -> Result<Vec<u8>, Fault> {
    let count = frame.components.len();
    let padded = frame.components.iter().map(|component| component.padded);
    let mut scans = Scans {
        coefficients: padded.map(Coefficients::new).collect(),
        known: vec![[-1; 64]; count],
        known_before: vec![[-1; 64]; count],
        last_good: 0,
    };
    let blocks: usize = scans.coefficients.iter().map(|plane| plane.blocks.len()).sum();
    let max = (MAX_BLOCKS / blocks.max(1)).clamp(100, MAX_SCANS);
    let mut scan = first;
    for number in 1.. {
        if number > max {
            return damaged(format!("more than {max} scans"));
        }
        let layout = Layout::new(stream, frame, &scan.components)?;
        read_scan(stream, frame, &layout, &scan, number, &mut scans)?;
        match stream.read_markers()? {
            Event::Scan(next) => scan = next,
            Event::End if number == 1 => {
                scans.known_before = vec![[-1; 64]; count];
                break;
            }
            Event::End => break,
        }
    }
    let is_smoothed = frame.is_progressive && smooth::is_useful(frame, &scans.known);
    let mut picture = Picture::new(frame);
    for row in 0..frame.mcus.1 {
        for (place, component) in frame.components.iter().enumerate() {
            let down = component.sampling.1;
            let coefficients = &scans.coefficients[place];
            let known = if row > scans.last_good {
                &scans.known_before
            } else {
                &scans.known
            };
            for y in row * down..(row * down + down).min(component.blocks.1) {
                if is_smoothed {
                    let put = |x: usize, block: &idct::Block| picture.put(place, x, y, block);
                    smooth::smooth_row(frame, component, coefficients, &known[place], y, put);
                    continue;
                }
                for x in 0..component.blocks.0 {
                    picture.put(place, x, y, coefficients.at(x, y));
                }
            }
        }
        picture.end_row(row);
    }
    Ok(picture.into_pixels())
}

fn read_scan(
    stream: &mut Stream,
    frame: &Frame,
    layout: &Layout,
    scan: &ScanHeader,
    number: usize,
    scans: &mut Scans,
) -> Result<(), Fault> {
    let numbers = table_numbers(stream, scan);
    if frame.is_progressive {
        progressive::check(scan)?;
        for &place in &scan.components {
            let (known, before) = (&mut scans.known[place], &mut scans.known_before[place]);
            for at in scan.first.min(1)..=scan.last.max(9) {
                before[at] = if number > 1 { known[at] } else { 0 };
            }
            known[scan.first..=scan.last].fill(scan.low.into());
        }
    }
    let all = &mut scans.coefficients;
    scans.last_good = match (frame.is_arithmetic, frame.is_progressive) {
        (true, is_progressive) => {
            let mut coder = Arithmetic::new(stream, is_progressive, scan, &numbers)?;
            collect(stream, frame, layout, &mut coder, all)?
        }
        (false, true) => {
            let mut coder = Progressive::new(stream, scan, &numbers)?;
            collect(stream, frame, layout, &mut coder, all)?
        }
        (false, false) => {
            let mut coder = Sequential::new(stream, &numbers)?;
            collect(stream, frame, layout, &mut coder, all)?
        }
    };
    Ok(())
}

fn collect<'a, C: Coder<'a>>(
    stream: &mut Stream<'a>,
    frame: &Frame,
    layout: &Layout,
    coder: &mut C,
    all: &mut [Coefficients],
) -> Result<usize, Fault> {
    let visit = |coder: Option<&mut C>, slot: usize, place: usize, x: usize, y: usize| {
        if let Some(coder) = coder {
            coder.block(slot, all[place].at_mut(x, y));
        }
    };
    walk(stream, frame, layout, coder, visit, |_| {})
}
