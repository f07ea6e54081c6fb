//! How many threads a kernel gets, and what each of them covers.

/// Lanes of a warp.
const WARP: usize = 32;
/// Columns that a block covers where a thread has one, and threads of a block where warps have a row each.
const COLUMNS: usize = 128;
const WARP_ROW_BLOCK: usize = 256;
/// Most chunks of rows whose partial sums are added up.
const MOST_PARTIALS: usize = 256;
/// Most blocks of the backward pass of a norm, each of which leaves a row of partial sums.
const MOST_NORM_BLOCKS: usize = 1024;
/// Most blocks along the second axis.
const MOST_CHUNKS: usize = 32_768;
/// Threads of a block that adds up partial sums, of one that has a row, and of one that has a piece of a weight.
const PARTIALS_BLOCK: usize = 512;
const ROW_BLOCK: usize = 256;
const PIECE_BLOCK: usize = 256;
/// Threads of a block that makes pixels of a crop, of one that changes all of its colours, and pixels that a thread of the first
/// covers where it can.
const CROP_BLOCK: usize = 256;
const COLOURS_BLOCK: usize = 512;
const CROP_PIXELS: usize = 4;
/// Columns and rows of a crop that a block makes, and columns on each side that it also reads (`augment.cu`).
const TILE: [usize; 2] = [32, 8];
const TILE_MARGIN: usize = 4;
/// Values that a thread of an optimizer's kernel covers (`PER_THREAD` in `optimizer.cu`).
const PER_THREAD: usize = 16;
/// Bytes of shared memory that every GPU gives a block.
const SHARED: usize = 48 << 10;

/// The blocks of a launch, their threads and the bytes of shared memory of each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch {
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block, whole warps.
    pub block: u32,
    /// Bytes.
    pub shared: u32,
}

impl Launch {
    fn new(grid: [usize; 2], block: usize, shared_floats: usize) -> Self {
        // A grid beyond that is refused by the driver.
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            grid: grid.map(number),
            block: number(block),
            shared: number(shared_floats * size_of::<f32>()),
        }
    }
}

/// A warp for every row.
pub(super) fn warp_rows(rows: usize) -> Launch {
    Launch::new([rows.div_ceil(WARP_ROW_BLOCK / WARP), 1], WARP_ROW_BLOCK, 0)
}

/// A thread for every column of a chunk of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunked {
    pub(super) launch: Launch,
    pub(super) chunks: usize,
    pub(super) chunk_rows: usize,
}

impl Chunked {
    /// For a kernel that leaves nothing of a chunk behind.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self::of(rows, width, 16.max(rows.div_ceil(MOST_CHUNKS)))
    }

    /// For a kernel that leaves a partial sum of each column.
    pub(super) fn with_sums(rows: usize, width: usize) -> Self {
        Self::of(rows, width, 64.max(rows.div_ceil(MOST_PARTIALS)))
    }

    fn of(rows: usize, width: usize, chunk_rows: usize) -> Self {
        let chunks = rows.div_ceil(chunk_rows);
        Self {
            launch: Launch::new([width.div_ceil(COLUMNS), chunks], COLUMNS, 0),
            chunks,
            chunk_rows,
        }
    }
}

/// Partial sums of `width` columns added up.
pub(super) fn partials(width: usize) -> Launch {
    Launch::new([width.div_ceil(WARP), 1], PARTIALS_BLOCK, PARTIALS_BLOCK)
}

/// The backward pass of a norm of rows of `width`; `None` where its sums are more than a block can hold.
pub(super) fn norm_backward(rows: usize, width: usize) -> Option<Launch> {
    let block = (width.div_ceil(4).next_multiple_of(WARP)).clamp(WARP, 256);
    let floats = 2 * width + 2 * (block / WARP);
    let fits = floats * size_of::<f32>() <= SHARED;
    fits.then(|| Launch::new([rows.min(MOST_NORM_BLOCKS), 1], block, floats))
}

/// A thread for every column of every token; `None` where these are more than a grid has rows.
pub(super) fn tokens(tokens: usize, width: usize) -> Option<Launch> {
    let fits = tokens <= MOST_CHUNKS;
    fits.then(|| Launch::new([width.div_ceil(COLUMNS), tokens], COLUMNS, 0))
}

/// A block for every row.
pub(super) fn block_rows(rows: usize) -> Launch {
    Launch::new([rows, 1], ROW_BLOCK, 2 * (ROW_BLOCK / WARP))
}

/// Blocks for every 4,096 values of every row.
pub(super) fn wide_rows(rows: usize, width: usize) -> Launch {
    Launch::new(
        [rows, width.div_ceil(16 * ROW_BLOCK).min(MOST_CHUNKS)],
        ROW_BLOCK,
        0,
    )
}

/// A block for each of `pieces` pieces of weights, each of [`PIECE`] values but the last ones of a tensor.
pub(super) fn pieces(pieces: usize) -> Launch {
    Launch::new([pieces, 1], PIECE_BLOCK, PIECE_BLOCK)
}

/// Values of a piece.
pub(super) const PIECE: usize = PIECE_BLOCK * PER_THREAD;

/// A line of blocks for every crop, which share up to `most` pixels of it.
pub(super) fn crop_pixels(crops: usize, most: usize) -> Launch {
    let blocks = most.div_ceil(CROP_BLOCK * CROP_PIXELS).clamp(1, MOST_CHUNKS);
    Launch::new([crops, blocks], CROP_BLOCK, 0)
}

/// A block for every crop.
pub(super) fn crops(crops: usize) -> Launch {
    Launch::new([crops, 1], COLOURS_BLOCK, COLOURS_BLOCK / WARP)
}

/// A block for every tile of every crop of `size` x `size` pixels.
pub(super) fn crop_tiles(crops: usize, size: usize) -> Launch {
    let [width, height] = TILE;
    Launch::new(
        [crops, size.div_ceil(width) * size.div_ceil(height)],
        width * height,
        3 * height * (width + 2 * TILE_MARGIN),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_column_is_covered_and_grids_stay_within_limits() {
        for rows in [0, 1, 15, 16, 17, 257, 58_000, 3_000_000] {
            for width in [1, 31, 128, 129, 1536] {
                for chunked in [Chunked::new(rows, width), Chunked::with_sums(rows, width)] {
                    let [x, y] = chunked.launch.grid;
                    assert!(x as usize * COLUMNS >= width && y as usize == chunked.chunks);
                    assert!(chunked.chunks * chunked.chunk_rows >= rows && y <= 65_535);
                }
                assert!(Chunked::with_sums(rows, width).chunks <= MOST_PARTIALS);
                assert!(warp_rows(rows).grid[0] as usize * 8 >= rows);
            }
        }
        assert!(wide_rows(3, 1 << 30).grid[1] <= 65_535);
    }

    #[test]
    fn a_norm_too_wide_for_shared_memory_is_seen() {
        assert!(norm_backward(5, 6000).is_some_and(|launch| launch.shared as usize <= SHARED));
        assert_eq!(norm_backward(5, 7000), None);
    }
}
