//! Tiles of the output in vector registers.

use std::arch::x86_64::*;

use super::pack::lanes;
use super::{LANES, WIDTH};

/// The most rows of a tile: 28 registers of sums, two of weights and one of a row's number.
const ROWS: usize = 14;
/// The same where rows of x fight for the same places of the cache, as those do that are a multiple of 4 KB apart; such a tile
/// is 64 columns wide.
const CROWDED_ROWS: usize = 6;

/// Rows of x from some unit of their depth on.
pub(super) struct Run {
    pub start: *const u32,
    /// Units from one row to the next.
    pub stride: usize,
    pub units: usize,
}

/// Where a sum of products goes: `scale` times the sum, or that added to what is there.
pub(super) struct Output {
    pub start: *mut f32,
    pub stride: usize,
    /// How many columns there are.
    pub columns: usize,
    pub scale: f32,
    pub accumulate: bool,
}

/// Panels next to each other, from some unit of their depth on.
pub(super) struct Weights {
    pub start: *const u32,
    /// Units from one panel to the next.
    pub apart: usize,
    pub count: usize,
}

/// # Safety
/// The processor has AVX-512, and so many rows, weights and places of the output exist, which nobody else writes to.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn multiply_singles(x: &[Run], rows: usize, weights: &Weights, to: &Output) {
    unsafe { multiply::<false>(x, rows, weights, to) }
}

/// # Safety
/// As [`multiply_singles`], and the processor multiplies bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply_pairs(x: &[Run], rows: usize, weights: &Weights, to: &Output) {
    unsafe { multiply::<true>(x, rows, weights, to) }
}

/// Sums over the runs of x, whose weights lie one behind the other in each panel.
#[inline(always)]
unsafe fn multiply<const PAIRS: bool>(x: &[Run], rows: usize, weights: &Weights, to: &Output) {
    let crowded = x.iter().any(|run| (run.stride * size_of::<u32>()).is_multiple_of(4096));
    let (most, panels) = if crowded { (CROWDED_ROWS, 2) } else { (ROWS, 1) };
    let tiles = rows.div_ceil(most);
    let start = |tile: usize| tile * rows / tiles;
    for tile in 0..tiles {
        let (first, rows) = (start(tile), start(tile + 1) - start(tile));
        for i in (0..weights.count).step_by(panels) {
            let tile = Tile {
                x,
                first,
                panel: weights.start.wrapping_add(i * weights.apart * WIDTH),
                next: weights.apart * WIDTH,
                out: to.start.wrapping_add(first * to.stride + i * WIDTH),
                columns: to.columns - i * WIDTH,
                to,
            };
            unsafe { tile.compute::<PAIRS>(rows, panels.min(weights.count - i)) }
        }
    }
}

/// Some rows of the output by one panel's columns, or by two panels'.
struct Tile<'a> {
    x: &'a [Run],
    /// The first row of x.
    first: usize,
    panel: *const u32,
    /// Units to the next panel.
    next: usize,
    out: *mut f32,
    /// How many columns there are from its first on.
    columns: usize,
    to: &'a Output,
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn compute<const PAIRS: bool>(&self, rows: usize, panels: usize) {
        unsafe {
            match (rows, panels) {
                (1, 1) => self.of::<PAIRS, 1, 2>(),
                (2, 1) => self.of::<PAIRS, 2, 2>(),
                (3, 1) => self.of::<PAIRS, 3, 2>(),
                (4, 1) => self.of::<PAIRS, 4, 2>(),
                (5, 1) => self.of::<PAIRS, 5, 2>(),
                (6, 1) => self.of::<PAIRS, 6, 2>(),
                (7, 1) => self.of::<PAIRS, 7, 2>(),
                (8, 1) => self.of::<PAIRS, 8, 2>(),
                (9, 1) => self.of::<PAIRS, 9, 2>(),
                (10, 1) => self.of::<PAIRS, 10, 2>(),
                (11, 1) => self.of::<PAIRS, 11, 2>(),
                (12, 1) => self.of::<PAIRS, 12, 2>(),
                (13, 1) => self.of::<PAIRS, 13, 2>(),
                (_, 1) => self.of::<PAIRS, ROWS, 2>(),
                (1, _) => self.of::<PAIRS, 1, 4>(),
                (2, _) => self.of::<PAIRS, 2, 4>(),
                (3, _) => self.of::<PAIRS, 3, 4>(),
                (4, _) => self.of::<PAIRS, 4, 4>(),
                (5, _) => self.of::<PAIRS, 5, 4>(),
                (_, _) => self.of::<PAIRS, CROWDED_ROWS, 4>(),
            }
        }
    }

    /// R rows by V registers.
    #[inline(always)]
    unsafe fn of<const PAIRS: bool, const R: usize, const V: usize>(&self) {
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            let mut panel = self.panel.cast::<f32>();
            for run in self.x {
                let mut rows = Pointers::new(run.start.add(self.first * run.stride), run.stride);
                for _ in 0..run.units {
                    let mut weights = [_mm512_setzero_ps(); V];
                    for (v, weights) in weights.iter_mut().enumerate() {
                        *weights = _mm512_load_ps(panel.add(v / 2 * self.next + v % 2 * LANES));
                    }
                    // Written out, since the compiler stops short of unrolling this much.
                    macro_rules! add_rows {
                        ($($row:literal)*) => {$(
                            if $row < R {
                                let x = _mm512_set1_ps(rows.of($row).cast::<f32>().read());
                                for (sum, weight) in sums[$row % R].iter_mut().zip(weights) {
                                    *sum = if PAIRS {
                                        _mm512_dpbf16_ps(*sum, pairs(x), pairs(weight))
                                    } else {
                                        _mm512_fmadd_ps(x, weight, *sum)
                                    };
                                }
                            }
                        )*};
                    }
                    add_rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
                    panel = panel.add(WIDTH);
                    rows.advance();
                }
            }
            let Output { stride, scale, accumulate, .. } = *self.to;
            for (row, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let out = self.out.wrapping_add(row * stride + v * LANES);
                    let mask = lanes(self.columns, v * LANES);
                    let sum = _mm512_mul_ps(sum, _mm512_set1_ps(scale));
                    let sum =
                        if accumulate { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum) } else { sum };
                    _mm512_mask_storeu_ps(out, mask, sum);
                }
            }
        }
    }
}

/// Pointers into up to 14 rows at a stride: two that advance, and distances that an address can hold a multiple of. The
/// compiler is kept from knowing how they hang together, or it would add them up for every row and unit.
struct Pointers {
    rows: [*const u8; 2],
    once: usize,
    three: usize,
    five: usize,
    seven: usize,
}

impl Pointers {
    #[inline(always)]
    fn new(start: *const u32, stride: usize) -> Self {
        let start: *const u8 = start.cast();
        let once = opaque(stride * size_of::<u32>());
        let second = opaque(start.wrapping_add(once) as usize) as *const u8;
        let [three, five, seven] = [3, 5, 7].map(|times| opaque(times * once));
        Self { rows: [start, second], once, three, five, seven }
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.rows = self.rows.map(|row| row.wrapping_add(size_of::<u32>()));
    }

    #[inline(always)]
    fn of(&self, row: usize) -> *const u8 {
        let [first, second] = self.rows;
        match row {
            0 => first,
            1 => second,
            2 => first.wrapping_add(2 * self.once),
            3 => first.wrapping_add(self.three),
            4 => first.wrapping_add(4 * self.once),
            5 => first.wrapping_add(self.five),
            6 => first.wrapping_add(2 * self.three),
            7 => first.wrapping_add(self.seven),
            8 => first.wrapping_add(8 * self.once),
            9 => second.wrapping_add(8 * self.once),
            10 => first.wrapping_add(2 * self.five),
            11 => second.wrapping_add(2 * self.five),
            12 => first.wrapping_add(4 * self.three),
            _ => second.wrapping_add(4 * self.three),
        }
    }
}

/// The same number, of which the compiler knows nothing.
#[inline(always)]
fn opaque(mut x: usize) -> usize {
    unsafe { std::arch::asm!("/* {0} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags)) }
    x
}

/// The same bits as pairs of bf16.
#[inline(always)]
pub(super) fn pairs(x: __m512) -> __m512bh {
    // Safety: both are 512 bits of which any are valid.
    unsafe { std::mem::transmute(x) }
}
