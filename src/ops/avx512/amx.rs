//! Squares of the output in the tile registers of AMX, which multiply 16 × 32 by 32 × 16 numbers in bf16 with one instruction
//! and sum in f32.
//!
//! Rust has no stable intrinsics for them, so they are written in assembly.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::tile::{Output, Run, Weights};
use super::{LANES, WIDTH};

/// Rows of the output at a time: two squares by two squares.
pub(super) const ROWS: usize = 2 * LANES;

/// Whether the processor has AMX for bf16, and the system lets this process use it.
pub(super) fn is_permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        // Bits of leaf 7: products of bf16, and tiles.
        let features = __cpuid_count(7, 0).edx;
        let has = features >> 22 & 1 == 1 && features >> 24 & 1 == 1;
        // In tests it is enough that the system permits it: `scripts/check-kernels.sh` emulates both.
        (has || cfg!(test)) && ask_for_tiles()
    })
}

/// Linux lets a process use the registers once it has asked for them.
fn ask_for_tiles() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // Safety: asks for a permission, and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

/// What `ldtilecfg` reads: 8 registers of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_a_row: [u16; 16],
    rows: [u8; 16],
}

static SQUARES: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_a_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Sums over the runs of x, whose weights lie one behind the other in each panel. Rows of x are read up to a multiple of
/// [`ROWS`], units up to a multiple of 16.
///
/// # Safety
/// The process [`is_permitted`], and so many rows, weights and places of the output exist, which nobody else writes to.
pub(super) unsafe fn multiply(x: &[Run], rows: usize, weights: &Weights, to: &Output) {
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SQUARES, options(nostack, readonly, preserves_flags)) }
    for first in (0..rows).step_by(ROWS) {
        let rows = ROWS.min(rows - first);
        for i in 0..weights.count {
            let columns = WIDTH.min(to.columns - i * WIDTH);
            let panel = weights.start.wrapping_add(i * weights.apart * WIDTH);
            let out = to.start.wrapping_add(first * to.stride + i * WIDTH);
            unsafe {
                if (rows, columns) == (ROWS, WIDTH) {
                    add(x, first, panel, out, to.stride, to.accumulate);
                } else {
                    // Added onto as a whole square is, so that it does not matter which rows a task has.
                    let mut square = [0.0f32; ROWS * WIDTH];
                    let of_out =
                        (0..rows).flat_map(|i| (0..columns).map(move |j| (i * WIDTH + j, i * to.stride + j)));
                    if to.accumulate {
                        of_out.clone().for_each(|(at, from)| square[at] = out.add(from).read());
                    }
                    add(x, first, panel, square.as_mut_ptr(), WIDTH, to.accumulate);
                    of_out.for_each(|(at, into)| out.add(into).write(square[at]));
                }
            }
        }
    }
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

/// 32 rows by 32 columns of the output, whose rows are `stride` apart: registers 0 to 3, with 4 and 5 for rows of x and 6 and 7
/// for weights.
#[inline(always)]
unsafe fn add(
    x: &[Run],
    first: usize,
    mut panel: *const u32,
    out: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    let below = out.wrapping_add(LANES * stride);
    let bytes = stride * size_of::<f32>();
    unsafe {
        if accumulate {
            asm!(
                "tileloadd tmm0, [{out} + {bytes}*1]",
                "tileloadd tmm1, [{out} + {bytes}*1 + 64]",
                "tileloadd tmm2, [{below} + {bytes}*1]",
                "tileloadd tmm3, [{below} + {bytes}*1 + 64]",
                out = in(reg) out, below = in(reg) below, bytes = in(reg) bytes,
                options(nostack, readonly, preserves_flags),
            );
        } else {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags),
            );
        }
        for &Run { start, stride, units } in x {
            let mut x = start.add(first * stride);
            for _ in 0..units / LANES {
                asm!(
                    "tileloadd tmm4, [{x} + {stride}*1]",
                    "tileloadd tmm6, [{panel} + {width}*1]",
                    "tileloadd tmm7, [{panel} + {width}*1 + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{below} + {stride}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    x = in(reg) x, below = in(reg) x.add(LANES * stride), stride = in(reg) stride * size_of::<u32>(),
                    panel = in(reg) panel, width = in(reg) WIDTH * size_of::<u32>(),
                    options(nostack, readonly, preserves_flags),
                );
                x = x.add(LANES);
                panel = panel.add(LANES * WIDTH);
            }
        }
        asm!(
            "tilestored [{out} + {bytes}*1], tmm0",
            "tilestored [{out} + {bytes}*1 + 64], tmm1",
            "tilestored [{below} + {bytes}*1], tmm2",
            "tilestored [{below} + {bytes}*1 + 64], tmm3",
            out = in(reg) out, below = in(reg) below, bytes = in(reg) bytes,
            options(nostack, preserves_flags),
        );
    }
}
