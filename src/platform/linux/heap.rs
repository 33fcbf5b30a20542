//! How the C library keeps memory. Knows nothing of what is kept.

/// Has all threads share two stretches of memory. The C library gives every thread one of its own, up to eight for each
/// processor: twenty threads that take turns would each hold on to what they once needed, which is half as much
/// memory again with a thousand filesystems. To be called before there are threads.
#[allow(unsafe_code)]
pub fn share_between_threads() {
    #[cfg(target_env = "gnu")]
    {
        const ARENAS: nix::libc::c_int = 2;
        // SAFETY: the call takes two numbers and sets a limit of the allocator; it may be made at any time. If it is
        // refused, all works as before.
        unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS) };
    }
}
