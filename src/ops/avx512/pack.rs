//! Where kernels read from: rows of x rounded to bf16, and panels of weights.

use std::arch::x86_64::*;

use half::bf16;
use rayon::prelude::*;

use super::super::cpu::Mat;
use super::super::products::Factor;
use super::{LANES, Line, Piece, Rows, Task, WIDTH};

/// Elements of x that a parallel task rounds.
const ROUNDED: usize = 1 << 15;

/// Which of 16 elements exist, of `count` from an offset on.
#[inline(always)]
pub(super) fn lanes(count: usize, offset: usize) -> __mmask16 {
    let left = count.saturating_sub(offset).min(LANES);
    ((1u32 << left) - 1) as __mmask16
}

/// [`lanes`] of the first 32.
#[inline(always)]
pub(super) fn lanes_of_32(count: usize) -> __mmask32 {
    ((1u64 << count.min(32)) - 1) as __mmask32
}

/// 16 bf16 in the lower halves of units.
#[inline(always)]
pub(super) unsafe fn wide(from: *const bf16, mask: __mmask16) -> __m512i {
    // Of a whole register the lower half: loads of half a register take AVX-512 VL besides.
    unsafe {
        let lower = _mm512_castsi512_si256(_mm512_maskz_loadu_epi16(__mmask32::from(mask), from.cast()));
        _mm512_cvtepu16_epi32(lower)
    }
}

/// x in bf16, on a processor that has it, with `more` rows of zeros behind.
pub(super) fn rounded<'a>(x: Mat<'_, f32>, more: usize) -> Rows<'a> {
    // An odd number of lines, so that rows do not fight for the same places of the cache.
    let lines = x.cols.div_ceil(2 * LANES) | 1;
    let mut rounded = vec![Line([0; LANES]); (x.rows + more) * lines];
    let at_once = (ROUNDED / x.cols.max(1)).max(1);
    rounded[..x.rows * lines].par_chunks_mut(at_once * lines).enumerate().for_each(|(i, to)| {
        for (j, to) in to.chunks_mut(lines).enumerate() {
            let row = &x.data[(i * at_once + j) * x.row_stride..][..x.cols];
            // Safety: this processor has the instructions.
            unsafe { round(row, to) }
        }
    });
    Rows::Rounded { lines: rounded, stride: lines * LANES }
}

/// Rounds a row of x to bf16 into lines; what is missing of the last line is 0.
///
/// # Safety
/// The processor has AVX-512 with bf16, and the lines have room.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round(row: &[f32], to: &mut [Line]) {
    for (i, to) in to.iter_mut().enumerate().take(row.len().div_ceil(2 * LANES)) {
        let half = |first: usize| unsafe {
            _mm512_maskz_loadu_ps(lanes(row.len(), first), row.as_ptr().wrapping_add(first))
        };
        let rounded = _mm512_cvtne2ps_pbh(half((2 * i + 1) * LANES), half(2 * i * LANES));
        unsafe {
            _mm512_store_si512(to.0.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(rounded))
        }
    }
}

/// The panels of a task: each (units, 32).
pub(super) struct Panels {
    start: *mut u32,
    /// Of each.
    units: usize,
    count: usize,
    /// The first's first column, of `columns` that there are.
    first: usize,
    columns: usize,
}

impl Panels {
    pub(super) fn new(room: &mut Vec<Line>, units: usize, task: &Task, columns: usize) -> Self {
        let (first, count) = (task.panels.start * WIDTH, task.panels.len());
        assert!(room.capacity() * LANES >= count * units * WIDTH, "too little room for panels");
        Self { start: room.as_mut_ptr().cast(), units, count, first, columns }
    }

    /// Where a panel begins.
    #[inline(always)]
    pub(super) fn at(&self, panel: usize) -> *mut u32 {
        self.start.wrapping_add(panel * self.units * WIDTH)
    }

    /// Packs a piece of the depth, with zeros for columns and depth that do not exist.
    ///
    /// # Safety
    /// The processor has AVX-512, the weight fits and is contiguous along one of both, and the piece lies within the panels.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn pack(&self, piece: &Piece) {
        let in_pairs = piece.term.kind.per_unit() == 2;
        unsafe {
            match piece.term.w {
                Factor::Plain(w) if w.row_stride == 1 => {
                    let load = |w: *const f32, left| _mm512_maskz_loadu_epi32(lanes(left, 0), w.cast());
                    self.pack_turned::<f32, 1>(w, piece, load);
                }
                Factor::Plain(w) => {
                    let load = |w: *const f32, _, mask| _mm512_maskz_loadu_epi32(mask, w.cast());
                    self.pack_straight::<f32, 1>(w, piece, load);
                }
                Factor::Bf16(w) if w.row_stride == 1 && in_pairs => {
                    let load = |w: *const bf16, left| _mm512_maskz_loadu_epi16(lanes_of_32(left), w.cast());
                    self.pack_turned::<bf16, 2>(w, piece, load);
                }
                Factor::Bf16(w) if w.row_stride == 1 => {
                    let load = |w: *const bf16, left| _mm512_slli_epi32(wide(w, lanes(left, 0)), 16);
                    self.pack_turned::<bf16, 1>(w, piece, load);
                }
                Factor::Bf16(w) if in_pairs => {
                    let load = |from: *const bf16, left: usize, mask| {
                        let [first, second] = [0, 1].map(|i| if left > i { mask } else { 0 });
                        let second = wide(from.wrapping_add(w.row_stride), second);
                        _mm512_or_si512(wide(from, first), _mm512_slli_epi32(second, 16))
                    };
                    self.pack_straight::<bf16, 2>(w, piece, load);
                }
                Factor::Bf16(w) => {
                    let load = |w: *const bf16, _, mask| _mm512_slli_epi32(wide(w, mask), 16);
                    self.pack_straight::<bf16, 1>(w, piece, load);
                }
            }
        }
    }

    /// Columns that lie side by side: a unit of depth after the other, so that memory is read in long runs. `load` reads 16
    /// columns, given how many elements of the depth are left and which columns exist.
    #[inline(always)]
    unsafe fn pack_straight<T, const PER_UNIT: usize>(
        &self,
        w: Mat<'_, T>,
        piece: &Piece,
        load: impl Fn(*const T, usize, __mmask16) -> __m512i,
    ) {
        for unit in 0..piece.units {
            let done = (piece.first + unit) * PER_UNIT;
            let from = w.data.as_ptr().wrapping_add(done * w.row_stride + self.first);
            for panel in 0..self.count {
                for lane in [0, LANES] {
                    let column = panel * WIDTH + lane;
                    let mask = lanes(self.columns - self.first, column);
                    unsafe {
                        let ahead = from.wrapping_add(8 * PER_UNIT * w.row_stride + column);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        let units =
                            load(from.wrapping_add(column), piece.term.depth.saturating_sub(done), mask);
                        let to = self.at(panel).add((piece.at + unit) * WIDTH + lane);
                        _mm512_store_si512(to.cast(), units);
                    }
                }
            }
        }
    }

    /// Columns that lie along the depth: 16 × 16 units at a time, which `load` reads of a column, given how many elements are
    /// left of it.
    #[inline(always)]
    unsafe fn pack_turned<T, const PER_UNIT: usize>(
        &self,
        w: Mat<'_, T>,
        piece: &Piece,
        load: impl Fn(*const T, usize) -> __m512i,
    ) {
        for (panel, lane) in (0..self.count).flat_map(|panel| [(panel, 0), (panel, LANES)]) {
            let column = self.first + panel * WIDTH + lane;
            for unit in (0..piece.units).step_by(LANES) {
                let done = (piece.first + unit) * PER_UNIT;
                let mut square = [unsafe { _mm512_setzero_si512() }; LANES];
                for (i, row) in square.iter_mut().enumerate() {
                    let exists = column + i < self.columns;
                    let left = if exists { piece.term.depth.saturating_sub(done) } else { 0 };
                    *row = load(w.data.as_ptr().wrapping_add((column + i) * w.col_stride + done), left);
                }
                let square = unsafe { transposed(square) };
                for (i, row) in square.into_iter().enumerate() {
                    if unit + i < piece.units {
                        let to = self.at(panel).wrapping_add((piece.at + unit + i) * WIDTH + lane);
                        unsafe { _mm512_store_si512(to.cast(), row) }
                    }
                }
            }
        }
    }
}

/// The transpose of 16 × 16 units.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(mut r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for i in 0..4 {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for i in 0..8 {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
    r
}
