//! The size of an image and of its components, in samples, blocks and minimum coded units (MCUs).

use super::colour::Colour;
use super::stream::{Fault, Stream, damaged};
use super::upsample::Upsampling;

/// One component of a frame.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub id: u8,
    /// Blocks of an MCU, across and down.
    pub sampling: (usize, usize),
    pub quantisation_table: u8,
    pub dc_table: u8,
    pub ac_table: u8,
    /// The factors that held when the component's first scan began, row by row.
    pub factors: Option<[u16; 64]>,
    /// Blocks that hold samples of the image, across and down.
    pub blocks: (usize, usize),
    /// Blocks of all MCUs, across and down.
    pub padded: (usize, usize),
    /// Samples of a block, across and down: 8, or fewer where the image is decoded small.
    pub size: usize,
    /// Samples of the image, across and down.
    pub samples: (usize, usize),
    pub upsampling: Upsampling,
}

impl Component {
    pub(super) fn new(id: u8, across: u8, down: u8, quantisation_table: u8) -> Self {
        Self {
            id,
            sampling: (across.into(), down.into()),
            quantisation_table,
            dc_table: 0,
            ac_table: 0,
            factors: None,
            blocks: (0, 0),
            padded: (0, 0),
            size: 8,
            samples: (0, 0),
            upsampling: Upsampling::None,
        }
    }
}

/// What the frame header says, and what follows from it.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub is_progressive: bool,
    pub is_arithmetic: bool,
    pub is_lossless: bool,
    pub bits: u8,
    pub components: Vec<Component>,
    pub colour: Colour,
    /// Width and height of the stored image.
    pub stored: (usize, usize),
    /// Width and height of the decoded image.
    pub size: (usize, usize),
    /// The most blocks that a component has of an MCU, across and down.
    pub max: (usize, usize),
    /// Samples of a block of the components with the most, across and down.
    pub block: usize,
    /// MCUs of a scan of all components, across and down.
    pub mcus: (usize, usize),
}

impl Frame {
    pub(super) fn new(marker: u8, bits: u8, size: (u16, u16), components: Vec<Component>) -> Self {
        let stored = (usize::from(size.0), usize::from(size.1));
        Self {
            is_progressive: matches!(marker, 0xC2 | 0xCA),
            is_arithmetic: marker > 0xC8,
            is_lossless: matches!(marker, 0xC3 | 0xCB),
            bits,
            components,
            colour: Colour::Grey,
            stored,
            size: stored,
            max: (1, 1),
            block: 8,
            mcus: (0, 0),
        }
    }

    /// Works out every size, for an image decoded at one `fraction`-th (1, 2, 4 or 8).
    pub(super) fn lay_out(&mut self, fraction: usize) -> Result<(), Fault> {
        let (width, height) = self.stored;
        let unit = if self.is_lossless { 1 } else { 8 };
        if width > 65_500 || height > 65_500 {
            return damaged(format!("a size of {width}x{height} pixels, above 65500"));
        }
        if self.bits != 8 {
            return damaged(format!("{} bits a sample, expected 8", self.bits));
        }
        for component in &self.components {
            let (across, down) = component.sampling;
            if !(1..=4).contains(&across) || !(1..=4).contains(&down) {
                return damaged(format!("sampling factors {across}x{down}, expected 1 to 4"));
            }
            self.max = (self.max.0.max(across), self.max.1.max(down));
        }
        let (max_across, max_down) = self.max;
        let fraction = if self.is_lossless { 1 } else { fraction };
        self.block = unit / fraction;
        self.size = (width.div_ceil(fraction), height.div_ceil(fraction));
        self.mcus = (
            width.div_ceil(max_across * unit),
            height.div_ceil(max_down * unit),
        );
        for component in &mut self.components {
            let (across, down) = component.sampling;
            component.blocks = (
                (width * across).div_ceil(max_across * unit),
                (height * down).div_ceil(max_down * unit),
            );
            component.padded = (self.mcus.0 * across, self.mcus.1 * down);
            // Components of fewer samples are decoded larger rather than upsampled, as far as powers of two go.
            let mut size = self.block;
            while size < unit
                && (max_across * self.block).is_multiple_of(across * size * 2)
                && (max_down * self.block).is_multiple_of(down * size * 2)
            {
                size *= 2;
            }
            component.size = size;
            component.samples = (
                (width * across * size).div_ceil(max_across * unit),
                (height * down * size).div_ceil(max_down * unit),
            );
            let grouped = (across * size / self.block, down * size / self.block);
            let fancy = self.block > 1;
            let upsampling = Upsampling::new(grouped, self.max, fancy, component.samples.0);
            component.upsampling = match upsampling {
                Some(upsampling) => upsampling,
                None => {
                    let text = format!("sampling factors {across}x{down} beside {max_across}x{max_down}");
                    return damaged(text);
                }
            };
        }
        Ok(())
    }
}

/// The order in which a scan's blocks come.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Per block of an MCU: the component's place in the scan and in the frame, and its column and row in the MCU.
    pub blocks: Vec<(usize, usize, usize, usize)>,
    /// MCUs across.
    pub across: usize,
    /// Blocks of an MCU across and down, per component of the scan.
    pub sizes: [(usize, usize); 4],
    /// Whether the scan has one component, whose blocks then come row by row.
    pub is_single: bool,
}

impl Layout {
    /// The order for a scan of `components`, whose factors are kept from now on.
    pub(super) fn new(stream: &mut Stream, frame: &mut Frame, components: &[usize]) -> Result<Self, Fault> {
        let is_single = components.len() == 1;
        let mut blocks = Vec::new();
        let mut sizes = [(1, 1); 4];
        for (slot, &place) in components.iter().enumerate() {
            let component = &mut frame.components[place];
            let (across, down) = if is_single { (1, 1) } else { component.sampling };
            sizes[slot] = (across, down);
            blocks.extend((0..down).flat_map(|y| (0..across).map(move |x| (slot, place, x, y))));
            if component.factors.is_none() && !frame.is_lossless {
                let table = usize::from(component.quantisation_table);
                let factors = stream.tables.quantisation.get(table).copied().flatten();
                if factors.is_none() {
                    return damaged(format!("quantisation table {table} is missing"));
                }
                component.factors = factors;
            }
        }
        if blocks.len() > 10 && !is_single {
            return damaged(format!("{} blocks to a unit, expected 10 at most", blocks.len()));
        }
        let across = match is_single {
            true => frame.components[components[0]].blocks.0,
            false => frame.mcus.0,
        };
        Ok(Self {
            blocks,
            across,
            sizes,
            is_single,
        })
    }

    /// Rows of MCUs in row `row` of the frame's MCUs.
    pub(super) fn rows(&self, frame: &Frame, row: usize) -> usize {
        if !self.is_single {
            return 1;
        }
        let component = &frame.components[self.blocks[0].1];
        let down = component.sampling.1;
        down.min(component.blocks.1.saturating_sub(row * down))
    }
}
