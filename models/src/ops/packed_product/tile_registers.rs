//! Tiles in registers of their own (AMX): `tdpbf16ps` multiplies 16 x 32 by 32 x 16 values into 16 x 16 sums.
//!
//! Sums of 32 rows and 32 columns fill four of the eight registers, two of rows and two of columns the others, so that every
//! tile loaded is used twice. Rust has no stable functions for these instructions, so the loop is written in assembly.

use std::arch::asm;
use std::arch::x86_64::_mm512_load_ps;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::ahead::Ahead;
use super::element_vectors::ElementVectors;
use super::factor::{LANES, Order};
use super::{Kernel, TILE_COLUMNS, Tile, lane_mask};

/// Rows of a tile, two registers.
const TILE_ROWS: usize = 32;

pub(super) struct TileRegisters;

/// What `ldtilecfg` reads: all eight registers have 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = {
    let (mut bytes_of_row, mut rows) = ([0; 16], [0; 16]);
    let mut register = 0;
    while register < 8 {
        (bytes_of_row[register], rows[register]) = (64, 16);
        register += 1;
    }
    Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_of_row,
        rows,
    }
};

/// Whether processor and system have them.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| super::available() && has_instructions() && permitted())
}

impl Kernel for TileRegisters {
    const TILE_ROWS: usize = TILE_ROWS;
    const VALUES: usize = 2;
    const UNIT_STEP: usize = LANES;
    /// A tile's 256 x 32 units of the right side are 32 KiB.
    const BLOCK_UNITS: usize = 256;
    const BOUND_BY_PRODUCTS: bool = false;
    const TASK_ROWS: usize = 16 * TILE_ROWS;
    const TASK_COLUMNS: usize = 128 * TILE_COLUMNS;
    const WAITING_COLUMNS: usize = Self::TASK_COLUMNS;

    fn left_order(_: bool) -> Order {
        Order::Lanes { tile: TILE_ROWS }
    }

    fn begin() {
        // SAFETY: only called where the instructions are there; the configuration is a valid one.
        #[allow(unsafe_code)]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly));
        }
    }

    fn end() {
        // SAFETY: as above. Released registers need not be saved when the system changes threads.
        #[allow(unsafe_code)]
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }

    #[allow(unsafe_code)]
    unsafe fn tile<D: ElementVectors>(
        units: usize,
        (left, _): (*const u32, Order),
        right: *const u32,
        dst: Tile<D>,
        start: Option<(*const f32, usize)>,
        _: &mut Ahead,
    ) {
        let whole = dst.rows == TILE_ROWS && dst.columns == TILE_COLUMNS;
        if whole && D::HOLDS_SUMS {
            // SAFETY: as the caller promises; what holds sums is f32.
            unsafe { whole_tile(units, left, right, dst.values.cast(), dst.row_stride, start) };
            return;
        }
        let mut sums = MaybeUninit::<Sums>::uninit();
        let place: *mut f32 = sums.as_mut_ptr().cast();
        // SAFETY: as the caller promises; `sums` is a tile, and `start` reaches as far as `dst`.
        unsafe {
            let start = match start {
                Some((values, row_stride)) if !whole => {
                    place.write_bytes(0, TILE_ROWS * TILE_COLUMNS);
                    for row in 0..dst.rows {
                        let place = place.add(row * TILE_COLUMNS);
                        place.copy_from(values.add(row * row_stride), dst.columns);
                    }
                    Some((place.cast_const(), TILE_COLUMNS))
                }
                other => other,
            };
            whole_tile(units, left, right, place, TILE_COLUMNS, start);
            // Every sum of a tile has been stored.
            store_rows(sums.assume_init_ref(), dst);
        }
    }
}

/// Sums of a tile.
#[repr(C, align(64))]
struct Sums([f32; TILE_ROWS * TILE_COLUMNS]);

/// Stores as many rows and columns as `dst` has.
///
/// # Safety
/// The processor has AVX-512 with bf16; `dst` may be written.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn store_rows<D: ElementVectors>(sums: &Sums, dst: Tile<D>) {
    for row in 0..dst.rows {
        for half in 0..TILE_COLUMNS / LANES {
            let mask = lane_mask(dst.columns.saturating_sub(half * LANES));
            // SAFETY: lanes outside of the tile are left out.
            unsafe {
                let place = dst.values.wrapping_add(row * dst.row_stride + half * LANES);
                let values = _mm512_load_ps(sums.0.as_ptr().add(row * TILE_COLUMNS + half * LANES));
                D::store(place, mask, values);
            }
        }
    }
}

/// A tile of 32 x 32 sums from `left` [units / 16, 32, 16] and `right` [units, 32].
///
/// # Safety
/// As [`Kernel::tile`]; `units` is a multiple of 16 and at least that.
#[allow(unsafe_code)]
unsafe fn whole_tile(
    units: usize,
    left: *const u32,
    right: *const u32,
    dst: *mut f32,
    row_stride: usize,
    start: Option<(*const f32, usize)>,
) {
    let (start, start_stride) = start.unwrap_or((std::ptr::null(), 0));
    // SAFETY: as the caller promises; registers are configured, and no other code uses them. 64 bytes are 16 values or pairs,
    // and 2048 bytes one step of 16 pairs of either side.
    unsafe {
        asm!(
            "test {start}, {start}",
            "jz 2f",
            "tileloadd tmm0, [{start} + {start_stride}*1]",
            "tileloadd tmm1, [{start} + {start_stride}*1 + 64]",
            "tileloadd tmm2, [{start_low} + {start_stride}*1]",
            "tileloadd tmm3, [{start_low} + {start_stride}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{left} + {left_stride}*1]",
            "tileloadd tmm6, [{right} + {right_stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right} + {right_stride}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{left} + {left_stride}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left}, 2048",
            "add {right}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{dst} + {dst_stride}*1], tmm0",
            "tilestored [{dst} + {dst_stride}*1 + 64], tmm1",
            "tilestored [{dst_low} + {dst_stride}*1], tmm2",
            "tilestored [{dst_low} + {dst_stride}*1 + 64], tmm3",
            start = in(reg) start,
            start_low = in(reg) start.wrapping_add(LANES * start_stride),
            start_stride = in(reg) 4 * start_stride,
            left = inout(reg) left => _,
            left_stride = in(reg) 64usize,
            right = inout(reg) right => _,
            right_stride = in(reg) 128usize,
            steps = inout(reg) units / LANES => _,
            dst = in(reg) dst,
            dst_low = in(reg) dst.wrapping_add(LANES * row_stride),
            dst_stride = in(reg) 4 * row_stride,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

/// Whether the processor says that it has the registers and the product of bf16.
fn has_instructions() -> bool {
    const TILES: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    features & TILES != 0 && features & BF16 != 0
}

/// Asks the system for the registers: Linux gives a process the room to save them when it is asked to
/// (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, its documentation's "x86/xstate").
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const REQUEST_PERMISSION: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: this call reads and writes no memory of ours.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) };
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
