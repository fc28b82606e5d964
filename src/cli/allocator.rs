//! Where memory comes from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;

use mimalloc::MiMalloc;

/// Pieces from here on are few, and come from the system's heap.
const LARGE: usize = 8 << 10;

/// Small pieces by mimalloc, whose threads do not wait for each other; large ones by the system, all threads from one heap.
/// With a heap each, what one thread freed would be of no use to the others, and the peak of a training run would depend on
/// which thread happened to do what, by a quarter from run to run.
pub struct Allocator;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE
}

/// The boundaries on which the system's pieces lie. For larger ones glibc before 2.38 has pieces of another kind, which it
/// seldom uses again: in bf16, the heap of a training step was a quarter larger for it. So such a piece is cut out of a larger
/// one, whose beginning is noted before it.
const BOUNDARY: usize = 16;

fn is_cut(layout: Layout) -> bool {
    layout.align() > BOUNDARY
}

/// What a piece is cut out of; none where there is no such amount of memory.
fn whole(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(layout.size().checked_add(layout.align())?, BOUNDARY).ok()
}

/// A large piece, of what `allocate` gives.
#[expect(unsafe_code, reason = "there are BOUNDARY bytes or more before a piece that is cut")]
unsafe fn large(layout: Layout, allocate: impl Fn(Layout) -> *mut u8) -> *mut u8 {
    if !is_cut(layout) {
        return allocate(layout);
    }
    let whole = whole(layout).map_or(null_mut(), allocate);
    if whole.is_null() {
        return whole;
    }
    unsafe {
        let piece = whole.add(layout.align() - whole.addr() % layout.align());
        piece.cast::<*mut u8>().sub(1).write(whole);
        piece
    }
}

#[expect(unsafe_code, reason = "a piece goes back to where it came from, which its layout says")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe {
            match is_large(layout) {
                true => large(layout, |layout| System.alloc(layout)),
                false => MiMalloc.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe {
            match is_large(layout) {
                true => large(layout, |layout| System.alloc_zeroed(layout)),
                false => MiMalloc.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        unsafe {
            match (is_large(layout), is_cut(layout)) {
                (false, _) => MiMalloc.dealloc(piece, layout),
                (true, false) => System.dealloc(piece, layout),
                (true, true) => {
                    if let Some(of) = whole(layout) {
                        System.dealloc(piece.cast::<*mut u8>().sub(1).read(), of);
                    }
                }
            }
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe {
            match (is_large(layout), size >= LARGE) {
                (false, false) => MiMalloc.realloc(piece, layout, size),
                (true, true) if !is_cut(layout) => System.realloc(piece, layout, size),
                _ => {
                    let other = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !other.is_null() {
                        std::ptr::copy_nonoverlapping(piece, other, size.min(layout.size()));
                        self.dealloc(piece, layout);
                    }
                    other
                }
            }
        }
    }
}

/// Lets glibc's heap keep what is freed: a training step frees and asks again for the same hundreds of megabytes, and giving
/// them back to the system in between costs a twentieth of the time. Memory above 32 MB a piece still goes back at once.
pub(super) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "mallopt is called before there is any other thread")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "an allocator is called as the compiler calls it")]
mod tests {
    use super::*;

    /// Pieces of every kind lie on their boundaries, are zero where they are asked to be, and keep what was written when they
    /// grow or shrink from one kind to another.
    #[test]
    fn pieces_keep_what_is_written_to_them() {
        for align in [1, 8, 16, 32, 64, 4096] {
            for size in [100, LARGE - 1, LARGE, 100_000] {
                for other in [50, LARGE, 60_000, 2 << 20] {
                    let layout = Layout::from_size_align(size, align).expect("a layout");
                    unsafe {
                        let zeroed = Allocator.alloc_zeroed(layout);
                        assert!(zeroed.addr().is_multiple_of(align));
                        assert!(std::slice::from_raw_parts(zeroed, size).iter().all(|byte| *byte == 0));
                        zeroed.write_bytes(7, size);
                        let piece = Allocator.alloc(layout);
                        piece.write_bytes(3, size);
                        let piece = Allocator.realloc(piece, layout, other);
                        assert!(piece.addr().is_multiple_of(align), "{align} {size} {other}");
                        let kept = std::slice::from_raw_parts(piece, size.min(other));
                        assert!(kept.iter().all(|byte| *byte == 3), "{align} {size} {other}");
                        piece.write_bytes(5, other);
                        assert!(std::slice::from_raw_parts(zeroed, size).iter().all(|byte| *byte == 7));
                        Allocator.dealloc(zeroed, layout);
                        Allocator.dealloc(piece, Layout::from_size_align(other, align).expect("a layout"));
                    }
                }
            }
        }
        let absurd = Layout::from_size_align(isize::MAX as usize - 63, 64).expect("a layout");
        assert!(unsafe { Allocator.alloc(absurd) }.is_null());
    }
}
