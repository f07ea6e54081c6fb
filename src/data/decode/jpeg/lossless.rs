//! Lossless coding (ITU-T T.81, annex H) by Huffman codes: each sample is a difference to what its neighbours let expect.
//! Whole files are Pillow's to the bit; where one is damaged, what comes behind the damage need not be.

use super::frame::{Frame, Layout};
use super::huffman::{BitReader, Table, table};
use super::output::Picture;
use super::stream::{Event, Fault, ScanHeader, Stream, damaged};

/// Samples of a component, without the bits that its scan leaves out.
struct Samples {
    values: Vec<u16>,
    across: usize,
    /// The bits left out.
    low: u8,
}

/// Decodes an image of one or several scans.
pub(super) fn decode(stream: &mut Stream, frame: &mut Frame, first: ScanHeader) -> Result<Vec<u8>, Fault> {
    let mut planes: Vec<Samples> = Vec::with_capacity(frame.components.len());
    for component in &frame.components {
        planes.push(Samples {
            values: vec![0; component.padded.0 * component.padded.1],
            across: component.padded.0,
            low: 0,
        });
    }
    let is_single = first.components.len() == frame.components.len();
    let mut scan = first;
    loop {
        let layout = Layout::new(stream, frame, &scan.components)?;
        read_scan(stream, frame, &layout, &scan, &mut planes)?;
        if is_single {
            let end = super::at_hand(stream);
            stream.finish(end)?;
            break;
        }
        match stream.read_markers()? {
            Event::Scan(next) => scan = next,
            Event::End => break,
        }
    }
    let mut picture = Picture::new(frame);
    for row in 0..frame.mcus.1 {
        for (place, (component, plane)) in frame.components.iter().zip(&planes).enumerate() {
            let down = component.sampling.1;
            for y in row * down..(row * down + down).min(component.blocks.1) {
                for (x, value) in plane.values[y * plane.across..][..component.blocks.0]
                    .iter()
                    .enumerate()
                {
                    picture.put_sample(place, x, y, (value << plane.low) as u8);
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
    planes: &mut [Samples],
) -> Result<(), Fault> {
    let (predictor, low) = (scan.first, scan.low);
    if !(1..=7).contains(&predictor) || scan.last != 0 || scan.high != 0 || low >= frame.bits {
        return damaged(format!(
            "a lossless scan of predictor {predictor}, {low} bits left out"
        ));
    }
    let interval = stream.tables.restart_interval as usize;
    if !interval.is_multiple_of(layout.across) {
        return damaged(format!(
            "a restart within a row of {} lossless units",
            layout.across
        ));
    }
    let mut tables: Vec<Box<Table>> = Vec::with_capacity(scan.components.len());
    for (dc, _) in super::table_numbers(stream, scan) {
        tables.push(table(&stream.tables, dc, super::huffman::Use::Differences)?);
    }
    for &place in &scan.components {
        planes[place].low = low;
    }
    let mut reader = BitReader::new(stream);
    let mut units_left = interval;
    let mut is_first = true;
    let mut has_run_out = false;
    let start = 1_u16 << (frame.bits - low - 1);
    for row in 0..frame.mcus.1 {
        for within in 0..layout.rows(frame, row) {
            if interval > 0 && units_left == 0 {
                has_run_out &= !reader.restart(stream)?;
                units_left = interval;
                is_first = true;
            }
            for column in 0..layout.across {
                for &(slot, place, x, y) in &layout.blocks {
                    let (across, down) = layout.sizes[slot];
                    let down = if layout.is_single {
                        frame.components[place].sampling.1
                    } else {
                        down
                    };
                    let plane = &mut planes[place];
                    let at = (row * down + y + within) * plane.across + column * across + x;
                    plane.values[at] = if has_run_out {
                        0
                    } else {
                        reader.difference(&tables[slot])
                    };
                }
                has_run_out |= reader.has_run_out()?;
            }
            units_left = units_left.saturating_sub(layout.across);
        }
        // libjpeg adds up a whole row of the frame's units at a time, so a restart within takes effect at its beginning.
        for (slot, &place) in scan.components.iter().enumerate() {
            let first = row * frame.components[place].sampling.1;
            let count = if layout.is_single {
                layout.rows(frame, row)
            } else {
                layout.sizes[slot].1
            };
            for y in first..first + count {
                let predictor = if is_first && y == first {
                    None
                } else {
                    Some(predictor)
                };
                add_up(&mut planes[place], y, predictor, start);
            }
        }
        is_first = false;
    }
    if reader.is_near_end() {
        return Err(Fault::Ended);
    }
    reader.leave(stream);
    Ok(())
}

/// Makes samples of the differences of row `y`. The first row of a scan or behind a restart has no predictor.
fn add_up(plane: &mut Samples, y: usize, predictor: Option<usize>, start: u16) {
    let at = y * plane.across;
    let (before, rest) = plane.values.split_at_mut(at);
    let row = &mut rest[..plane.across];
    let above = if predictor.is_some() {
        &before[at - plane.across..]
    } else {
        &[]
    };
    for x in 0..row.len() {
        let left = |row: &[u16]| i32::from(row[x - 1]);
        let expected = match predictor {
            None if x == 0 => i32::from(start),
            None => left(row),
            Some(_) if x == 0 => i32::from(above[0]),
            Some(predictor) => {
                let (a, b, c) = (left(row), i32::from(above[x]), i32::from(above[x - 1]));
                match predictor {
                    1 => a,
                    2 => b,
                    3 => c,
                    4 => a + b - c,
                    5 => a + ((b - c) >> 1),
                    6 => b + ((a - c) >> 1),
                    _ => (a + b) >> 1,
                }
            }
        };
        row[x] = row[x].wrapping_add(expected as u16);
    }
}
