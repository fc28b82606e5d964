//! Products with few columns, as adapters have them: dot products of rows, several rows at a time.
//!
//! gemm fills its registers with columns of the output and copies its operands first; with 8 columns it reaches a
//! quarter of its speed. Here a register holds a piece of a row, and nothing is copied.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::{self, Mat, Real, Threads};

/// The most columns that this is for.
const FEW: usize = 32;
/// Rows of a parallel task.
const ROWS: usize = 256;

/// `scale * x aᵀ` (rows of x, rows of a), for an `a` with few rows; both are contiguous along theirs.
pub(super) fn dots<T: Real>(x: Mat<'_, T>, a: Mat<'_, T>, scale: T) -> Vec<T> {
    let mut out = vec![T::zero(); x.rows * a.rows];
    dots_into(&mut out, a.rows, x, a, scale);
    out
}

/// [`dots`] into the first columns of the rows of `out`, which are `stride` apart.
pub(super) fn dots_into<T: Real>(out: &mut [T], stride: usize, x: Mat<'_, T>, a: Mat<'_, T>, scale: T) {
    if x.rows == 0 || a.rows == 0 {
        return;
    }
    if a.rows > FEW || x.col_stride != 1 || a.col_stride != 1 {
        return cpu::matmul(out, stride, x, a.t(), scale, false, Threads::All);
    }
    assert!(x.cols == a.cols && x.fits() && a.fits(), "matrix views that do not fit");
    assert!((x.rows - 1) * stride + a.rows <= out.len(), "the output of dot products is too small");
    out.par_chunks_mut(ROWS * stride).enumerate().take(x.rows.div_ceil(ROWS)).for_each(|(i, out)| {
        let first = i * ROWS;
        let rows = ROWS.min(x.rows - first);
        T::dots(Dots { out, stride, x: Mat { data: &x.data[first * x.row_stride..], rows, ..x }, a, scale });
    });
}

/// One thread's part: `out` (rows, `stride` apart) = scale · x aᵀ.
pub(crate) struct Dots<'a, T> {
    out: &'a mut [T],
    stride: usize,
    x: Mat<'a, T>,
    a: Mat<'a, T>,
    scale: T,
}

impl<T: Real> Dots<'_, T> {
    pub(super) fn plain(self) {
        cpu::matmul(self.out, self.stride, self.x, self.a.t(), self.scale, false, Threads::One);
    }
}

impl Dots<'_, f32> {
    pub(super) fn vectorised(self) {
        Arch::new().dispatch(self);
    }

    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let whole = self.a.rows / 4 * 4;
        for column in (0..whole).step_by(4) {
            self.tile::<S, R, 4>(simd, first, column);
        }
        for column in whole..self.a.rows {
            self.tile::<S, R, 1>(simd, first, column);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(&mut self, simd: S, row: usize, column: usize) {
        let depth = self.x.cols;
        let mut x = [(&[] as &[S::f32s], &[] as &[f32]); R];
        let mut a = [(&[] as &[S::f32s], &[] as &[f32]); C];
        for (i, x) in x.iter_mut().enumerate() {
            *x = S::as_simd_f32s(&self.x.data[(row + i) * self.x.row_stride..][..depth]);
        }
        for (j, a) in a.iter_mut().enumerate() {
            *a = S::as_simd_f32s(&self.a.data[(column + j) * self.a.row_stride..][..depth]);
        }
        let vectors = x[0].0.len();
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        for p in 0..vectors {
            for i in 0..R {
                let x = x[i].0[p];
                for j in 0..C {
                    sums[i][j] = simd.mul_add_e_f32s(x, a[j].0[p], sums[i][j]);
                }
            }
        }
        for i in 0..R {
            for j in 0..C {
                let mut sum = simd.reduce_sum_f32s(sums[i][j]);
                for (x, a) in x[i].1.iter().zip(a[j].1) {
                    sum += x * a;
                }
                self.out[(row + i) * self.stride + column + j] = self.scale * sum;
            }
        }
    }
}

impl WithSimd for Dots<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = 0;
        // 16 sums and what they are made of fit into 32 registers, 8 into 16.
        if S::REGISTER_COUNT >= 32 {
            while row + 4 <= self.x.rows {
                self.rows::<S, 4>(simd, row);
                row += 4;
            }
        }
        while row + 2 <= self.x.rows {
            self.rows::<S, 2>(simd, row);
            row += 2;
        }
        if row < self.x.rows {
            self.rows::<S, 1>(simd, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against plain sums in f64, over rows and columns that fill tiles and that do not.
    #[test]
    fn dots_are_sums_of_products() {
        for (n, r, k) in [(1, 1, 1), (2, 3, 5), (7, 8, 16), (9, 4, 33), (261, 24, 100), (5, 40, 64)] {
            let value = |i: usize| (i * 7919 % 1009) as f32 / 500.0 - 1.0;
            let (stride, depth) = (r + 3, k + 2);
            let x: Vec<f32> = (0..n * depth).map(value).collect();
            let a: Vec<f32> = (0..r * k).map(|i| value(i + 31)).collect();
            let mut out = vec![9.0f32; n * stride];
            dots_into(&mut out, stride, Mat::strided(&x, n, k, depth), Mat::new(&a, r, k), 0.5);
            for i in 0..n {
                for j in 0..stride {
                    let term = |p: usize| f64::from(x[i * depth + p]) * f64::from(a[j * k + p]);
                    let want = if j < r { 0.5 * (0..k).map(term).sum::<f64>() } else { 9.0 };
                    let found = f64::from(out[i * stride + j]);
                    assert!((found - want).abs() < 1e-5 * (k as f64).sqrt(), "{n} {r} {k}: {found} {want}");
                }
            }
        }
    }
}
