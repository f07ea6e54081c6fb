//! Pixels and text. Coordinates are pixels from the upper left corner.

use ab_glyph::{Font as _, FontRef, Glyph, PxScale, ScaleFont as _, point};
use image::ImageEncoder as _;
use image::codecs::png::PngEncoder;
use tiny_skia::{FillRule, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, Transform};

use crate::{Error, Result, files};

/// Red, green, blue and opacity, 0 to 255.
pub type Color = [u8; 4];

/// Told apart by most kinds of colour blindness (Okabe and Ito, without the lightest).
pub const COLORS: [Color; 6] = [
    [0x00, 0x72, 0xb2, 0xff],
    [0xd5, 0x5e, 0x00, 0xff],
    [0x00, 0x9e, 0x73, 0xff],
    [0xcc, 0x79, 0xa7, 0xff],
    [0xe6, 0x9f, 0x00, 0xff],
    [0x56, 0xb4, 0xe9, 0xff],
];

/// Of titles and latest values.
pub const INK: Color = [0x22, 0x26, 0x2b, 0xff];
/// Of the words beside an axis.
pub const MUTED: Color = [0x5c, 0x64, 0x6d, 0xff];
/// Of grid lines.
pub const GRID: Color = [0xe7, 0xea, 0xee, 0xff];
/// Of the axes themselves.
pub const AXIS: Color = [0xb4, 0xba, 0xc2, 0xff];

/// DejaVu Sans, see `font/LICENSE`.
const REGULAR: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");
const BOLD: &[u8] = include_bytes!("font/DejaVuSans-Bold-subset.ttf");

/// Weight of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Words beside axes and in legends.
    Regular,
    /// Titles.
    Bold,
}

/// Which point of a text its position names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// The left end of its base line.
    Left,
    /// The middle of its base line.
    Centre,
    /// The right end of its base line.
    Right,
}

/// A white picture to draw on.
pub struct Canvas {
    pixmap: Pixmap,
    regular: FontRef<'static>,
    bold: FontRef<'static>,
}

impl Canvas {
    /// A white picture of `width` x `height` pixels, each from 1 to some thousands.
    pub fn new(width: u32, height: u32) -> Self {
        let mut pixmap =
            Pixmap::new(width, height).expect("a picture of some thousand pixels a side has a size");
        pixmap.fill(tiny_skia::Color::WHITE);
        let font = |bytes| FontRef::try_from_slice(bytes).expect("the bundled fonts can be read");
        Self {
            pixmap,
            regular: font(REGULAR),
            bold: font(BOLD),
        }
    }

    /// A line through `points`.
    pub fn line(&mut self, points: &[(f32, f32)], width: f32, color: Color) {
        let Some(path) = polyline(points, false) else {
            return;
        };
        let stroke = Stroke {
            width,
            line_cap: tiny_skia::LineCap::Round,
            line_join: tiny_skia::LineJoin::Round,
            ..Stroke::default()
        };
        self.pixmap
            .stroke_path(&path, &paint(color), &stroke, Transform::identity(), None);
    }

    /// A dashed line through `points`: `dash` pixels drawn, as many left out.
    pub fn dashed(&mut self, points: &[(f32, f32)], width: f32, dash: f32, color: Color) {
        let Some(path) = polyline(points, false) else {
            return;
        };
        let stroke = Stroke {
            width,
            dash: tiny_skia::StrokeDash::new(vec![dash, dash], 0.0),
            ..Stroke::default()
        };
        self.pixmap
            .stroke_path(&path, &paint(color), &stroke, Transform::identity(), None);
    }

    /// A rectangle that fills whole pixels: its upper left corner, its size.
    pub fn rect(&mut self, at: (f32, f32), size: (f32, f32), color: Color) {
        if let Some(rect) = Rect::from_xywh(at.0.round(), at.1.round(), size.0.round(), size.1.round()) {
            let mut paint = paint(color);
            paint.anti_alias = false;
            self.pixmap.fill_rect(rect, &paint, Transform::identity(), None);
        }
    }

    /// Lays `pixels` (`[height, width, 3]`) with their upper left corner at column `left`, row `top`; what reaches outside is
    /// cut.
    pub fn image(&mut self, pixels: &[u8], width: u32, left: u32, top: u32) {
        let (columns, rows) = (self.pixmap.width(), self.pixmap.height());
        let data = self.pixmap.data_mut();
        for (line, y) in pixels.chunks_exact(width.max(1) as usize * 3).zip(top..rows) {
            for (pixel, x) in line.chunks_exact(3).zip(left..columns) {
                let at = (y as usize * columns as usize + x as usize) * 4;
                data[at..at + 3].copy_from_slice(pixel);
                data[at + 3] = 0xff;
            }
        }
    }

    /// A horizontal or vertical line that fills whole pixels.
    pub fn rule(&mut self, from: (f32, f32), to: (f32, f32), color: Color) {
        let (x, y) = (from.0.round(), from.1.round());
        let width = (to.0.round() - x).max(1.0);
        let height = (to.1.round() - y).max(1.0);
        if let Some(rect) = Rect::from_xywh(x, y, width, height) {
            let mut paint = paint(color);
            paint.anti_alias = false;
            self.pixmap.fill_rect(rect, &paint, Transform::identity(), None);
        }
    }

    /// The area within `points`.
    pub fn area(&mut self, points: &[(f32, f32)], color: Color) {
        if let Some(path) = polyline(points, true) {
            let transform = Transform::identity();
            self.pixmap
                .fill_path(&path, &paint(color), FillRule::Winding, transform, None);
        }
    }

    /// A filled circle.
    pub fn dot(&mut self, centre: (f32, f32), radius: f32, color: Color) {
        if let Some(path) = PathBuilder::from_circle(centre.0, centre.1, radius) {
            let transform = Transform::identity();
            self.pixmap
                .fill_path(&path, &paint(color), FillRule::Winding, transform, None);
        }
    }

    /// Writes `text` with letters of `size` pixels to the em; `at` is a point of the base line.
    pub fn text(
        &mut self,
        text: &str,
        at: (f32, f32),
        size: f32,
        color: Color,
        weight: Weight,
        align: Align,
    ) {
        let width = self.text_width(text, size, weight);
        let left = match align {
            Align::Left => at.0,
            Align::Centre => at.0 - width / 2.0,
            Align::Right => at.0 - width,
        };
        let font = self.font(weight).clone();
        for mut glyph in layout(&font, text, size).0 {
            glyph.position.x += left;
            glyph.position.y = at.1;
            let Some(outline) = font.outline_glyph(glyph) else {
                continue;
            };
            let bounds = outline.px_bounds();
            outline.draw(|x, y, cover| {
                self.blend(
                    bounds.min.x as i64 + i64::from(x),
                    bounds.min.y as i64 + i64::from(y),
                    color,
                    cover,
                );
            });
        }
    }

    /// Width of `text` as [`Canvas::text`] writes it.
    pub fn text_width(&self, text: &str, size: f32, weight: Weight) -> f32 {
        layout(self.font(weight), text, size).1
    }

    /// Writes the picture as a PNG, beside its name and renamed.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn save(self, path: &std::path::Path) -> Result<()> {
        let (width, height) = (self.pixmap.width(), self.pixmap.height());
        let mut png = Vec::new();
        PngEncoder::new(&mut png)
            .write_image(&self.into_rgb(), width, height, image::ExtendedColorType::Rgb8)
            .map_err(|e| Error::failed(path.display().to_string(), e.to_string()))?;
        files::write_bytes(path, &png)
    }

    /// `text`, or as much of its beginning as fits `width` pixels with an ellipsis after it.
    pub fn fitted(&self, text: &str, width: f32, size: f32, weight: Weight) -> String {
        if self.text_width(text, size, weight) <= width {
            return text.to_owned();
        }
        let mut kept: Vec<char> = text.chars().collect();
        while kept.pop().is_some() {
            let shorter = kept.iter().collect::<String>() + "\u{2026}";
            if self.text_width(&shorter, size, weight) <= width {
                return shorter;
            }
        }
        String::new()
    }

    /// The pixels, red, green, blue.
    pub fn into_rgb(self) -> Vec<u8> {
        // The ground is opaque, so nothing is left to divide by opacity.
        let pixels = self.pixmap.data().chunks_exact(4);
        pixels.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
    }

    fn font(&self, weight: Weight) -> &FontRef<'static> {
        match weight {
            Weight::Regular => &self.regular,
            Weight::Bold => &self.bold,
        }
    }

    /// Lays `color` over one pixel, if there is one, to the share `cover`.
    fn blend(&mut self, x: i64, y: i64, color: Color, cover: f32) {
        let (width, height) = (i64::from(self.pixmap.width()), i64::from(self.pixmap.height()));
        if !(0..width).contains(&x) || !(0..height).contains(&y) {
            return;
        }
        let at = (y * width + x) as usize * 4;
        let cover = cover.clamp(0.0, 1.0) * f32::from(color[3]) / 255.0;
        for (below, above) in self.pixmap.data_mut()[at..at + 3].iter_mut().zip(color) {
            *below = (f32::from(*below) * (1.0 - cover) + f32::from(above) * cover).round() as u8;
        }
    }
}

/// `color` with another opacity, 0 to 1.
pub fn faint(color: Color, opacity: f32) -> Color {
    [color[0], color[1], color[2], (255.0 * opacity).round() as u8]
}

/// The glyphs of `text` from x = 0 on, and its width.
fn layout(font: &FontRef<'static>, text: &str, size: f32) -> (Vec<Glyph>, f32) {
    // The crate's scale is the height of a line, not of the em.
    let em = font.units_per_em().unwrap_or(1000.0);
    let scale = PxScale::from(size * font.height_unscaled() / em);
    let scaled = font.as_scaled(scale);
    let mut x = 0.0;
    let mut last = None;
    let mut glyphs = Vec::with_capacity(text.len());
    for c in text.chars() {
        let id = font.glyph_id(c);
        if let Some(last) = last {
            x += scaled.kern(last, id);
        }
        glyphs.push(id.with_scale_and_position(scale, point(x, 0.0)));
        x += scaled.h_advance(id);
        last = Some(id);
    }
    (glyphs, x)
}

fn polyline(points: &[(f32, f32)], closed: bool) -> Option<Path> {
    let (first, rest) = points.split_first()?;
    let mut builder = PathBuilder::new();
    builder.move_to(first.0, first.1);
    for point in rest {
        builder.line_to(point.0, point.1);
    }
    if closed {
        builder.close();
    }
    builder.finish()
}

fn paint(color: Color) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(color[0], color[1], color[2], color[3]);
    paint
}
