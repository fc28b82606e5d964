//! Where memory comes from.

use std::alloc::{GlobalAlloc, Layout, System};

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

#[expect(unsafe_code, reason = "a piece goes back to where it came from, which its size says")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { if is_large(layout) { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { if is_large(layout) { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        unsafe {
            if is_large(layout) { System.dealloc(piece, layout) } else { MiMalloc.dealloc(piece, layout) }
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe {
            match (is_large(layout), size >= LARGE) {
                (false, false) => MiMalloc.realloc(piece, layout, size),
                (true, true) => System.realloc(piece, layout, size),
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
