//! Tiles of the output in vector registers.

use std::arch::x86_64::*;

use super::pack::{Panels, lanes};
use super::{Block, LANES, Line, Output, Task, WIDTH};

/// The most rows of a tile: 28 registers of sums, two of weights and one of a row's number.
const ROWS: usize = 14;
/// The same where rows of x fight for the same places of the cache, as those do that are a multiple of 4 KB apart; such a tile
/// is 64 columns wide.
const CROWDED_ROWS: usize = 6;

/// # Safety
/// The processor has AVX-512, terms and output fit, and no other task writes to this one's part of the output.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn work_on_singles(block: &Block, task: &Task, to: &Output, room: &mut Vec<Line>) {
    unsafe { work::<false>(block, task, to, room) }
}

/// # Safety
/// As [`work_on_singles`], and the processor multiplies bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn work_on_pairs(block: &Block, task: &Task, to: &Output, room: &mut Vec<Line>) {
    unsafe { work::<true>(block, task, to, room) }
}

/// Adds a block of depth to a part of the output.
#[inline(always)]
unsafe fn work<const PAIRS: bool>(block: &Block, task: &Task, to: &Output, room: &mut Vec<Line>) {
    let panels = Panels::new(room, block.units, task, to.columns);
    let mut crowded = false;
    for piece in &block.pieces {
        crowded |= (piece.term.rows.start().1 * size_of::<u32>()).is_multiple_of(4096);
        unsafe { panels.pack::<PAIRS>(piece) }
    }
    let (rows, wide) = if crowded { (CROWDED_ROWS, 2) } else { (ROWS, 1) };
    let tiles = task.rows.len().div_ceil(rows);
    let start = |tile: usize| task.rows.start + tile * task.rows.len() / tiles;
    for tile in 0..tiles {
        let (first, rows) = (start(tile), start(tile + 1) - start(tile));
        for i in (0..task.panels.len()).step_by(wide) {
            let column = (task.panels.start + i) * WIDTH;
            let out = to.out.at(first * to.stride + column).cast();
            let columns = to.columns - column;
            let tile = Tile { block, first, panel: panels.at(i), out, stride: to.stride, columns };
            unsafe { tile.compute::<PAIRS>(rows, wide.min(task.panels.len() - i), to.accumulate) }
        }
    }
}

/// Some rows of the output by one panel's columns, or by two panels'.
struct Tile<'a> {
    block: &'a Block<'a>,
    /// The first row of x.
    first: usize,
    panel: *const u32,
    out: *mut f32,
    stride: usize,
    /// How many columns there are from its first on.
    columns: usize,
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn compute<const PAIRS: bool>(&self, rows: usize, panels: usize, accumulate: bool) {
        unsafe {
            match (rows, panels) {
                (1, 1) => self.of::<PAIRS, 1, 2>(accumulate),
                (2, 1) => self.of::<PAIRS, 2, 2>(accumulate),
                (3, 1) => self.of::<PAIRS, 3, 2>(accumulate),
                (4, 1) => self.of::<PAIRS, 4, 2>(accumulate),
                (5, 1) => self.of::<PAIRS, 5, 2>(accumulate),
                (6, 1) => self.of::<PAIRS, 6, 2>(accumulate),
                (7, 1) => self.of::<PAIRS, 7, 2>(accumulate),
                (8, 1) => self.of::<PAIRS, 8, 2>(accumulate),
                (9, 1) => self.of::<PAIRS, 9, 2>(accumulate),
                (10, 1) => self.of::<PAIRS, 10, 2>(accumulate),
                (11, 1) => self.of::<PAIRS, 11, 2>(accumulate),
                (12, 1) => self.of::<PAIRS, 12, 2>(accumulate),
                (13, 1) => self.of::<PAIRS, 13, 2>(accumulate),
                (_, 1) => self.of::<PAIRS, ROWS, 2>(accumulate),
                (1, _) => self.of::<PAIRS, 1, 4>(accumulate),
                (2, _) => self.of::<PAIRS, 2, 4>(accumulate),
                (3, _) => self.of::<PAIRS, 3, 4>(accumulate),
                (4, _) => self.of::<PAIRS, 4, 4>(accumulate),
                (5, _) => self.of::<PAIRS, 5, 4>(accumulate),
                (_, _) => self.of::<PAIRS, CROWDED_ROWS, 4>(accumulate),
            }
        }
    }

    /// R rows by V registers.
    #[inline(always)]
    unsafe fn of<const PAIRS: bool, const R: usize, const V: usize>(&self, accumulate: bool) {
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            let mut panel = self.panel.cast::<f32>();
            let next = self.block.units * WIDTH;
            for piece in &self.block.pieces {
                let (rows, stride) = piece.term.rows.start();
                let mut rows = Pointers::new(rows.add(self.first * stride + piece.first), stride);
                for _ in 0..piece.units {
                    let mut weights = [_mm512_setzero_ps(); V];
                    for (v, weights) in weights.iter_mut().enumerate() {
                        *weights = _mm512_load_ps(panel.add(v / 2 * next + v % 2 * LANES));
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
            for (row, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let out = self.out.add(row * self.stride + v * LANES);
                    let mask = lanes(self.columns, v * LANES);
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
