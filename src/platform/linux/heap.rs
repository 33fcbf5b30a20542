//! How the C library keeps memory. Knows nothing of what is kept.

/// Has memory that is free given back, whichever thread used it. To be called before there are threads.
///
/// The C library gives every thread a stretch of its own, up to eight for each processor, so twenty threads that take turns
/// would each hold on to what they once needed: with a thousand filesystems 6 MiB. And once a large block has been
/// freed it no longer takes blocks of that size from the kernel and gives them back, but puts them between small ones that
/// stay, which held 10 MiB more in half of all runs.
#[allow(unsafe_code)]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, mallopt};
        // As the library begins; to set it keeps it so.
        const LARGE_BYTES: nix::libc::c_int = 128 << 10;
        // SAFETY: these calls take numbers and set options of the allocator; they may be made at any time. If one is
        // refused, all works as before.
        unsafe {
            mallopt(M_ARENA_MAX, 2);
            mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
        }
    }
}
