//! Keeps the keys of a process off disks. Knows nothing of the keys.

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

/// From now on no library unlocks memory of the calling thread's process: `munlock` and `munlockall` succeed and do nothing, for
/// this thread and those that it starts. To be called before there are others.
///
/// libcryptsetup locks each piece of memory that it puts a key into, and unlocks it when it frees it. But the kernel locks and unlocks
/// whole pages, and does not count: whatever else lies on the page could go to swap from then on.
///
/// # Errors
/// When the kernel has no filters of system calls, or does not allow one.
#[allow(unsafe_code)]
pub(super) fn keep_memory_locked() -> io::Result<()> {
    let statement = |code: u32, k: u32| instruction(code, 0, 0, k);
    // Nothing of another architecture is run here, so the number tells which call it is.
    let is = |number: libc::c_long, then: u8| {
        let number = u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, 0, number)
    };
    let mut filter = [
        // The number is the first field of what a filter is given (`seccomp_data`).
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)?,
        is(libc::SYS_munlock, 2)?,
        is(libc::SYS_munlockall, 1)?,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)?,
        // With the error 0, which is success.
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO)?,
    ];
    let count = libc::c_ushort::try_from(filter.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: count, filter: filter.as_mut_ptr() };
    // Without it a filter takes CAP_SYS_ADMIN.
    prctl::set_no_new_privs()?;
    // SAFETY: `program` names `count` instructions, and both it and they live until the call returns; the kernel keeps a copy.
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

    /// libcryptsetup unlocked pages of the heap on which there was still a key.
    #[test]
    fn locked_pages_stay_locked() {
        // A thread of its own, since a filter stays.
        let group = Group::new(&["confined"]);
        let confined = || {
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping wherever there is room.
            let page = unsafe { mmap_anonymous(null_mut(), PAGE, rights, MapFlags::PRIVATE) }.unwrap();
            // SAFETY: the page is that of the new mapping, in all of these.
            let (lock, unlock) = (|| unsafe { mlock(page, PAGE) }, || unsafe { munlock(page, PAGE) });
            lock().unwrap();
            unlock().unwrap();
            assert!(!is_locked(page), "without the filter");
            lock().unwrap();
            keep_memory_locked().unwrap();
            unlock().unwrap();
            assert!(is_locked(page));
            // SAFETY: nobody uses it any more.
            unsafe { munmap(page, PAGE) }.unwrap();
            Ok(())
        };
        group.spawn("confined", confined).unwrap();
        group.join(&["confined"], Duration::from_secs(60)).unwrap();
        assert_eq!(group.ended().recv().unwrap().how, How::Returned);
    }
}
