//! How the allocator treats freed memory.

/// Lets glibc's allocator keep what is freed: a training step frees and asks again for the same hundreds of megabytes,
/// and giving them back to the system in between costs a twentieth of the time. Memory above 32 MB a piece still goes
/// back at once. All threads share one heap: with one each, what a thread freed is of no use to the others, and the peak
/// depends on which of them happened to do what, by a quarter from run to run.
pub(super) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "mallopt is called before there is any other thread")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
