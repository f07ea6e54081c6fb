//! The walk through the units of a scan, whatever their code: restarts, and what is left out once the data has run out.

use super::frame::{Frame, Layout};
use super::idct::Block;
use super::stream::{Fault, Stream};

/// Decodes the blocks of a scan in their order.
pub(super) trait Coder<'a> {
    /// Decodes the next block, which is of component `slot` of the scan. Coefficients of earlier scans are in it.
    fn block(&mut self, slot: usize, block: &mut Block);
    /// To be called after the blocks of each unit.
    fn end_unit(&mut self) -> Result<(), Fault>;
    /// Begins anew behind the restart marker that is due.
    fn restart(&mut self, stream: &mut Stream<'a>) -> Result<(), Fault>;
    /// Whether units are to be left as they are until the next restart.
    fn is_idle(&self) -> bool;
    /// Whether the data has run out before a marker.
    fn has_run_out(&self) -> bool;
    /// Tells the stream where to go on.
    fn leave(&self, stream: &mut Stream<'a>);
}

/// Calls `visit` for each block of the scan with the coder, the component's places in the scan and in the frame, and the
/// block's column and row; without the coder where there is nothing to decode. Calls `end_row` after each row of the frame's units.
/// Returns the last row that had data.
pub(super) fn walk<'a, C: Coder<'a>>(
    stream: &mut Stream<'a>,
    frame: &Frame,
    layout: &Layout,
    coder: &mut C,
    mut visit: impl FnMut(Option<&mut C>, usize, usize, usize, usize),
    mut end_row: impl FnMut(usize),
) -> Result<usize, Fault> {
    let interval = stream.tables.restart_interval;
    let mut until_restart = interval;
    let mut last_good = 0;
    for row in 0..frame.mcus.1 {
        for within in 0..layout.rows(frame, row) {
            for column in 0..layout.across {
                if !coder.has_run_out() {
                    last_good = row;
                }
                if interval > 0 {
                    if until_restart == 0 {
                        coder.restart(stream)?;
                        until_restart = interval;
                    }
                    until_restart -= 1;
                }
                let is_idle = coder.is_idle();
                for &(slot, place, x, y) in &layout.blocks {
                    let (x, y) = if layout.is_single {
                        (column, row * frame.components[place].sampling.1 + within)
                    } else {
                        let (across, down) = layout.sizes[slot];
                        (column * across + x, row * down + y)
                    };
                    visit((!is_idle).then_some(&mut *coder), slot, place, x, y);
                }
                if !is_idle {
                    coder.end_unit()?;
                }
            }
        }
        end_row(row);
    }
    coder.leave(stream);
    Ok(last_good)
}

/// The coefficients of a component, in all its units.
pub(super) struct Coefficients {
    pub blocks: Vec<Block>,
    pub across: usize,
}

impl Coefficients {
    pub(super) fn new((across, down): (usize, usize)) -> Self {
        Self {
            blocks: vec![[0; 64]; across * down],
            across,
        }
    }

    pub(super) fn at(&self, x: usize, y: usize) -> &Block {
        &self.blocks[y * self.across + x]
    }

    pub(super) fn at_mut(&mut self, x: usize, y: usize) -> &mut Block {
        &mut self.blocks[y * self.across + x]
    }
}
