//! One row of output, of weights whose columns lie along the depth: every weight is used once, so it is multiplied where it
//! lies.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::super::cpu;
use super::super::products::Factor;
use super::pack::{lanes, lanes_of_32, wide};
use super::tile::pairs;
use super::{Kind, LANES, Prepared};

/// Columns of a parallel task.
const COLUMNS: usize = 64;

/// Whether the term's weight lies so.
pub(super) fn takes(term: &Prepared) -> bool {
    match term.w {
        Factor::Plain(w) => w.row_stride == 1,
        Factor::Bf16(w) => w.row_stride == 1,
    }
}

/// `out` = Σ x W of all `terms`, or `out += …` with `accumulate`.
pub(super) fn sum(out: &mut [MaybeUninit<f32>], terms: &[Prepared], accumulate: bool) {
    let each = |(i, out): (usize, &mut [MaybeUninit<f32>])| {
        if !accumulate {
            out.fill(MaybeUninit::new(0.0));
        }
        let (whole, rest) = cpu::written(out).as_chunks_mut::<4>();
        for term in terms {
            // Safety: this processor has the instructions, and the term fits the output.
            unsafe {
                for (j, out) in whole.iter_mut().enumerate() {
                    add_dots_of(term, i * COLUMNS + 4 * j, out);
                }
                for (j, out) in rest.iter_mut().enumerate() {
                    add_dots_of(term, i * COLUMNS + 4 * whole.len() + j, std::array::from_mut(out));
                }
            }
        }
    };
    out.par_chunks_mut(COLUMNS).enumerate().for_each(each);
}

/// # Safety
/// The processor has AVX-512, with bf16 where the term is in pairs, and columns from `column` on exist.
unsafe fn add_dots_of<const C: usize>(term: &Prepared, column: usize, out: &mut [f32; C]) {
    unsafe {
        match term.kind {
            Kind::Singles => add_dots_of_singles(term, column, out),
            _ => add_dots_of_pairs(term, column, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn add_dots_of_singles<const C: usize>(term: &Prepared, column: usize, out: &mut [f32; C]) {
    unsafe { add_dots::<false, C>(term, column, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_dots_of_pairs<const C: usize>(term: &Prepared, column: usize, out: &mut [f32; C]) {
    unsafe { add_dots::<true, C>(term, column, out) }
}

/// Adds the products of the only row with some columns.
#[inline(always)]
unsafe fn add_dots<const PAIRS: bool, const C: usize>(term: &Prepared, column: usize, out: &mut [f32; C]) {
    unsafe {
        let (x, _) = term.rows.start();
        let mut sums = [_mm512_setzero_ps(); C];
        let step = if PAIRS { 2 * LANES } else { LANES };
        for first in (0..term.depth).step_by(step) {
            let left = term.depth - first;
            let mask = lanes(left, 0);
            let x = match PAIRS {
                true => _mm512_maskz_loadu_ps(lanes(left.div_ceil(2), 0), x.add(first / 2).cast()),
                false => _mm512_maskz_loadu_ps(mask, x.add(first).cast()),
            };
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = match term.w {
                    Factor::Plain(w) => {
                        let from = w.data.as_ptr().add((column + i) * w.col_stride + first);
                        _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(mask, from), *sum)
                    }
                    Factor::Bf16(w) => {
                        let from = w.data.as_ptr().add((column + i) * w.col_stride + first);
                        if PAIRS {
                            let w = _mm512_maskz_loadu_epi16(lanes_of_32(left), from.cast());
                            _mm512_dpbf16_ps(*sum, pairs(x), pairs(_mm512_castsi512_ps(w)))
                        } else {
                            let w = _mm512_slli_epi32(wide(from, mask), 16);
                            _mm512_fmadd_ps(x, _mm512_castsi512_ps(w), *sum)
                        }
                    }
                };
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += _mm512_reduce_add_ps(sum);
        }
    }
}
