//! What the fast CPU forms share: views of tensors as slices, matrix products on strided views,
//! vectorised elementary functions, and parallel loops with fixed chunks.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Deref;

use anyhow::{Result, bail, ensure};
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Shape, Storage, StorageRef, Tensor, WithDType};
use half::bf16;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::dots::Dots;
use super::products::{PackedFactor, Product, Sum};

/// f32 or f64, with elementary functions that compile to vector code inside [`vectorised`].
pub(crate) trait Real: WithDType {
    /// e^x, within 2 units in the last place; 0 far below, infinity far above.
    fn exp(self) -> Self;
    /// Hyperbolic tangent, within 2 units in the last place.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Natural logarithm (not vectorised).
    fn ln(self) -> Self;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The smallest value.
    const NEG_INFINITY: Self;
    /// Products with few columns; in vector registers where there is code for it.
    fn dots(dots: Dots<'_, Self>) {
        dots.plain();
    }
    /// Sums of products with weights; by kernels of our own where the processor has what they need.
    fn sum(sum: Sum<'_, Self>) {
        sum.plain();
    }
    /// A factor in panels, where there are kernels for them.
    fn pack(_: Mat<'_, Self>) -> Option<PackedFactor> {
        None
    }
    /// A product with what [`Real::pack`] gave.
    fn multiply(_: &PackedFactor, _: Product<'_, Self>) {
        unreachable!("nothing was packed");
    }
    /// Exactly that number.
    fn of_bf16(x: bf16) -> Self;
}

impl Real for f32 {
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    fn dots(dots: Dots<'_, f32>) {
        dots.vectorised();
    }

    fn sum(sum: Sum<'_, f32>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernels) = avx512::Kernels::detected() {
            return kernels.sum(sum);
        }
        sum.plain();
    }

    #[cfg(target_arch = "x86_64")]
    fn pack(w: Mat<'_, f32>) -> Option<PackedFactor> {
        avx512::Kernels::detected().map(|kernels| PackedFactor::new(kernels, w))
    }

    #[cfg(target_arch = "x86_64")]
    fn multiply(panels: &PackedFactor, product: Product<'_, f32>) {
        panels.multiply(product);
    }

    // bf16 is the upper half of an f32.
    #[inline(always)]
    fn of_bf16(x: bf16) -> f32 {
        f32::from_bits(u32::from(x.to_bits()) << 16)
    }

    // exp(x) = 2^n exp(r), |r| <= ln 2 / 2, with the Taylor series of exp(r) to the 7th power, whose
    // remainder is below 2^-26 there; ln 2 is split in two so that r is exact. Casts of floats to
    // integers saturate, which no vector instruction does, so n is read off the bits of the rounded sum.
    #[inline(always)]
    fn exp(self) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the integer part in the low bits
        const LN2_HIGH: f32 = 355.0 / 512.0;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let x = if self < -104.0 { -104.0 } else { self };
        let x = if x > 89.0 { 89.0 } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
        let mut p = 1.0 / 5040.0;
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = f32::mul_add(p, r, c);
        }
        // Two factors, so that neither leaves the range of normal numbers.
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let half = n >> 1;
        let scale = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
        let y = p * scale(half) * scale(n.wrapping_sub(half));
        if self.is_nan() { self } else { y }
    }

    // Near 0 the odd Taylor-like polynomial of Cephes' tanhf, elsewhere 1 - 2 / (exp(2x) + 1).
    #[inline(always)]
    fn tanh(self) -> f32 {
        let a = self.abs();
        let z = self * self;
        let mut p = -5.704_988_7e-3;
        for c in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = f32::mul_add(p, z, c);
        }
        let near = f32::mul_add(p * z, self, self);
        let far = (1.0 - 2.0 / (Real::exp(2.0 * a) + 1.0)).copysign(self);
        if a < 0.625 { near } else { far }
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    fn ln(self) -> f32 {
        f32::ln(self)
    }

    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }
}

impl Real for f64 {
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;

    fn of_bf16(x: bf16) -> f64 {
        x.to_f64()
    }

    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }

    #[inline(always)]
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    fn ln(self) -> f64 {
        f64::ln(self)
    }

    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }
}

/// A contiguous CPU tensor's elements.
pub(crate) struct View<'a, T> {
    storage: StorageRef<'a>,
    range: std::ops::Range<usize>,
    dtype: std::marker::PhantomData<T>,
}

impl<T: WithDType> Deref for View<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let Storage::Cpu(storage) = &*self.storage else { return &[] };
        T::cpu_storage_as_slice(storage).map_or(&[], |s| &s[self.range.clone()])
    }
}

/// Views a contiguous CPU tensor of dtype `T` as a slice, without copying.
pub(crate) fn view<T: WithDType>(tensor: &Tensor) -> Result<View<'_, T>> {
    ensure!(tensor.dtype() == T::DTYPE, "expected {:?}, got {:?}", T::DTYPE, tensor.dtype());
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a tensor of shape {:?} is not contiguous", tensor.shape());
    };
    ensure!(matches!(&*storage, Storage::Cpu(_)), "a tensor is not on the CPU");
    Ok(View { storage, range: start..end, dtype: std::marker::PhantomData })
}

/// Makes a CPU tensor of a vector, without copying.
pub(crate) fn tensor<T: WithDType>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    ensure!(data.len() == shape.elem_count(), "{} elements do not fill {shape:?}", data.len());
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// Changes a contiguous CPU tensor's elements in place.
///
/// Only for tensors that nobody else holds: gradients while they are being summed.
pub(crate) fn update<T: WithDType>(tensor: &Tensor, f: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    ensure!(tensor.dtype() == T::DTYPE, "expected {:?}, got {:?}", T::DTYPE, tensor.dtype());
    let op = Update { f: RefCell::new(Some(f)), dtype: std::marker::PhantomData::<T> };
    Ok(tensor.inplace_op1(&op)?)
}

struct Update<F, T> {
    f: RefCell<Option<F>>,
    dtype: std::marker::PhantomData<T>,
}

impl<T: WithDType, F: FnOnce(&mut [T]) -> Result<()>> InplaceOp1 for Update<F, T> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a tensor to update is not contiguous")
        };
        // A CpuStorage gives out its elements mutably only by value.
        let mut data = T::cpu_storage_data(std::mem::replace(storage, CpuStorage::U8(Vec::new())))?;
        let result = self.f.take().map_or(Ok(()), |f| f(&mut data[start..end]));
        *storage = T::to_cpu_storage_owned(data);
        result.map_err(candle_core::Error::wrap)
    }
}

/// A slice that parallel tasks write to at places that are theirs alone.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "tasks write to disjoint places only, as `Shared::write` demands")]
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Copy> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), owner: std::marker::PhantomData }
    }

    /// Where element `offset` is: for kernels that write by themselves, to places that no other task writes to.
    pub(crate) fn at(&self, offset: usize) -> *mut T {
        assert!(offset < self.len, "a place beyond the end of a shared slice");
        self.start.wrapping_add(offset)
    }

    /// Copies `values` to `offset..`.
    ///
    /// # Safety
    /// No other task may write any of these elements.
    #[expect(unsafe_code, reason = "see the struct")]
    pub(crate) unsafe fn write(&self, offset: usize, values: &[T]) {
        assert!(offset + values.len() <= self.len, "a write beyond the end of a shared slice");
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(offset), values.len()) }
    }
}

/// Runs `f` compiled for the best vector instructions that this processor has.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Numbers that are summed side by side: a fixed order that compiles to vector code.
const LANES: usize = 16;

#[inline(always)]
fn total<T: Real>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ a b.
#[inline(always)]
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    dot_of(a, b, |a, b| (a, b))
}

/// Σ a b c.
#[inline(always)]
pub(crate) fn dot3<T: Real>(a: &[T], b: &[T], c: &[T]) -> T {
    let b = &b[..a.len()];
    let c = &c[..a.len()];
    let ((a, a_rest), (b, b_rest), (c, c_rest)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    let mut lanes = [T::zero(); LANES];
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for i in 0..LANES {
            lanes[i] = (a[i] * b[i]).mul_add(c[i], lanes[i]);
        }
    }
    for i in 0..a_rest.len() {
        lanes[i] = (a_rest[i] * b_rest[i]).mul_add(c_rest[i], lanes[i]);
    }
    total(lanes)
}

/// Σ x y of what `f` makes of every pair of elements.
#[inline(always)]
fn dot_of<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> (T, T)) -> T {
    let b = &b[..a.len()];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [T::zero(); LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            let (x, y) = f(a[i], b[i]);
            lanes[i] = x.mul_add(y, lanes[i]);
        }
    }
    for i in 0..a_rest.len() {
        let (x, y) = f(a_rest[i], b_rest[i]);
        lanes[i] = x.mul_add(y, lanes[i]);
    }
    total(lanes)
}

/// Replaces every x by exp(x - max), and returns their sum.
#[inline(always)]
pub(crate) fn exp_and_sum<T: Real>(x: &mut [T], max: T) -> T {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    let mut lanes = [T::zero(); LANES];
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = (chunk[i] - max).exp();
            lanes[i] += chunk[i];
        }
    }
    for (x, lane) in rest.iter_mut().zip(&mut lanes) {
        *x = (*x - max).exp();
        *lane += *x;
    }
    total(lanes)
}

/// Σ exp(x - max).
#[inline(always)]
pub(crate) fn sum_of_exp<T: Real>(x: &[T], max: T) -> T {
    dot_of(x, x, |x, _| ((x - max).exp(), T::one()))
}

#[inline(always)]
fn larger<T: Real>(a: T, b: T) -> T {
    if a > b { a } else { b }
}

/// Largest `x`.
#[inline(always)]
pub(crate) fn maximum<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = larger(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Rows that one parallel task takes: about 16,384 elements, and always the same for the same width.
fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// Calls `f(first_row, rows_of_output)` in parallel on chunks of whole rows of `out`.
pub(crate) fn for_rows<T: Real>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let rows = rows_per_task(width);
    out.par_chunks_mut(rows * width).enumerate().for_each(|(i, chunk)| {
        vectorised(
            #[inline(always)]
            || f(i * rows, chunk),
        );
    });
}

/// [`for_rows`] over two outputs of the same shape.
pub(crate) fn for_rows_of_two<T: Real>(
    a: &mut [T],
    b: &mut [T],
    width: usize,
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync + Send,
) {
    let rows = rows_per_task(width);
    let chunks = a.par_chunks_mut(rows * width).zip(b.par_chunks_mut(rows * width));
    chunks.enumerate().for_each(|(i, (a, b))| {
        vectorised(
            #[inline(always)]
            || f(i * rows, a, b),
        );
    });
}

/// A read-only matrix: `rows` and `cols` with their strides over a slice.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major, densely packed.
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Row-major with a row stride, as a range of columns of a wider matrix is.
    pub(crate) fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without copying.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// The transpose, row-major.
    pub(crate) fn turned(&self) -> Vec<T>
    where
        T: Real,
    {
        let mut out = vec![T::zero(); self.rows * self.cols];
        // A few rows at a time, so that lines of both stay in the cache.
        for first in (0..self.rows).step_by(LANES) {
            let rows = first..self.rows.min(first + LANES);
            for (j, out) in out.chunks_exact_mut(self.rows.max(1)).enumerate() {
                let column = &self.data[j * self.col_stride..];
                for (out, row) in out[rows.clone()].iter_mut().zip(rows.clone()) {
                    *out = column[row * self.row_stride];
                }
            }
        }
        out
    }

    /// Whether elements lie side by side along rows or along columns.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.row_stride == 1 || self.col_stride == 1
    }

    pub(crate) fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// How many threads a matrix product may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// Only the calling one: for products inside a parallel loop.
    One,
    /// All of rayon's.
    All,
}

/// Sides up to which a product over many rows is shared out along its depth, and the depth of a part.
const NARROW: usize = 64;
const DEPTH: usize = 512;

/// A small product over a great depth, as gradients of adapters are: parts of fixed depth in parallel, then their
/// sum in order.
fn matmul_in_parts<T: Real>(
    out: &mut [T],
    out_stride: usize,
    lhs: Mat<'_, T>,
    rhs: Mat<'_, T>,
    scale: T,
    accumulate: bool,
) {
    let (m, k, n) = (lhs.rows, lhs.cols, rhs.cols);
    // The few rows go first: gemm fills its registers with columns.
    let (lhs, rhs, turned) = if n < m { (rhs.t(), lhs.t(), true) } else { (lhs, rhs, false) };
    let part = |first: usize| {
        let depth = DEPTH.min(k - first);
        let lhs = Mat { data: &lhs.data[first * lhs.col_stride..], cols: depth, ..lhs };
        let rhs = Mat { data: &rhs.data[first * rhs.row_stride..], rows: depth, ..rhs };
        product(lhs, rhs, scale, Threads::One)
    };
    let firsts: Vec<usize> = (0..k).step_by(DEPTH).collect();
    let parts: Vec<Vec<T>> = firsts.into_par_iter().map(part).collect();
    for (i, row) in out.chunks_mut(out_stride).take(m).enumerate() {
        let row = &mut row[..n];
        if !accumulate {
            row.fill(T::zero());
        }
        for part in &parts {
            if turned {
                row.iter_mut().zip(part[i..].iter().step_by(m)).for_each(|(sum, &x)| *sum += x);
            } else {
                row.iter_mut().zip(&part[i * n..][..n]).for_each(|(sum, &x)| *sum += x);
            }
        }
    }
}

/// `scale * lhs * rhs` (rows of lhs, columns of rhs).
pub(crate) fn product<T: Real>(lhs: Mat<'_, T>, rhs: Mat<'_, T>, scale: T, threads: Threads) -> Vec<T> {
    new(lhs.rows * rhs.cols, |out| product_into(out, lhs, rhs, scale, threads))
}

/// A vector that `fill` writes whole. What is not zeroed first spares a pass over it.
pub(crate) fn new<T>(count: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut out = Vec::with_capacity(count);
    fill(&mut out.spare_capacity_mut()[..count]);
    #[expect(unsafe_code, reason = "`fill` has written all of them")]
    unsafe {
        out.set_len(count);
    }
    out
}

/// [`product`] into memory that need not have been written.
pub(crate) fn product_into<T: Real>(
    out: &mut [MaybeUninit<T>],
    lhs: Mat<'_, T>,
    rhs: Mat<'_, T>,
    scale: T,
    threads: Threads,
) {
    let (m, k, n) = (lhs.rows, lhs.cols, rhs.cols);
    assert!(m * n == out.len(), "the output of a matrix product of another size");
    if m * n == 0 || k == 0 || is_narrow(threads, m, n, k) {
        out.fill(MaybeUninit::new(T::zero()));
        return matmul(written(out), n, lhs, rhs, scale, false, threads);
    }
    assert!(k == rhs.rows && lhs.fits() && rhs.fits(), "matrix views that do not fit");
    #[expect(
        unsafe_code,
        reason = "gemm writes all m * n elements, and reads none where it does not accumulate"
    )]
    unsafe {
        multiply(out.as_mut_ptr().cast(), n, lhs, rhs, scale, false, threads);
    }
}

/// Elements that have all been written.
pub(crate) fn written<T>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    #[expect(unsafe_code, reason = "whoever calls this has written them")]
    unsafe {
        out.assume_init_mut()
    }
}

fn is_narrow(threads: Threads, m: usize, n: usize, k: usize) -> bool {
    threads == Threads::All && m.min(n) <= NARROW && k >= 2 * DEPTH
}

/// `out = scale * lhs * rhs`, or `out += …` with `accumulate`; `out` is row-major with `out_stride`.
pub(crate) fn matmul<T: Real>(
    out: &mut [T],
    out_stride: usize,
    lhs: Mat<'_, T>,
    rhs: Mat<'_, T>,
    scale: T,
    accumulate: bool,
    threads: Threads,
) {
    let (m, k, n) = (lhs.rows, lhs.cols, rhs.cols);
    assert!(k == rhs.rows && lhs.fits() && rhs.fits(), "matrix views that do not fit");
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * out_stride + n <= out.len(), "the output of a matrix product is too small");
    if is_narrow(threads, m, n, k) {
        return matmul_in_parts(out, out_stride, lhs, rhs, scale, accumulate);
    }
    #[expect(unsafe_code, reason = "the asserts above keep every access in bounds")]
    unsafe {
        multiply(out.as_mut_ptr(), out_stride, lhs, rhs, scale, accumulate, threads);
    }
}

/// # Safety
/// `lhs` and `rhs` fit, and `out` has room for as many rows, `out_stride` apart; it is read only to accumulate.
#[expect(unsafe_code, reason = "gemm takes pointers")]
unsafe fn multiply<T: Real>(
    out: *mut T,
    out_stride: usize,
    lhs: Mat<'_, T>,
    rhs: Mat<'_, T>,
    scale: T,
    accumulate: bool,
    threads: Threads,
) {
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    unsafe {
        gemm::gemm(
            lhs.rows,
            rhs.cols,
            lhs.cols,
            out,
            1,
            out_stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            T::one(),
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elementary_functions_are_accurate() {
        let mut x = -103.0f32;
        while x < 88.0 {
            let (got, want) = (f64::from(Real::exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= want * 2.5e-7 + 1e-45, "exp({x}) = {got}, not {want}");
            let y = x / 10.0;
            let (got, want) = (f64::from(Real::tanh(y)), f64::from(y).tanh());
            assert!((got - want).abs() <= want.abs() * 3e-7, "tanh({y}) = {got}, not {want}");
            x += 0.0137;
        }
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert!(Real::exp(f32::NAN).is_nan() && Real::exp(100.0f32) > 1e38);
    }

    #[test]
    fn products_take_strides_and_accumulate() {
        let a: Vec<f64> = (0..12).map(f64::from).collect(); // (3, 4)
        let b: Vec<f64> = (0..8).map(|i| f64::from(i) - 3.0).collect(); // (2, 4)
        let mut out = vec![1.0; 3 * 5];
        matmul(&mut out, 5, Mat::new(&a, 3, 4), Mat::new(&b, 2, 4).t(), 2.0, true, Threads::One);
        for i in 0..3 {
            for j in 0..2 {
                let dot: f64 = (0..4).map(|k| a[i * 4 + k] * b[j * 4 + k]).sum();
                assert_eq!(out[i * 5 + j], 1.0 + 2.0 * dot);
            }
            assert_eq!(out[i * 5 + 2], 1.0);
        }
    }
}
