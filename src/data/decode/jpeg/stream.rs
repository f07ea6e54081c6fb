//! The markers of a file and what they define, read as libjpeg reads them: which damage is passed over, which is the end.

use super::colour::Colour;
use super::frame::{Component, Frame};

/// Why no image comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file ends before the image does.
    Ended,
    /// What is wrong, in one line.
    Damaged(String),
}

pub(super) fn damaged<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(what.into()))
}

/// A Huffman table as a file holds it: how many codes of 1 to 16 bits, and the symbols in order of their codes.
#[derive(Clone, Debug)]
pub(super) struct HuffmanSpec {
    pub counts: [u8; 17],
    pub symbols: [u8; 256],
}

/// What a file has defined so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    /// Factors row by row, not in zigzag.
    pub quantisation: [Option<[u16; 64]>; 4],
    pub dc: [Option<HuffmanSpec>; 4],
    pub ac: [Option<HuffmanSpec>; 4],
    pub restart_interval: u32,
    /// Bounds (L, U) of small differences of means, for arithmetic coding.
    pub arithmetic_dc: [(u8, u8); 16],
    /// The last of the low frequencies, for arithmetic coding.
    pub arithmetic_ac: [u8; 16],
}

/// A scan's components, by their place in the frame, and which part of the coefficients it holds.
#[derive(Clone, Debug)]
pub(super) struct ScanHeader {
    pub components: Vec<usize>,
    pub first: usize,
    pub last: usize,
    /// Bits below this one were left out by the scan before; 0 for a first scan.
    pub high: u8,
    /// Bits that this scan leaves out.
    pub low: u8,
}

/// What reading markers came to.
pub(super) enum Event {
    Scan(ScanHeader),
    End,
}

/// Places of zigzag order, row by row. A damaged file can run 15 beyond the end, where libjpeg writes the last coefficient.
pub(super) const ZIGZAG: [u8; 128] = {
    let mut order = [63; 128];
    let (mut row, mut column, mut at) = (0_usize, 0_usize, 0);
    while at < 64 {
        order[at] = (row * 8 + column) as u8;
        if (row + column).is_multiple_of(2) {
            if column == 7 {
                row += 1;
            } else if row == 0 {
                column += 1;
            } else {
                (row, column) = (row - 1, column + 1);
            }
        } else if row == 7 {
            column += 1;
        } else if column == 0 {
            row += 1;
        } else {
            (row, column) = (row + 1, column - 1);
        }
        at += 1;
    }
    order
};

/// A file and how far it has been read.
#[derive(Clone)]
pub(super) struct Stream<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    /// A marker that was read and not dealt with; 0 for none.
    pub marker: u8,
    pub tables: Tables,
    pub frame: Option<Frame>,
    next_restart: u8,
    started: bool,
    has_jfif: bool,
    adobe_transform: Option<u8>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            marker: 0,
            tables: Tables::default(),
            frame: None,
            next_restart: 0,
            started: false,
            has_jfif: false,
            adobe_transform: None,
        }
    }

    /// Reads up to the first scan. A file may begin with a stream of tables alone.
    pub(super) fn read_header(&mut self) -> Result<ScanHeader, Fault> {
        loop {
            match self.read_markers()? {
                Event::Scan(scan) => return Ok(scan),
                Event::End if self.frame.is_some() => {
                    return damaged("no image data between the header and the end");
                }
                Event::End => self.started = false,
            }
        }
    }

    /// Reads up to the next scan or the end of the image.
    pub(super) fn read_markers(&mut self) -> Result<Event, Fault> {
        loop {
            if self.marker == 0 {
                if self.started {
                    self.next_marker()?;
                } else if [self.byte()?, self.byte()?] == [0xFF, 0xD8] {
                    self.marker = 0xD8;
                } else {
                    return damaged("an image of tables alone, and no other behind it");
                }
            }
            let marker = std::mem::take(&mut self.marker);
            match marker {
                0xD8 => self.start()?,
                0xC0..=0xC3 | 0xC9..=0xCB => self.read_frame(marker)?,
                0xC4 => self.read_huffman()?,
                0xCC => self.read_conditioning()?,
                0xDA => return Ok(Event::Scan(self.read_scan()?)),
                0xD9 => return Ok(Event::End),
                0xDB => self.read_quantisation()?,
                0xDD => self.read_restart_interval()?,
                0xE0 | 0xEE => self.read_application(marker)?,
                0xE1..=0xEF | 0xFE | 0xDC => {
                    self.segment()?;
                }
                0x01 | 0xD0..=0xD7 => {}
                0xC5..=0xCF => {
                    return damaged(format!(
                        "frames of kind 0x{marker:02X} (hierarchical or lossless)"
                    ));
                }
                _ => return damaged(format!("a reserved marker (0x{marker:02X})")),
            }
        }
    }

    /// Reads what comes behind the last pixel, where the first `end` bytes are at hand: nothing may be wrong there, but the
    /// end of the image may be missing.
    pub(super) fn finish(&mut self, end: usize) -> Result<(), Fault> {
        self.bytes = &self.bytes[..end];
        match self.read_markers() {
            Ok(Event::End) | Err(Fault::Ended) => Ok(()),
            Ok(Event::Scan(_)) => damaged("a second scan of all components"),
            Err(fault) => Err(fault),
        }
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::Ended)?;
        self.at += 1;
        Ok(byte)
    }

    fn pair(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// The body of a segment; its length counts itself, and a length below 2 is a body of nothing.
    fn segment(&mut self) -> Result<&'a [u8], Fault> {
        let length = usize::from(self.pair()?).saturating_sub(2);
        let body = self.bytes.get(self.at..self.at + length).ok_or(Fault::Ended)?;
        self.at += length;
        Ok(body)
    }

    /// Goes to the next marker: past anything that is none, fill bytes and stuffed 0xFF.
    fn next_marker(&mut self) -> Result<(), Fault> {
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let skipped = rest.iter().position(|&byte| byte == 0xFF).ok_or(Fault::Ended)?;
            self.at += skipped;
            let mut byte = 0xFF;
            while byte == 0xFF {
                byte = self.byte()?;
            }
            if byte != 0 {
                self.marker = byte;
                return Ok(());
            }
        }
    }

    /// Reads the restart marker that is due. Another one in its place is passed over, taken for it or left for later, by how
    /// far it is from the one expected.
    pub(super) fn read_restart(&mut self) -> Result<(), Fault> {
        if self.marker == 0 {
            self.next_marker()?;
        }
        let due = self.next_restart;
        self.next_restart = (due + 1) & 7;
        loop {
            let found = self.marker;
            let ahead = found.wrapping_sub(0xD0).wrapping_sub(due) & 7;
            match found {
                // Not a marker that may follow: a fragment of damaged data.
                ..0xC0 => self.next_marker()?,
                0xD0..=0xD7 if matches!(ahead, 1 | 2) => return Ok(()),
                0xD0..=0xD7 if matches!(ahead, 6 | 7) => self.next_marker()?,
                0xD0..=0xD7 => {
                    self.marker = 0;
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    fn start(&mut self) -> Result<(), Fault> {
        if self.started {
            return damaged("a second start marker within the image");
        }
        self.started = true;
        self.has_jfif = false;
        self.adobe_transform = None;
        self.tables.restart_interval = 0;
        self.tables.arithmetic_dc = [(0, 1); 16];
        self.tables.arithmetic_ac = [5; 16];
        Ok(())
    }

    fn read_frame(&mut self, marker: u8) -> Result<(), Fault> {
        if self.frame.is_some() {
            return damaged("two frames");
        }
        let length = usize::from(self.pair()?);
        let bits = self.byte()?;
        let (height, width) = (self.pair()?, self.pair()?);
        let count = self.byte()?;
        if height == 0 || width == 0 || count == 0 {
            return damaged(format!(
                "a size of {width}x{height} pixels and {count} components"
            ));
        }
        if length != 8 + 3 * usize::from(count) {
            return damaged(format!("a frame header of {length} bytes for {count} components"));
        }
        let mut components = Vec::with_capacity(count.into());
        for _ in 0..count {
            let (id, sampling, quantisation) = (self.byte()?, self.byte()?, self.byte()?);
            components.push(Component::new(id, sampling >> 4, sampling & 15, quantisation));
        }
        self.frame = Some(Frame::new(marker, bits, (width, height), components));
        Ok(())
    }

    fn read_scan(&mut self) -> Result<ScanHeader, Fault> {
        let Some(mut frame) = self.frame.take() else {
            return damaged("a scan before the frame header");
        };
        let length = usize::from(self.pair()?);
        let count = usize::from(self.byte()?);
        if length != 6 + 2 * count || !(1..=4).contains(&count) {
            return damaged(format!("a scan header of {length} bytes for {count} components"));
        }
        let mut components: Vec<usize> = Vec::with_capacity(count);
        for _ in 0..count {
            let (id, tables) = (self.byte()?, self.byte()?);
            // Of components with one name, libjpeg passes over as many places as the scan has components so far.
            let places = components.len()..frame.components.len().min(4);
            let found = places.into_iter().find(|&place| frame.components[place].id == id);
            let Some(place) = found.filter(|place| !components.contains(place)) else {
                return damaged(format!("a scan of component {id}, which is not in the frame"));
            };
            frame.components[place].dc_table = tables >> 4;
            frame.components[place].ac_table = tables & 15;
            components.push(place);
        }
        let (first, last, bits) = (self.byte()?, self.byte()?, self.byte()?);
        self.next_restart = 0;
        self.frame = Some(frame);
        Ok(ScanHeader {
            components,
            first: first.into(),
            last: last.into(),
            high: bits >> 4,
            low: bits & 15,
        })
    }

    fn read_huffman(&mut self) -> Result<(), Fault> {
        let mut length = i32::from(self.pair()?) - 2;
        while length > 16 {
            let index = self.byte()?;
            let mut counts = [0; 17];
            for count in &mut counts[1..] {
                *count = self.byte()?;
            }
            let total: i32 = counts.iter().map(|&count| i32::from(count)).sum();
            length -= 17;
            if total > 256 || total > length {
                return damaged("a Huffman table of more codes than it has room for");
            }
            let mut symbols = [0; 256];
            for symbol in &mut symbols[..total as usize] {
                *symbol = self.byte()?;
            }
            length -= total;
            let place = usize::from(index & !0x10);
            let tables = match index & 0x10 {
                0 => &mut self.tables.dc,
                _ => &mut self.tables.ac,
            };
            match tables.get_mut(place) {
                Some(table) => *table = Some(HuffmanSpec { counts, symbols }),
                None => return damaged(format!("Huffman table {place} of 4")),
            }
        }
        self.ends(length, "Huffman tables")
    }

    fn ends(&self, length: i32, what: &str) -> Result<(), Fault> {
        match length {
            0 => Ok(()),
            _ => damaged(format!(
                "a segment of {what} that is longer or shorter than they are"
            )),
        }
    }

    fn read_quantisation(&mut self) -> Result<(), Fault> {
        let mut length = i32::from(self.pair()?) - 2;
        while length > 0 {
            let index = self.byte()?;
            let is_wide = index >> 4 != 0;
            let place = usize::from(index & 15);
            if place >= 4 {
                return damaged(format!("quantisation table {place} of 4"));
            }
            let mut factors = [0; 64];
            for &at in &ZIGZAG[..64] {
                factors[usize::from(at)] = if is_wide {
                    self.pair()?
                } else {
                    self.byte()?.into()
                };
            }
            self.tables.quantisation[place] = Some(factors);
            length -= if is_wide { 129 } else { 65 };
        }
        self.ends(length, "quantisation tables")
    }

    fn read_conditioning(&mut self) -> Result<(), Fault> {
        let mut length = i32::from(self.pair()?) - 2;
        while length > 0 {
            let (index, value) = (usize::from(self.byte()?), self.byte()?);
            length -= 2;
            match index {
                0..16 if value & 15 > value >> 4 => {
                    return damaged("arithmetic conditioning with its bounds reversed");
                }
                0..16 => self.tables.arithmetic_dc[index] = (value & 15, value >> 4),
                16..32 => self.tables.arithmetic_ac[index - 16] = value,
                _ => return damaged(format!("arithmetic conditioning {index} of 32")),
            }
        }
        self.ends(length, "arithmetic conditioning")
    }

    fn read_restart_interval(&mut self) -> Result<(), Fault> {
        let length = self.pair()?;
        if length != 4 {
            return damaged(format!("a restart interval in a segment of {length} bytes"));
        }
        self.tables.restart_interval = self.pair()?.into();
        Ok(())
    }

    fn read_application(&mut self, marker: u8) -> Result<(), Fault> {
        let body = self.segment()?;
        if marker == 0xE0 && body.len() >= 14 && body.starts_with(b"JFIF\0") {
            self.has_jfif = true;
        }
        if marker == 0xEE && body.len() >= 12 && body.starts_with(b"Adobe") {
            self.adobe_transform = Some(body[11]);
        }
        Ok(())
    }

    /// What the components are, by the markers JFIF and Adobe and, without them, by the components' names.
    pub(super) fn colour(&self, frame: &Frame) -> Result<Colour, Fault> {
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        match (ids.len(), self.adobe_transform) {
            (1, _) => Ok(Colour::Grey),
            (3, _) if self.has_jfif => Ok(Colour::YCbCr),
            (3, Some(0)) => Ok(Colour::Rgb),
            (3, Some(_)) => Ok(Colour::YCbCr),
            (3, None) if ids == *b"RGB" || frame.is_lossless => Ok(Colour::Rgb),
            (3, None) => Ok(Colour::YCbCr),
            (4, None | Some(0)) => Ok(Colour::Cmyk),
            (4, Some(_)) => Ok(Colour::Ycck),
            (count, _) => damaged(format!("{count} components, expected 1, 3 or 4")),
        }
    }
}
