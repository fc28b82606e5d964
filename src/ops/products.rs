//! Sums of products of activations with frozen weights, out = Σ x W: what a linear layer with its adapter computes, forward
//! and backward.
//!
//! On processors with AVX-512 by kernels of our own ([`super::avx512`]), which keep the sum in registers over all of its
//! terms and read weights in f32 or in bf16; elsewhere one product after the other by `gemm`.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;

use super::cpu::{self, Mat, Real, Threads};

/// x W of one term.
pub(super) struct Term<'a, T> {
    /// x (N, K), contiguous along its rows.
    pub x: Mat<'a, T>,
    /// W as (K, O).
    pub w: Factor<'a, T>,
}

impl<T> Term<'_, T> {
    /// Whether all of it is there, for an output (N, O).
    pub(super) fn fits(&self, n: usize, o: usize) -> bool {
        let x = &self.x;
        x.rows == n && self.w.shape() == (x.cols, o) && x.fits() && x.col_stride == 1 && self.w.fits()
    }
}

/// A weight as (K, O), contiguous along one of both: as it lies, or transposed.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a, T> {
    /// In the dtype of the activations.
    Plain(Mat<'a, T>),
    /// In bf16. Where the processor multiplies bf16, x is rounded to it too, and products are summed in f32; elsewhere the
    /// weight is widened.
    Bf16(Mat<'a, bf16>),
}

impl<T> Factor<'_, T> {
    /// (K, O)
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Factor::Plain(w) => (w.rows, w.cols),
            Factor::Bf16(w) => (w.rows, w.cols),
        }
    }

    /// The transpose, without copying.
    pub(super) fn t(self) -> Self {
        match self {
            Factor::Plain(w) => Factor::Plain(w.t()),
            Factor::Bf16(w) => Factor::Bf16(w.t()),
        }
    }

    fn fits(&self) -> bool {
        match self {
            Factor::Plain(w) => w.fits() && w.is_contiguous(),
            Factor::Bf16(w) => w.fits() && w.is_contiguous(),
        }
    }
}

/// A right factor (K, O) of products that are made one by one within a parallel task.
pub(super) struct Packed<'a, T> {
    w: Mat<'a, T>,
    /// Where there are kernels for it.
    panels: Option<PackedFactor>,
}

#[cfg(target_arch = "x86_64")]
pub(crate) type PackedFactor = super::avx512::PackedFactor;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) type PackedFactor = std::convert::Infallible;

/// Rows of x from which on packing pays.
const PAYS: usize = 8;

/// Columns of a product begin at a multiple of these.
pub(super) const PANEL: usize = 32;

/// `scale` x W becomes `out`, rows `stride` apart, or is added to it, for x (N, K) and the rows from `depth` on and the
/// `columns` of a packed W, the first of which is a multiple of [`PANEL`].
pub(crate) struct Product<'a, T> {
    pub(super) out: &'a mut [T],
    pub(super) stride: usize,
    pub(super) x: Mat<'a, T>,
    pub(super) depth: usize,
    pub(super) columns: Range<usize>,
    pub(super) scale: T,
    pub(super) accumulate: bool,
}

impl<'a, T: Real> Packed<'a, T> {
    /// Packs a factor that is contiguous along one of both, if that pays for so many rows of x, all products together.
    pub(super) fn new(w: Mat<'a, T>, rows: usize) -> Self {
        assert!(w.fits() && w.is_contiguous(), "a factor that does not fit");
        Self { w, panels: if rows >= PAYS { T::pack(w) } else { None } }
    }

    /// Makes a product, on the calling thread.
    pub(super) fn multiply(&self, product: Product<'_, T>) {
        if let Some(panels) = &self.panels {
            return T::multiply(panels, product);
        }
        let Product { out, stride, x, depth, columns, scale, accumulate } = product;
        let from = depth * self.w.row_stride + columns.start * self.w.col_stride;
        let data = &self.w.data[from.min(self.w.data.len())..];
        let w = Mat { data, rows: x.cols, cols: columns.len(), ..self.w };
        cpu::matmul(out, stride, x, w, scale, accumulate, Threads::One);
    }
}

/// `out` (N, O), row-major, becomes Σ x W, or is increased by it with `accumulate`: only then is it read, and has been written
/// before.
pub(crate) struct Sum<'a, T> {
    pub(super) out: &'a mut [MaybeUninit<T>],
    pub(super) terms: &'a [Term<'a, T>],
    pub(super) accumulate: bool,
}

/// Σ x W (N, O) of `terms`, of which there is at least one.
pub(super) fn sum<T: Real>(terms: &[Term<'_, T>]) -> Vec<T> {
    let (n, o) = terms.first().map_or((0, 0), |term| (term.x.rows, term.w.shape().1));
    cpu::new(n * o, |out| run(out, terms, false))
}

/// Adds Σ x W of `terms` to `out` (N, O).
pub(super) fn add<T: Real>(out: &mut [T], terms: &[Term<'_, T>]) {
    run(unwritten(out), terms, true);
}

fn unwritten<T>(out: &mut [T]) -> &mut [MaybeUninit<T>] {
    #[expect(unsafe_code, reason = "what has been written may be seen as what need not have been")]
    unsafe {
        &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>])
    }
}

fn run<T: Real>(out: &mut [MaybeUninit<T>], terms: &[Term<'_, T>], accumulate: bool) {
    if terms.is_empty() {
        return;
    }
    let sum = Sum::new(out, terms, accumulate);
    if !sum.out.is_empty() {
        T::sum(sum);
    }
}

/// Elements of a weight in bf16 that are widened at a time.
const WIDENED: usize = 1 << 20;

impl<'a, T: Real> Sum<'a, T> {
    /// Checks that all of it is there, which kernels rely on.
    fn new(out: &'a mut [MaybeUninit<T>], terms: &'a [Term<'a, T>], accumulate: bool) -> Self {
        let (n, o) = terms.first().map_or((0, 0), |term| (term.x.rows, term.w.shape().1));
        assert!(out.len() == n * o && terms.iter().all(|term| term.fits(n, o)), "products that do not fit");
        Self { out, terms, accumulate }
    }

    /// One product after the other.
    pub(super) fn plain(self) {
        let Sum { out, terms, accumulate } = self;
        for (i, term) in terms.iter().enumerate() {
            let accumulate = accumulate || i > 0;
            match term.w {
                Factor::Plain(w) => product(out, term.x, w, accumulate),
                Factor::Bf16(w) => widened(out, term.x, w, accumulate),
            }
        }
    }
}

/// `out = x w`, or `out += x w`.
fn product<T: Real>(out: &mut [MaybeUninit<T>], x: Mat<'_, T>, w: Mat<'_, T>, accumulate: bool) {
    match accumulate {
        true => cpu::matmul(cpu::written(out), w.cols, x, w, T::one(), true, Threads::All),
        false => cpu::product_into(out, x, w, T::one(), Threads::All),
    }
}

/// [`product`] with a weight in bf16, of which some rows as they lie are widened at a time.
fn widened<T: Real>(out: &mut [MaybeUninit<T>], x: Mat<'_, T>, w: Mat<'_, bf16>, accumulate: bool) {
    let turned = w.col_stride != 1;
    let lying = if turned { w.t() } else { w };
    let at_once = (WIDENED / lying.cols.max(1)).max(1);
    if lying.rows == 0 {
        return product(out, x, Mat::new(&[], 0, w.cols), accumulate);
    }
    if turned && !accumulate {
        // Each part adds some of the columns.
        out.fill(MaybeUninit::new(T::zero()));
    }
    let mut wide = Vec::new();
    for first in (0..lying.rows).step_by(at_once) {
        let rows = at_once.min(lying.rows - first);
        wide.clear();
        for row in first..first + rows {
            wide.extend(lying.data[row * lying.row_stride..][..lying.cols].iter().map(|&w| T::of_bf16(w)));
        }
        let part = Mat::new(&wide, rows, lying.cols);
        if turned {
            // These rows are columns of the output.
            let out = cpu::written(&mut out[first..]);
            cpu::matmul(out, w.cols, x, part.t(), T::one(), true, Threads::All);
        } else {
            let x = Mat { data: &x.data[first..], cols: rows, ..x };
            product(out, x, part, accumulate || first > 0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng::{self, Stream};

    /// A term by its depth, the columns beyond it that rows of x have, whether the weight lies as (O, K), and in bf16.
    type Shape = (usize, usize, bool, bool);

    struct Data {
        x: Vec<f32>,
        w: Vec<f32>,
        w_bf16: Vec<bf16>,
    }

    fn data(s: &mut Stream, n: usize, o: usize, (k, beyond, _, in_bf16): Shape) -> Data {
        let x = (0..n * (k + beyond)).map(|_| s.normal() as f32).collect();
        let w: Vec<f32> = (0..k * o).map(|_| s.normal() as f32).collect();
        let w_bf16: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let w = if in_bf16 { w_bf16.iter().map(|w| w.to_f32()).collect() } else { w };
        Data { x, w, w_bf16 }
    }

    fn term<'a>(data: &'a Data, n: usize, o: usize, (k, beyond, turned, in_bf16): Shape) -> Term<'a, f32> {
        let (rows, cols) = if turned { (o, k) } else { (k, o) };
        let w = match in_bf16 {
            true => Factor::Bf16(Mat::new(&data.w_bf16, rows, cols)),
            false => Factor::Plain(Mat::new(&data.w, rows, cols)),
        };
        Term { x: Mat::strided(&data.x, n, k, k + beyond), w: if turned { w.t() } else { w } }
    }

    /// The sum in f64, with x rounded where `rounded`, and the sum of the sizes of all that is added.
    fn expected(data: &[Data], n: usize, o: usize, shapes: &[Shape], rounded: bool) -> Vec<(f64, f64)> {
        let mut sums = vec![(0.0, 0.0); n * o];
        for (data, &(k, beyond, turned, in_bf16)) in data.iter().zip(shapes) {
            for (at, sum) in sums.iter_mut().enumerate() {
                let (i, j) = (at / o, at % o);
                for p in 0..k {
                    let x = data.x[i * (k + beyond) + p];
                    let x = if in_bf16 && rounded { bf16::from_f32(x).to_f64() } else { f64::from(x) };
                    let product = x * f64::from(data.w[if turned { j * k + p } else { p * o + j }]);
                    *sum = (sum.0 + product, sum.1 + product.abs());
                }
            }
        }
        sums
    }

    fn check(found: &[f32], expected: &[(f64, f64)], start: f32, what: &str) {
        assert_eq!(found.len(), expected.len());
        for (at, (&found, &(sum, size))) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - f64::from(start) - sum).abs();
            assert!(error <= 1e-6 * (size + 1.0), "{what}, element {at}: {found} is {error:e} off");
        }
    }

    /// Of random shapes, with rows and columns that fill tiles and that do not, several terms of either kind, depths of one
    /// element and beyond one block, and rows of x that are 4 KB apart; the same bits on any number of threads.
    #[test]
    fn sums_of_products_are_right() {
        let s = &mut rng::stream(0, "test/products", 0);
        let mut shapes: Vec<(usize, usize, Vec<Shape>)> = vec![
            (1, 1, vec![(1, 0, true, false)]),
            (1, 70, vec![(40, 0, true, true), (8, 16, true, false)]),
            (1, 33, vec![(33, 0, true, true), (3, 0, false, true)]),
            (40, 100, vec![(700, 324, true, false)]),
            (40, 100, vec![(700, 324, false, false), (24, 0, false, false)]),
            (5, 64, vec![(1024, 0, true, false), (7, 2, true, true), (9, 0, false, false)]),
            (3, 40, vec![(2049, 0, true, true), (1, 0, false, true), (2, 0, true, false)]),
            (64, 96, vec![(2080, 0, false, true), (65, 1, true, true), (8, 0, true, false)]),
            // More rows than a thread's, which are cut elsewhere on other numbers of threads.
            (240, 64, vec![(2080, 0, true, true), (8, 0, true, false)]),
            // Weights in bf16 of more elements than are widened at a time.
            (3, 1100, vec![(1024, 0, true, true)]),
            (3, 70, vec![(17_000, 0, true, true), (17_000, 0, false, true)]),
        ];
        for _ in 0..60 {
            let any = |s: &mut Stream| (1 + s.below(90), s.below(3), s.below(2) == 0, s.below(2) == 0);
            let terms = (0..1 + s.below(3)).map(|_| any(s)).collect();
            shapes.push((1 + s.below(60), 1 + s.below(150), terms));
        }
        for (n, o, shapes) in shapes {
            let data: Vec<Data> = shapes.iter().map(|&shape| data(s, n, o, shape)).collect();
            let terms: Vec<_> =
                data.iter().zip(&shapes).map(|(data, &shape)| term(data, n, o, shape)).collect();
            let what = format!("{n} × {o}, {shapes:?}");
            let exact = expected(&data, n, o, &shapes, false);
            let mut plain = vec![0.25; n * o];
            Sum::new(unwritten(&mut plain), &terms, true).plain();
            check(&plain, &exact, 0.25, &format!("plain, added, {what}"));
            plain.fill(9.0);
            Sum::new(unwritten(&mut plain), &terms, false).plain();
            check(&plain, &exact, 0.0, &format!("plain, {what}"));

            let added = || {
                let mut out = vec![0.25; n * o];
                add(&mut out, &terms);
                out
            };
            let found = (sum(&terms), added());
            #[cfg(target_arch = "x86_64")]
            for kernels in super::super::avx512::Kernels::and_lesser() {
                let expected = match kernels.rounds() {
                    true => &expected(&data, n, o, &shapes, true),
                    false => &exact,
                };
                let mut out = vec![9.0; n * o];
                kernels.sum(Sum::new(unwritten(&mut out), &terms, false));
                check(&out, expected, 0.0, &what);
                out.fill(0.25);
                kernels.sum(Sum::new(unwritten(&mut out), &terms, true));
                check(&out, expected, 0.25, &format!("added, {what}"));
            }
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| (sum(&terms), added())) == found, "{what} on {threads} threads");
            }
        }
    }

    #[test]
    fn nothing_is_added_where_there_is_no_depth() {
        let (x, w) = (Vec::<f32>::new(), Vec::<f32>::new());
        let terms = [Term { x: Mat::new(&x, 3, 0), w: Factor::Plain(Mat::new(&w, 0, 4)) }];
        assert_eq!(sum(&terms), vec![0.0; 12]);
        let mut out = vec![2.0; 12];
        add(&mut out, &terms);
        assert_eq!(out, vec![2.0; 12]);
    }
}
