//! How many threads a kernel gets, and what each of them covers.

/// Lanes of a warp.
const WARP: usize = 32;
/// Columns that a block covers where a thread has one, and threads of a block where warps have a row each.
const COLUMNS: usize = 128;
const WARP_ROW_BLOCK: usize = 256;
/// Values of a row that a thread has beside each other where sizes allow (`Several` in `common.cuh`): 16 bytes of bf16.
pub(super) const WIDE: usize = 8;
/// Most threads of a block that has columns, and threads that are enough to keep a GPU's memory busy.
const STRIP_BLOCK: usize = 256;
const ENOUGH_THREADS: usize = 1 << 17;
/// Most chunks of rows whose partial sums are added up.
const MAX_PARTIALS: usize = 1024;
/// Most blocks of the backward pass of a norm, each of which leaves a row of partial sums.
const MAX_NORM_BLOCKS: usize = 2048;
/// Most blocks along the second axis.
const MAX_CHUNKS: usize = 32_768;
/// Threads of a block that adds up partial sums, of one that has a row, and of one that has a piece of a weight.
const PARTIALS_BLOCK: usize = 1024;
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
/// Of attention (`fused_attention.cu`): rows of a warp, rows of a tile that the warps of a block share, and values that a row in
/// shared memory is longer by.
const OWN_ROWS: usize = 16;
const TILE_ROWS: usize = 64;
const ROW_PADDING: usize = 8;
/// Most warps of a block of it, and of one that has all rows of a head.
const MAX_ROW_WARPS: usize = 6;
const MAX_HEAD_WARPS: usize = 4;
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

/// A thread for a few columns of a chunk of rows (`Strip` in `common.cuh`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunked {
    pub(super) launch: Launch,
    pub(super) chunks: usize,
    pub(super) chunk_rows: usize,
    /// Threads of a block that lie beside each other.
    pub(super) across: usize,
    /// Whether a thread has [`WIDE`] columns and not one.
    pub(super) is_wide: bool,
}

impl Chunked {
    /// For a kernel that leaves nothing of a chunk behind.
    pub(super) fn new(rows: usize, width: usize, is_wide: bool) -> Self {
        Self::with_chunk_rows(rows, width, is_wide, 8.max(rows.div_ceil(MAX_CHUNKS)))
    }

    /// For a kernel that leaves a partial sum of each column.
    pub(super) fn with_sums(rows: usize, width: usize, is_wide: bool) -> Self {
        let threads = width.div_ceil(if is_wide { WIDE } else { 1 }).max(1);
        let chunks = (ENOUGH_THREADS / threads).clamp(16, MAX_PARTIALS);
        Self::with_chunk_rows(rows, width, is_wide, 16.max(rows.div_ceil(chunks)))
    }

    fn with_chunk_rows(rows: usize, width: usize, is_wide: bool, chunk_rows: usize) -> Self {
        let chunks = rows.div_ceil(chunk_rows);
        let threads = width.div_ceil(if is_wide { WIDE } else { 1 }).max(1);
        let across = threads.div_ceil(threads.div_ceil(STRIP_BLOCK));
        let down = (STRIP_BLOCK / across).min(chunks.max(1));
        let grid = [threads.div_ceil(across), chunks.div_ceil(down)];
        let block = (across * down).next_multiple_of(WARP);
        Self {
            launch: Launch::new(grid, block, 0),
            chunks,
            chunk_rows,
            across,
            is_wide,
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
    // A multiple of 16 bytes, at which shared memory then also ends where it is emulated.
    let floats = 2 * width + (2 * (block / WARP)).next_multiple_of(4);
    let fits = floats * size_of::<f32>() <= SHARED;
    fits.then(|| Launch::new([rows.min(MAX_NORM_BLOCKS), 1], block, floats))
}

/// A thread for every column of every token; `None` where these are more than a grid has rows.
pub(super) fn tokens(tokens: usize, width: usize) -> Option<Launch> {
    let fits = tokens <= MAX_CHUNKS;
    fits.then(|| Launch::new([width.div_ceil(COLUMNS), tokens], COLUMNS, 0))
}

/// A block for every row.
pub(super) fn block_rows(rows: usize) -> Launch {
    Launch::new([rows, 1], ROW_BLOCK, 2 * (ROW_BLOCK / WARP))
}

/// Blocks for every 4,096 values of every row.
pub(super) fn wide_rows(rows: usize, width: usize) -> Launch {
    Launch::new(
        [rows, width.div_ceil(16 * ROW_BLOCK).min(MAX_CHUNKS)],
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

/// A line of blocks for every crop, which share up to `max` pixels of it.
pub(super) fn crop_pixels(crops: usize, max: usize) -> Launch {
    let blocks = max.div_ceil(CROP_BLOCK * CROP_PIXELS).clamp(1, MAX_CHUNKS);
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

/// Floats that so many rows of bf16 values take up in shared memory.
fn padded_rows(rows: usize, width: usize) -> usize {
    rows * (width + ROW_PADDING) / 2
}

/// A warp for every [`OWN_ROWS`] of the `tokens` rows of each matrix, in blocks of about the same number of them.
pub(super) fn attention_rows(matrices: usize, tokens: usize, head_dim: usize) -> Launch {
    let warps = tokens.div_ceil(OWN_ROWS);
    let warps = warps.div_ceil(warps.div_ceil(MAX_ROW_WARPS));
    let own = warps * OWN_ROWS;
    // Two tiles of two matrices, in one of which own rows find room when it is empty; two numbers a row of them, or one a row of its own.
    let floats = padded_rows(4 * TILE_ROWS, head_dim) + 4 * TILE_ROWS;
    Launch::new([matrices * tokens.div_ceil(own), 1], warps * WARP, floats)
}

/// A block for every matrix; `None` where one cannot hold all of its rows.
pub(super) fn attention_of_few(matrices: usize, tokens: usize, head_dim: usize) -> Option<Launch> {
    let warps = tokens.div_ceil(OWN_ROWS);
    let rows = warps * OWN_ROWS;
    let floats = padded_rows(5 * rows, head_dim) + 2 * rows;
    let fits = warps <= MAX_HEAD_WARPS && floats * size_of::<f32>() <= SHARED;
    fits.then(|| Launch::new([matrices, 1], warps * WARP, floats))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_column_is_covered_and_grids_stay_within_limits() {
        for rows in [0, 1, 15, 16, 17, 257, 58_000, 3_000_000] {
            for width in [1, 31, 128, 129, 1536] {
                for is_wide in [false, true] {
                    let with_sums = Chunked::with_sums(rows, width, is_wide);
                    for chunked in [Chunked::new(rows, width, is_wide), with_sums] {
                        let [x, y] = chunked.launch.grid.map(|blocks| blocks as usize);
                        let columns = chunked.across * if is_wide { WIDE } else { 1 };
                        // As many chunks of a block as `strip_of` counts.
                        let down = chunked.launch.block as usize / chunked.across;
                        assert!(x * columns >= width && y * down >= chunked.chunks && y <= 65_535);
                        assert!(chunked.chunks * chunked.chunk_rows >= rows);
                        assert!(chunked.launch.block <= 256 && chunked.launch.block % 32 == 0);
                    }
                    assert!(with_sums.chunks <= MAX_PARTIALS);
                }
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

    #[test]
    fn attention_covers_every_row_and_stays_within_shared_memory() {
        for tokens in [1, 16, 17, 50, 64, 65, 96, 97, 197, 257, 785, 4097] {
            let launch = attention_rows(6, tokens, 64);
            let own = launch.block as usize / WARP * OWN_ROWS;
            assert!(launch.grid[0] as usize / 6 * own >= tokens && launch.shared as usize <= SHARED);
            assert!(launch.block as usize <= MAX_ROW_WARPS * WARP);
            let of_few = attention_of_few(6, tokens, 64);
            assert_eq!(of_few.is_some(), tokens <= 64);
            assert!(of_few.is_none_or(|launch| launch.shared as usize <= SHARED));
        }
        assert_eq!(attention_rows(1, 257, 64).grid, [3, 1]);
        assert_eq!(attention_rows(1, 257, 64).block, 192);
        assert_eq!(attention_rows(1, 197, 64).block, 160);
    }
}
