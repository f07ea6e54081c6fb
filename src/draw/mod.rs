//! Drawing to PNG: `canvas` knows pixels and text, `axis` chooses ranges, ticks and the words beside them, `sheet` lays
//! pictures out in rows with captions. Nothing here knows what is drawn: curves of a run and the pictures of `viz` are made
//! of this.

pub mod axis;
pub mod canvas;
pub mod sheet;

pub use canvas::{AXIS, Align, COLORS, Canvas, Color, GRID, INK, MUTED, Weight, faint};
pub use sheet::{Mark, Sheet, Tile};
