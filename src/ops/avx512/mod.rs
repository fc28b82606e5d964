//! Kernels for [`super::products`] on processors with AVX-512.
//!
//! The unit of depth has 32 bits: one f32, or two neighbours in bf16. The weights of 32 columns are packed once into a panel
//! (units, 32) ([`pack`]), where all rows use them. A tile of the output, some rows by 32 columns, stays in registers while
//! the depth goes by: vector registers ([`tile`]), or those of AMX ([`amx`]). Depth is cut at places that depend on the terms
//! and the number of rows alone, so that the partition of the output among threads changes no bit.

#![expect(unsafe_code, reason = "vector instructions on pointers, within bounds that `products` has checked")]

mod amx;
mod pack;
mod row;
mod tile;

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::cpu::{Mat, Shared};
use super::products::{Factor, PANEL, Product, Sum, Term};
use pack::Panels;
use tile::{Output, Run, Weights};

/// Columns of a panel: two registers of f32.
const WIDTH: usize = PANEL;
/// Lanes of a register.
const LANES: usize = 16;
/// The most units of depth at a time, so that a task's panels stay in the cache near the core.
const DEPTH: usize = 512;
/// The most panels of a task.
const PANELS: usize = 8;
/// The fewest rows of a task that is cut among more threads.
const FEW_ROWS: usize = 56;

/// What this processor has.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    /// What becomes of terms whose weights are in bf16.
    of_bf16: Kind,
}

/// How a term is multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In f32.
    Singles,
    /// In pairs of bf16, by vectors.
    Pairs,
    /// In pairs of bf16, by squares of 16 × 16 units.
    Squares,
}

impl Kind {
    /// Elements of a unit.
    fn per_unit(self) -> usize {
        if self == Kind::Singles { 1 } else { 2 }
    }

    /// The units of so many elements, those included that only fill a square.
    fn units(self, elements: usize) -> usize {
        let units = elements.div_ceil(self.per_unit());
        if self == Kind::Squares { units.next_multiple_of(LANES) } else { units }
    }
}

/// A term as kernels read it.
struct Prepared<'a> {
    rows: Rows<'a>,
    w: Factor<'a, f32>,
    /// Elements.
    depth: usize,
    kind: Kind,
}

/// The rows of x, `stride` units apart.
enum Rows<'a> {
    InPlace { units: &'a [f32], stride: usize },
    Rounded { lines: Vec<Line>, stride: usize },
}

/// 16 units as the caches have them.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u32; LANES]);

/// A range of a term's depth, in units.
struct Piece<'a> {
    term: &'a Prepared<'a>,
    first: usize,
    units: usize,
    /// Where it begins within the block.
    at: usize,
}

/// What is summed in registers at once.
struct Block<'a> {
    pieces: Vec<Piece<'a>>,
    units: usize,
    kind: Kind,
}

/// Part of the output: rows and panels.
struct Task {
    rows: Range<usize>,
    panels: Range<usize>,
}

impl Kernels {
    /// If there are any.
    pub(super) fn detected() -> Option<Self> {
        if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")) {
            return None;
        }
        let of_bf16 = match is_x86_feature_detected!("avx512bf16") {
            true if amx::is_permitted() => Kind::Squares,
            true => Kind::Pairs,
            false => Kind::Singles,
        };
        Some(Self { of_bf16 })
    }

    pub(super) fn describe(self) -> &'static str {
        match self.of_bf16 {
            Kind::Singles => "AVX-512",
            Kind::Pairs => "AVX-512, bf16",
            Kind::Squares => "AVX-512, AMX",
        }
    }

    /// Those of this processor, and those of all that have less.
    #[cfg(test)]
    pub(super) fn and_lesser() -> Vec<Self> {
        let kinds = [Kind::Singles, Kind::Pairs, Kind::Squares];
        let most = Self::detected().map(|kernels| kernels.of_bf16);
        let up_to = most.and_then(|most| kinds.iter().position(|&kind| kind == most));
        kinds[..up_to.map_or(0, |i| i + 1)].iter().map(|&of_bf16| Self { of_bf16 }).collect()
    }

    /// Whether x is rounded to bf16 where the weight is in bf16.
    #[cfg(test)]
    pub(super) fn rounds(self) -> bool {
        self.of_bf16 != Kind::Singles
    }

    pub(super) fn sum(self, sum: Sum<'_, f32>) {
        let Sum { out, terms, accumulate } = sum;
        let Some(first) = terms.first() else { return };
        let (n, o) = (first.x.rows, first.w.shape().1);
        let prepared: Vec<_> = terms.iter().map(|term| self.prepare(term, n)).collect();
        if n == 1 && prepared.iter().all(row::takes) {
            return row::sum(out, &prepared, accumulate);
        }
        let blocks = blocks(&prepared);
        if blocks.is_empty() && !accumulate {
            out.fill(MaybeUninit::new(0.0));
        }
        let shared = Shared::new(out);
        // Whole squares, where there are any.
        let cut = if blocks.iter().any(|block| block.kind == Kind::Squares) { amx::ROWS } else { 1 };
        let tasks = tasks(n, cut, o.div_ceil(WIDTH));
        let units = blocks.iter().map(|block| block.units).max().unwrap_or(0);
        let panels = tasks.iter().map(|task| task.panels.len()).max().unwrap_or(0);
        let room = || Vec::with_capacity(units * panels * WIDTH / LANES);
        tasks.into_par_iter().for_each_init(room, |room, task| {
            let column = task.panels.start * WIDTH;
            let start = shared.at(task.rows.start * o + column).cast();
            for (i, block) in blocks.iter().enumerate() {
                let accumulate = accumulate || i > 0;
                let to = Output { start, stride: o, columns: o - column, scale: 1.0, accumulate };
                // Safety: this processor has the instructions, and tasks write to places of their own.
                unsafe { block.add(&task, o, &to, room) }
            }
        });
    }

    fn prepare<'a>(self, term: &Term<'a, f32>, n: usize) -> Prepared<'a> {
        let kind = match (term.w, self.of_bf16) {
            (Factor::Plain(_), _) => Kind::Singles,
            // Squares would be empty for the most part.
            (Factor::Bf16(_), Kind::Squares) if n < LANES => Kind::Pairs,
            (Factor::Bf16(_), kind) => kind,
        };
        let rows = match kind {
            Kind::Singles => Rows::InPlace { units: term.x.data, stride: term.x.row_stride },
            Kind::Pairs => pack::rounded(term.x, 0),
            Kind::Squares => pack::rounded(term.x, amx::ROWS - 1),
        };
        Prepared { w: term.w, depth: term.x.cols, rows, kind }
    }
}

/// The depth of all terms, a kind after the other, in pieces of about the same size.
fn blocks<'a>(terms: &'a [Prepared<'a>]) -> Vec<Block<'a>> {
    let mut blocks = Vec::new();
    for kind in [Kind::Squares, Kind::Pairs, Kind::Singles] {
        let of_kind = || terms.iter().filter(|term| term.kind == kind);
        let all: usize = of_kind().map(|term| kind.units(term.depth)).sum();
        if all == 0 {
            continue;
        }
        let most = all.div_ceil(all.div_ceil(DEPTH)).next_multiple_of(LANES);
        let empty = || Block { pieces: Vec::new(), units: 0, kind };
        let mut block = empty();
        for term in of_kind() {
            let (mut first, end) = (0, kind.units(term.depth));
            while first < end {
                if block.units == most {
                    blocks.push(std::mem::replace(&mut block, empty()));
                }
                let units = (most - block.units).min(end - first);
                block.pieces.push(Piece { term, first, units, at: block.units });
                block.units += units;
                first += units;
            }
        }
        blocks.push(block);
    }
    blocks
}

impl Block<'_> {
    /// Adds its products to a part of an output with so many `columns`.
    ///
    /// # Safety
    /// The processor has what the block's kind needs, the output is the task's, and no other task's.
    unsafe fn add(&self, task: &Task, columns: usize, to: &Output, room: &mut Vec<Line>) {
        let panels = Panels::new(room, self.units, task, columns);
        let runs: Vec<Run> = self.pieces.iter().map(|piece| piece.run(task.rows.start)).collect();
        let weights = Weights { start: panels.at(0), apart: self.units, count: task.panels.len() };
        unsafe {
            self.pieces.iter().for_each(|piece| panels.pack(piece));
            match self.kind {
                Kind::Singles => tile::multiply_singles(&runs, task.rows.len(), &weights, to),
                Kind::Pairs => tile::multiply_pairs(&runs, task.rows.len(), &weights, to),
                Kind::Squares => {
                    // The last square may be of rows that there are only to be read.
                    let end = task.rows.start + task.rows.len().next_multiple_of(amx::ROWS);
                    assert!(
                        self.pieces.iter().all(|piece| piece.term.rows.has(end)),
                        "too few rows for squares"
                    );
                    amx::multiply(&runs, task.rows.len(), &weights, to);
                }
            }
        }
    }
}

impl Piece<'_> {
    /// Its part of x, from a row on.
    fn run(&self, row: usize) -> Run {
        let (start, stride) = self.term.rows.start();
        Run { start: start.wrapping_add(row * stride + self.first), stride, units: self.units }
    }
}

impl Rows<'_> {
    /// Whether there are so many rows to be read.
    fn has(&self, rows: usize) -> bool {
        match self {
            Rows::InPlace { units, stride } => units.len() >= rows * stride,
            Rows::Rounded { lines, stride } => lines.len() * LANES >= rows * stride,
        }
    }

    /// Where rows begin, and units from one to the next.
    fn start(&self) -> (*const u32, usize) {
        match self {
            Rows::InPlace { units, stride } => (units.as_ptr().cast(), *stride),
            Rows::Rounded { lines, stride } => (lines.as_ptr().cast(), *stride),
        }
    }
}

/// Shares the output out, twice as many tasks as threads or more. A task of many columns reads few rows of x again, and one of
/// many rows packs few weights again, so what is longer is cut. Rows are cut at multiples of `cut`.
fn tasks(n: usize, cut: usize, panels: usize) -> Vec<Task> {
    let wanted = 2 * rayon::current_num_threads();
    let (mut across, mut down) = (panels.div_ceil(PANELS), 1);
    if across >= wanted {
        across = across.next_multiple_of(wanted).min(panels);
    }
    while across * down < wanted {
        let (rows, columns) = (n / (down + 1), panels / (across + 1));
        match (rows >= FEW_ROWS, columns >= 1) {
            (true, can) if !can || rows > columns * WIDTH => down += 1,
            (_, true) => across += 1,
            _ => break,
        }
    }
    let part = |i: usize, of: usize, size: usize| i * size / of..(i + 1) * size / of;
    (0..across * down)
        .map(|i| {
            let rows = part(i / across, down, n.div_ceil(cut));
            Task { rows: rows.start * cut..n.min(rows.end * cut), panels: part(i % across, across, panels) }
        })
        .collect()
}

/// A weight in panels, for products that are made one by one.
pub(crate) struct PackedFactor {
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
}

impl PackedFactor {
    /// Packs `w` (K, O), on a processor with [`Kernels`].
    pub(super) fn new(_: Kernels, w: Mat<'_, f32>) -> Self {
        assert!(w.fits() && w.is_contiguous(), "a factor that does not fit");
        let Mat { rows: depth, cols: columns, .. } = w;
        let panels = columns.div_ceil(WIDTH);
        let mut lines = Vec::with_capacity(panels * depth * WIDTH / LANES);
        let task = Task { rows: 0..0, panels: 0..panels };
        let rows = Rows::InPlace { units: &[], stride: 0 };
        let term = Prepared { rows, w: Factor::Plain(w), depth, kind: Kind::Singles };
        let piece = Piece { term: &term, first: 0, units: depth, at: 0 };
        // Safety: the processor has the instructions, and packing writes all lines.
        unsafe {
            Panels::new(&mut lines, depth, &task, columns).pack(&piece);
            lines.set_len(panels * depth * WIDTH / LANES);
        }
        Self { lines, depth, columns }
    }

    pub(super) fn multiply(&self, product: Product<'_, f32>) {
        let Product { out, stride, x, depth, columns, scale, accumulate } = product;
        let (rows, start) = (x.rows, columns.start);
        assert!(x.fits() && x.col_stride == 1 && depth + x.cols <= self.depth, "a depth that was not packed");
        assert!(start.is_multiple_of(WIDTH) && columns.end <= self.columns, "columns that were not packed");
        if rows == 0 || columns.is_empty() {
            return;
        }
        assert!((rows - 1) * stride + columns.len() <= out.len(), "an output that is too small");
        let x = [Run { start: x.data.as_ptr().cast(), stride: x.row_stride, units: x.cols }];
        let units: *const u32 = self.lines.as_ptr().cast();
        let weights = Weights {
            start: units.wrapping_add((start * self.depth) + depth * WIDTH),
            apart: self.depth,
            count: columns.len().div_ceil(WIDTH),
        };
        let to = Output { start: out.as_mut_ptr(), stride, columns: columns.len(), scale, accumulate };
        // Safety: the processor has the instructions, and all of it is there.
        unsafe { tile::multiply_singles(&x, rows, &weights, &to) }
    }
}
