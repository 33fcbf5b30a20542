//! Keeps the keys of a process off disks. This module knows nothing of the keys.

use std::io;

use nix::{
    errno::Errno,
    libc::{self, sock_filter, sock_fprog},
    sys::prctl,
};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Resource, Rlimit, setrlimit},
};

/// Disables core dumps of this process and keeps other processes of the same user from reading its
/// memory. Programs that it starts inherit the core limit, but not the rest. Call it before any
/// secret is read.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn no_core_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(prctl::set_dumpable(false)?)
}

/// Keeps all memory of this process out of swap: the keys and the copies that libraries make.
/// Programs that it starts do not inherit this. Pages are locked when they are first used, not
/// before.
///
/// # Errors
/// If the limit of locked memory (`LimitMEMLOCK`) is too low.
pub(super) fn lock_memory() -> io::Result<()> {
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

/// Keeps libraries from unlocking memory of this process: makes `munlock` and `munlockall` succeed
/// without effect, for the calling thread and those that it starts. Call it before other threads
/// exist.
///
/// libcryptsetup locks each buffer that holds a key and unlocks it when it frees it. But the kernel
/// locks and unlocks whole pages and keeps no count, so other secrets on the same page could be
/// swapped out from then on.
///
/// # Errors
/// If the kernel has no system call filters (seccomp), or does not allow one.
#[allow(unsafe_code)]
pub(super) fn keep_memory_locked() -> io::Result<()> {
    let statement = |code: u32, k: u32| instruction(code, 0, 0, k);
    // This process runs no code for another architecture, so the number identifies the call.
    let is = |number: libc::c_long, then: u8| {
        let number = u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, 0, number)
    };
    let mut filter = [
        // The number is the first field of the filter's input (`seccomp_data`).
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)?,
        is(libc::SYS_munlock, 2)?,
        is(libc::SYS_munlockall, 1)?,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)?,
        // The filter returns errno 0, which means success.
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO)?,
    ];
    let count = libc::c_ushort::try_from(filter.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: count, filter: filter.as_mut_ptr() };
    // Without this setting, a filter requires CAP_SYS_ADMIN.
    prctl::set_no_new_privs()?;
    // SAFETY: `program` points to `count` instructions; both live until the call returns, and the
    // kernel keeps a copy.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    Errno::result(result)?;
    Ok(())
}

fn instruction(code: u32, then: u8, otherwise: u8, k: u32) -> io::Result<sock_filter> {
    let code = u16::try_from(code).map_err(io::Error::other)?;
    Ok(sock_filter { code, jt: then, jf: otherwise, k })
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use std::{ffi::c_void, fs, ptr::null_mut, time::Duration};

    use rustix::mm::{MapFlags, ProtFlags, mlock, mmap_anonymous, munlock, munmap};
    use threads::group::{Group, How};

    use super::*;

    const PAGE: usize = 4096;

    fn is_locked(page: *mut c_void) -> bool {
        let has_page = |line: &&str| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let range = range.map(|(begin, end)| [begin, end].map(|text| usize::from_str_radix(text, 16)));
            matches!(range, Some([Ok(begin), Ok(end)]) if (begin..end).contains(&page.addr()))
        };
        let table = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut of_page = table.lines().skip_while(|line| !has_page(line));
        let flags = of_page.find(|line| line.starts_with("VmFlags:")).unwrap();
        flags.split(' ').any(|flag| flag == "lo")
    }

    /// libcryptsetup used to unlock pages of the heap that still held a key.
    #[test]
    fn locked_pages_stay_locked() {
        // The test uses a separate thread, because a filter cannot be removed.
        let group = Group::new(&["confined"]);
        let confined = || {
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let page = unsafe { mmap_anonymous(null_mut(), PAGE, rights, MapFlags::PRIVATE) }.unwrap();
            // SAFETY: all of these concern the page of the new mapping.
            let (lock, unlock) = (|| unsafe { mlock(page, PAGE) }, || unsafe { munlock(page, PAGE) });
            lock().unwrap();
            unlock().unwrap();
            assert!(!is_locked(page), "munlock has no effect without the filter");
            lock().unwrap();
            keep_memory_locked().unwrap();
            unlock().unwrap();
            assert!(is_locked(page));
            // SAFETY: the page is no longer used.
            unsafe { munmap(page, PAGE) }.unwrap();
            Ok(())
        };
        group.spawn("confined", confined).unwrap();
        group.join(&["confined"], Duration::from_secs(60)).unwrap();
        assert_eq!(group.ended().recv().unwrap().how, How::Returned);
    }
}
