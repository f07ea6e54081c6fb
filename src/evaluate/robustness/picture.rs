//! One test image under every corruption and severity.

use std::path::Path;

use super::RobustnessRequest;
use super::images::TestImages;
use crate::Result;
use crate::data::Source as _;
use crate::draw::{Sheet, Tile};

/// Least and greatest side of a tile in pixels: between them a picture is shown pixel by pixel.
const SIDES: (u32, u32) = (112, 224);

/// Draws the first of `images` as a PNG, a row a corruption: the clean image, then each severity.
///
/// # Errors
/// An image that cannot be read, or the system's word with the path.
pub(super) fn draw(images: &TestImages<'_>, request: &RobustnessRequest, file: &Path) -> Result<()> {
    let decode = &request.extract.decode;
    let clean = images.load(0, decode)?;
    let record = images.record(0);
    let mut rows = Vec::with_capacity(request.corruptions.len());
    for &corruption in &request.corruptions {
        let mut tiles = vec![Tile::new(clean.clone(), corruption.name())];
        for &severity in &request.severities {
            let corrupted = images
                .corrupted(corruption, severity, request.seed)
                .load(0, decode)?;
            tiles.push(Tile::new(corrupted, ""));
        }
        rows.push(tiles);
    }
    let severities = request
        .severities
        .iter()
        .map(|severity| format!("severity {severity}"));
    Sheet {
        title: "Corruptions".to_owned(),
        notes: vec![format!(
            "{}, row {}, {} x {} pixels, seed {}",
            record.path,
            record.row,
            clean.width(),
            clean.height(),
            request.seed
        )],
        headings: std::iter::once("clean".to_owned()).chain(severities).collect(),
        rows,
        side: clean.width().max(clean.height()).clamp(SIDES.0, SIDES.1),
        lead: true,
    }
    .save(file)
}
