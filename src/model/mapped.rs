//! Memory maps of weights.

/// Gives back the pages of `bytes`, which have been read and hardly will be again: until then they count as memory of this
/// process, beside the tensors that were made of them.
///
/// # Safety
/// `bytes` lie in a memory map of a file that nobody writes to.
#[expect(unsafe_code, reason = "pages that are read again come from the file")]
pub(super) unsafe fn give_back(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::mman::{MmapAdvise, madvise};
        use nix::unistd::{SysconfVar, sysconf};

        let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else { return };
        let page = page as usize;
        let before = bytes.as_ptr().align_offset(page);
        let whole = bytes.len().saturating_sub(before) / page * page;
        let first = std::ptr::NonNull::new(bytes.as_ptr().wrapping_add(before).cast_mut().cast());
        if let (Some(first), true) = (first, whole > 0) {
            // Advice that is not taken changes nothing.
            unsafe { madvise(first, whole, MmapAdvise::MADV_DONTNEED) }.ok();
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}
