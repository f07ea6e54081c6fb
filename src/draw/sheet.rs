//! A contact sheet: pictures in rows under a title, each with a caption, marked where they are right or wrong.

use std::path::Path;

use super::canvas::{Align, COLORS, Canvas, Color, GRID, INK, MUTED, Weight};
use crate::Result;
use crate::data::{Interpolation, RgbImage, resize};

/// Space around everything.
const MARGIN: f32 = 28.0;
/// Space between tiles.
const GAP: f32 = 12.0;
/// Space after the first column, where it stands for itself.
const LEAD: f32 = 22.0;
/// Height of a caption.
const CAPTION: f32 = 20.0;
/// Height of the words over the columns.
const HEADING: f32 = 24.0;
/// Height of the title, and of each line under it.
const TITLE: f32 = 30.0;
const LINE: f32 = 20.0;
/// Width of a border that marks.
const BORDER: f32 = 4.0;
/// The smallest sheet, so that its title can be read.
const MIN_WIDTH: f32 = 420.0;
const RIGHT: Color = COLORS[0];
const WRONG: Color = COLORS[1];

/// What a border says; colour, kind of line and sign say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    None,
    /// An unbroken blue border with a tick.
    Right,
    /// A dashed orange border with a cross.
    Wrong,
}

/// One picture.
#[derive(Debug, Clone)]
pub struct Tile {
    /// Its pixels.
    pub image: RgbImage,
    /// The words under it; cut to its width.
    pub caption: String,
    /// What its border says.
    pub mark: Mark,
}

impl Tile {
    /// A picture with a caption and no mark.
    pub fn new(image: RgbImage, caption: impl Into<String>) -> Self {
        Self {
            image,
            caption: caption.into(),
            mark: Mark::None,
        }
    }
}

/// A contact sheet.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    /// The title.
    pub title: String,
    /// Lines under the title.
    pub notes: Vec<String>,
    /// Words over the columns; may be empty.
    pub headings: Vec<String>,
    /// Rows of tiles; they need not be equally long.
    pub rows: Vec<Vec<Tile>>,
    /// Side of a tile in pixels, 16 to 1024.
    pub side: u32,
    /// Whether the first column stands for itself, with space after it.
    pub lead: bool,
}

impl Sheet {
    /// Draws the sheet as a PNG, beside its name and renamed.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.draw().save(path)
    }

    fn draw(&self) -> Canvas {
        let (width, height) = self.size();
        let mut canvas = Canvas::new(width as u32, height as u32);
        let room = width - 2.0 * MARGIN;
        let title = canvas.fitted(&self.title, room, 20.0, Weight::Bold);
        canvas.text(
            &title,
            (MARGIN, MARGIN + 14.0),
            20.0,
            INK,
            Weight::Bold,
            Align::Left,
        );
        for (note, place) in self.notes.iter().zip(0u16..) {
            let base = MARGIN + TITLE + LINE * f32::from(place) + 6.0;
            let note = canvas.fitted(note, room, 13.5, Weight::Regular);
            canvas.text(&note, (MARGIN, base), 13.5, MUTED, Weight::Regular, Align::Left);
        }
        let side = self.side as f32;
        let top = self.top();
        for (column, heading) in self.headings.iter().enumerate() {
            let heading = canvas.fitted(heading, side + GAP, 13.0, Weight::Bold);
            let at = (self.left(column) + side / 2.0, top - 9.0);
            canvas.text(&heading, at, 13.0, INK, Weight::Bold, Align::Centre);
        }
        let mut y = top;
        for row in &self.rows {
            for (column, tile) in row.iter().enumerate() {
                self.tile(&mut canvas, tile, (self.left(column), y));
            }
            y += side + Self::under(row) + GAP;
        }
        canvas
    }

    fn tile(&self, canvas: &mut Canvas, tile: &Tile, (x, y): (f32, f32)) {
        let side = self.side as f32;
        let image = fitted(&tile.image, self.side);
        let (width, height) = (image.width() as f32, image.height() as f32);
        let (left, top) = (
            (x + (side - width) / 2.0).round(),
            (y + (side - height) / 2.0).round(),
        );
        canvas.image(image.data(), image.width(), left as u32, top as u32);
        let color = match tile.mark {
            Mark::None => {
                frame(
                    canvas,
                    (left - 1.0, top - 1.0),
                    (width + 2.0, height + 2.0),
                    1.0,
                    GRID,
                );
                None
            }
            Mark::Right => {
                frame(canvas, (left, top), (width, height), BORDER, RIGHT);
                badge(canvas, (left + width, top), true);
                Some(RIGHT)
            }
            Mark::Wrong => {
                dashed(canvas, (left, top), (width, height));
                badge(canvas, (left + width, top), false);
                Some(WRONG)
            }
        };
        if !tile.caption.is_empty() {
            let caption = canvas.fitted(&tile.caption, side + GAP - 2.0, 12.5, Weight::Regular);
            let at = (x + side / 2.0, top + height + 15.0);
            canvas.text(
                &caption,
                at,
                12.5,
                color.unwrap_or(INK),
                Weight::Regular,
                Align::Centre,
            );
        }
    }

    fn size(&self) -> (f32, f32) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let width = self.left(columns - 1) + self.side as f32 + MARGIN;
        let rows: f32 = self
            .rows
            .iter()
            .map(|row| self.side as f32 + Self::under(row) + GAP)
            .sum();
        (
            width.max(MIN_WIDTH).ceil(),
            (self.top() + rows - GAP + MARGIN).ceil(),
        )
    }

    /// Where the tiles begin.
    fn top(&self) -> f32 {
        let notes = LINE * self.notes.len() as f32;
        let heading = if self.headings.is_empty() { 4.0 } else { HEADING };
        MARGIN + TITLE + notes + heading
    }

    fn left(&self, column: usize) -> f32 {
        let lead = if self.lead && column > 0 { LEAD } else { 0.0 };
        MARGIN + lead + column as f32 * (self.side as f32 + GAP)
    }

    /// Height of the captions of a row.
    fn under(row: &[Tile]) -> f32 {
        if row.iter().any(|tile| !tile.caption.is_empty()) {
            CAPTION
        } else {
            0.0
        }
    }
}

/// `image` as large as fits a square of `side`. Small pictures keep their pixels as squares, since they are what is shown.
fn fitted(image: &RgbImage, side: u32) -> RgbImage {
    let longest = image.width().max(image.height()).max(1);
    if longest == side {
        return image.clone();
    }
    if let factor @ 2.. = side / longest {
        return enlarged(image, factor);
    }
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longest)).max(1) as u32;
    let (width, height) = (scaled(image.width()), scaled(image.height()));
    resize(&image.view(), width, height, Interpolation::Bicubic).unwrap_or_else(|| image.clone())
}

/// Every pixel as a square of `factor` x `factor`.
pub fn enlarged(image: &RgbImage, factor: u32) -> RgbImage {
    let (width, height) = (image.width() * factor, image.height() * factor);
    let mut data = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for pixel in image.view().row(y / factor).chunks_exact(3) {
            (0..factor).for_each(|_| data.extend_from_slice(pixel));
        }
    }
    RgbImage::new(width, height, data).unwrap_or_else(|| image.clone())
}

/// A border of `width` pixels within the rectangle.
fn frame(canvas: &mut Canvas, (x, y): (f32, f32), (width, height): (f32, f32), border: f32, color: Color) {
    canvas.rect((x, y), (width, border), color);
    canvas.rect((x, y + height - border), (width, border), color);
    canvas.rect((x, y), (border, height), color);
    canvas.rect((x + width - border, y), (border, height), color);
}

fn dashed(canvas: &mut Canvas, (x, y): (f32, f32), (width, height): (f32, f32)) {
    frame(canvas, (x, y), (width, height), BORDER, [0xff, 0xff, 0xff, 0xff]);
    let inset = BORDER / 2.0;
    let (left, right, top, bottom) = (x + inset, x + width - inset, y + inset, y + height - inset);
    let around = [
        (left, top),
        (right, top),
        (right, bottom),
        (left, bottom),
        (left, top),
    ];
    canvas.dashed(&around, BORDER, 8.0, WRONG);
}

/// A disc with a tick or a cross, in the upper right corner.
fn badge(canvas: &mut Canvas, (x, y): (f32, f32), right: bool) {
    let centre = (x - 11.0, y + 11.0);
    let white = [0xff, 0xff, 0xff, 0xff];
    canvas.dot(centre, 10.5, white);
    canvas.dot(centre, 9.0, if right { RIGHT } else { WRONG });
    let at = |dx: f32, dy: f32| (centre.0 + dx, centre.1 + dy);
    if right {
        canvas.line(&[at(-4.0, 0.3), at(-1.2, 3.2), at(4.2, -3.2)], 2.2, white);
    } else {
        canvas.line(&[at(-3.2, -3.2), at(3.2, 3.2)], 2.2, white);
        canvas.line(&[at(-3.2, 3.2), at(3.2, -3.2)], 2.2, white);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(side: u32, shade: u8) -> RgbImage {
        RgbImage::from_grey(side, side, &vec![shade; (side * side) as usize]).unwrap()
    }

    #[test]
    fn small_pictures_keep_their_pixels() {
        let image = RgbImage::from_grey(2, 1, &[10, 200]).unwrap();
        let large = fitted(&image, 7);
        assert_eq!((large.width(), large.height()), (6, 3));
        assert_eq!(large.pixel(2, 2), Some([10; 3]));
        assert_eq!(large.pixel(3, 0), Some([200; 3]));
        let wide = RgbImage::from_grey(300, 100, &vec![9; 30_000]).unwrap();
        assert_eq!(
            (fitted(&wide, 100).width(), fitted(&wide, 100).height()),
            (100, 33)
        );
    }

    #[test]
    fn marks_are_told_without_colour() {
        let tile = |mark| Tile {
            mark,
            ..Tile::new(plain(100, 0), "caption")
        };
        let sheet = Sheet {
            title: "title".to_owned(),
            side: 100,
            rows: vec![vec![tile(Mark::Right), tile(Mark::Wrong), tile(Mark::None)]],
            ..Sheet::default()
        };
        let (width, height) = sheet.size();
        let pixels = sheet.draw().into_rgb();
        assert_eq!(pixels.len(), (width * height) as usize * 3);
        // Along the lower border: unbroken, broken, none.
        let changes = |column: usize| {
            let y = (sheet.top() + 98.0) as usize;
            let left = sheet.left(column) as usize;
            let line: Vec<&[u8]> = (left + 6..left + 94)
                .map(|x| {
                    let at = (y * width as usize + x) * 3;
                    &pixels[at..at + 3]
                })
                .collect();
            (
                line[0].to_vec(),
                line.windows(2).filter(|pair| pair[0] != pair[1]).count(),
            )
        };
        assert_eq!(changes(0), (RIGHT[..3].to_vec(), 0));
        assert!(changes(1).1 > 8);
        assert_eq!(changes(2), (vec![0; 3], 0));
    }
}
