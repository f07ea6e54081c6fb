//! What Pillow looks at itself before it hands a file to libjpeg: files that it refuses are refused here.

use super::stream::{Fault, damaged};

/// What of the header is of use beyond decoding.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Header<'a> {
    /// The EXIF data, without its mark.
    pub exif: Option<&'a [u8]>,
    /// Width and height.
    pub size: (u16, u16),
}

/// Walks through the segments up to the first scan.
pub(super) fn read_header(bytes: &[u8]) -> Result<Header<'_>, Fault> {
    let mut header = Header::default();
    let mut has_frame = false;
    let mut first_profile: Option<&[u8]> = None;
    // The start marker's second byte is junk to this walk.
    let mut at = 3;
    let mut before = 0xFF;
    loop {
        while before != 0xFF {
            before = *bytes.get(at).ok_or(Fault::Ended)?;
            at += 1;
        }
        let marker = *bytes.get(at).ok_or(Fault::Ended)?;
        at += 1;
        match marker {
            0xFF => continue,
            0x00 | 0xC8 | 0xD0..=0xD9 | 0xF0..=0xFD => {}
            0x01..=0xBF => return damaged(format!("a reserved marker (0x{marker:02X})")),
            _ => {
                let length = bytes.get(at..at + 2).ok_or(Fault::Ended)?;
                let length = usize::from(u16::from_be_bytes([length[0], length[1]])).saturating_sub(2);
                let body = bytes.get(at + 2..at + 2 + length).ok_or(Fault::Ended)?;
                at += 2 + length;
                match marker {
                    0xE0..=0xEF => read_application(marker, body, &mut header, &mut first_profile)?,
                    0xDB => check_quantisation(body)?,
                    0xC4 | 0xCC | 0xDC | 0xDD | 0xDF | 0xFE => {}
                    0xDA if has_frame => return Ok(header),
                    0xDA => return damaged("a scan before the frame header"),
                    _ => {
                        header.size = check_frame(body)?;
                        has_frame = true;
                        if first_profile.is_some_and(|profile| profile.len() < 14) {
                            return damaged("a colour profile cut short");
                        }
                        first_profile = None;
                    }
                }
            }
        }
        before = 0;
    }
}

fn check_frame(body: &[u8]) -> Result<(u16, u16), Fault> {
    let &[bits, h1, h0, w1, w0, components, ref rest @ ..] = body else {
        return damaged("a frame header cut short");
    };
    let size = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
    if bits != 8 {
        return damaged(format!("{bits} bits a sample, expected 8"));
    }
    if !matches!(components, 1 | 3 | 4) {
        return damaged(format!("{components} components, expected 1, 3 or 4"));
    }
    if rest.len() % 3 != 0 {
        return damaged("a frame header cut short");
    }
    Ok(size)
}

fn check_quantisation(mut body: &[u8]) -> Result<(), Fault> {
    while let Some(index) = body.first() {
        let length = if index >> 4 == 0 { 65 } else { 129 };
        match body.get(length..) {
            Some(rest) => body = rest,
            None => return damaged("a quantisation table cut short"),
        }
    }
    Ok(())
}

fn read_application<'a>(
    marker: u8,
    body: &'a [u8],
    header: &mut Header<'a>,
    first_profile: &mut Option<&'a [u8]>,
) -> Result<(), Fault> {
    let is_short = |mark: &[u8], min: usize| body.starts_with(mark) && body.len() < min;
    if marker == 0xE0 && is_short(b"JFIF", 7) || marker == 0xEE && is_short(b"Adobe", 7) {
        return damaged("a JFIF or Adobe segment cut short");
    }
    if marker == 0xE1 && header.exif.is_none() {
        header.exif = body.strip_prefix(b"Exif\0\0");
    }
    if marker == 0xE2 && body.starts_with(b"ICC_PROFILE\0") {
        *first_profile = Some(first_profile.map_or(body, |first| first.min(body)));
    }
    if marker == 0xED && body.starts_with(b"Photoshop 3.0\0") {
        check_resources(&body[14..])?;
    }
    Ok(())
}

/// Resources of Photoshop, of which Pillow refuses one that ends before the length of its name.
fn check_resources(mut body: &[u8]) -> Result<(), Fault> {
    let even = |length: usize| length + length % 2;
    while body.starts_with(b"8BIM") && body.len() >= 6 {
        let Some(&name) = body.get(6) else {
            return damaged("a Photoshop segment cut short");
        };
        let at = even(7 + usize::from(name));
        let Some(length) = body.get(at..at + 4) else {
            return Ok(());
        };
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        body = body.get(even(at + 4 + length)..).unwrap_or_default();
    }
    Ok(())
}
