//! udev cookies: how device-mapper learns that udev has processed a change.
//!
//! A cookie is the key of a System V semaphore. The call that changes a device carries its number,
//! and so does the event that the kernel raises. The last rule of device-mapper
//! (`95-dm-notify.rules`) runs `dmsetup udevcomplete`, which decrements the semaphore. A killed
//! udev worker never does that, so every wait has a deadline, after which the semaphore is removed.
//!
//! This module knows nothing of devices.

use std::{
    fs, io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::libc;
use rand::{TryRngCore, rngs::OsRng};

/// Upper half of every cookie's key.
const MAGIC: u32 = 0x0d4d;
/// Attempts to draw a number that is not in use.
const DRAWS: u32 = 16;
/// The kernel's list of all semaphores.
const SEMAPHORES: &str = "/proc/sysvipc/sem";

/// Waits of the daemon and its children that timed out. One counter, since there is one udev.
static UNANSWERED: AtomicU64 = AtomicU64::new(0);

/// Counts waits that timed out. Returns the total.
pub(super) fn note_unanswered(count: u64) -> u64 {
    UNANSWERED.fetch_add(count, Ordering::Relaxed) + count
}

/// Number of waits that timed out so far.
pub(super) fn unanswered() -> u64 {
    UNANSWERED.load(Ordering::Relaxed)
}

mod semaphore {
    //! The semaphore calls. Each set has one semaphore.
    #![allow(unsafe_code)]

    use std::{ffi::c_void, io, time::Duration};

    use nix::libc::{self, GETPID, IPC_CREAT, IPC_EXCL, IPC_RMID, SETVAL, c_int, key_t, sembuf, size_t, timespec};

    /// Argument of a control call; glibc leaves its definition to the caller (semctl(2)).
    #[repr(C)]
    #[derive(Clone, Copy)]
    union Semun {
        value: c_int,
        _pointer: *mut c_void,
    }

    // SAFETY: the libc crate lacks this function; every C library for Linux has it with these
    // arguments (semop(2)).
    unsafe extern "C" {
        fn semtimedop(set: c_int, steps: *mut sembuf, count: size_t, limit: *const timespec) -> c_int;
    }

    fn checked(answer: c_int) -> io::Result<c_int> {
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }

    /// Creates a semaphore for root alone. Fails if the key is in use.
    pub(super) fn make(key: u32) -> io::Result<c_int> {
        // SAFETY: the call takes numbers only.
        checked(unsafe { libc::semget(key as key_t, 1, 0o600 | IPC_CREAT | IPC_EXCL) })
    }

    pub(super) fn set(set: c_int, value: c_int) -> io::Result<()> {
        // SAFETY: SETVAL takes a `union semun` with a number in it, and dereferences nothing.
        checked(unsafe { libc::semctl(set, 0, SETVAL, Semun { value }) }).map(drop)
    }

    pub(super) fn remove(set: c_int) -> io::Result<()> {
        // SAFETY: IPC_RMID ignores the fourth argument.
        checked(unsafe { libc::semctl(set, 0, IPC_RMID) }).map(drop)
    }

    /// The process that last changed the semaphore.
    pub(super) fn last_process(set: c_int) -> io::Result<c_int> {
        // SAFETY: GETPID ignores the fourth argument.
        checked(unsafe { libc::semctl(set, 0, GETPID) })
    }

    /// Waits until the semaphore is 0.
    pub(super) fn wait_for_zero(set: c_int, limit: Duration) -> io::Result<()> {
        let mut step = sembuf { sem_num: 0, sem_op: 0, sem_flg: 0 };
        let limit = timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: both pointers point to values that live until the call returns, and `count` is 1
        // for one step.
        checked(unsafe { semtimedop(set, &mut step, 1, &limit) }).map(drop)
    }
}

/// A semaphore that stays at 1 until udev has processed the change. Dropping the cookie removes the
/// semaphore.
#[derive(Debug)]
pub(super) struct Cookie {
    key: u32,
    set: libc::c_int,
}

impl Cookie {
    /// Creates a cookie with a key that is not in use.
    ///
    /// # Errors
    /// If the kernel has no free semaphore.
    pub(super) fn new() -> io::Result<Cookie> {
        let mut failed = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..DRAWS {
            let number = OsRng.try_next_u32().map_err(io::Error::other)? & 0xffff;
            // The number 0 means "no cookie" in the call.
            if number == 0 {
                continue;
            }
            let key = MAGIC << 16 | number;
            match semaphore::make(key) {
                Ok(set) => {
                    let cookie = Cookie { key, set };
                    semaphore::set(set, 1)?;
                    return Ok(cookie);
                }
                Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => failed = taken,
                Err(other) => return Err(other),
            }
        }
        Err(failed)
    }

    /// The number for the call: the lower half of the key.
    pub(super) fn number(&self) -> u32 {
        self.key & 0xffff
    }

    /// Waits until udev has processed the change or another process removes the semaphore. `false`
    /// on timeout.
    ///
    /// # Errors
    /// If the kernel refuses to wait.
    pub(super) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            match semaphore::wait_for_zero(self.set, deadline.saturating_duration_since(Instant::now())) {
                Ok(()) => return Ok(true),
                Err(fault) => match fault.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => return Ok(false),
                    Some(libc::EIDRM | libc::EINVAL) => return Ok(true),
                    _ => return Err(fault),
                },
            }
        }
    }
}

impl Drop for Cookie {
    fn drop(&mut self) {
        // The semaphore may be gone already; removal cannot fail for another reason.
        let _ = semaphore::remove(self.set);
    }
}

/// A semaphore as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
struct ListedSemaphore {
    key: u32,
    set: libc::c_int,
    /// Time of the last change of its value, in seconds since 1970.
    changed: u64,
}

/// Parses a line of the kernel's list: key, set, permissions, count, four owners, time of the last
/// operation, time of the last control call.
fn listed(line: &str) -> Option<ListedSemaphore> {
    let mut words = line.split_ascii_whitespace();
    let key: i32 = words.next()?.parse().ok()?;
    let set = words.next()?.parse().ok()?;
    let by_step: u64 = words.nth(6)?.parse().ok()?;
    let by_setting: u64 = words.next()?.parse().ok()?;
    let changed = by_step.max(by_setting);
    Some(ListedSemaphore { key: key.cast_unsigned(), set, changed })
}

/// Removes the cookies that a process has waited for at least this long, so that the process
/// continues as if udev had answered. Returns their number.
///
/// libdevmapper waits without a deadline. The process that waits was the last to change the
/// semaphore.
pub(super) fn release(process: u32, waiting: Duration) -> usize {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let is_late = |semaphore: &ListedSemaphore| {
        semaphore.key >> 16 == MAGIC
            && Duration::from_secs(semaphore.changed) + waiting <= now
            && semaphore::last_process(semaphore.set).is_ok_and(|last| u32::try_from(last) == Ok(process))
    };
    let list = fs::read_to_string(SEMAPHORES).unwrap_or_default();
    let late = list.lines().filter_map(listed).filter(is_late);
    late.filter(|semaphore| semaphore::remove(semaphore.set).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use parking_lot::Mutex;

    use super::{Cookie, ListedSemaphore, SEMAPHORES, listed, release, semaphore};

    /// One of these tests removes all cookies of the process, so they exclude each other.
    static ALONE: Mutex<()> = Mutex::new(());

    fn is_there(cookie: u32) -> bool {
        let list = fs::read_to_string(SEMAPHORES).unwrap();
        list.lines().filter_map(listed).any(|semaphore| semaphore.key == cookie)
    }

    /// A killed udev worker used to block the pool for ever.
    #[test]
    fn a_wait_ends_at_its_deadline() {
        let _alone = ALONE.lock();
        let cookie = Cookie::new().unwrap();
        let key = cookie.key;
        assert_eq!(key >> 16, 0x0d4d);
        assert!(is_there(key));
        assert!(!cookie.wait(Duration::from_millis(1)).unwrap());
        drop(cookie);
        assert!(!is_there(key), "the semaphore is still there");
    }

    #[test]
    fn a_wait_ends_when_udev_is_done() {
        let _alone = ALONE.lock();
        let long = Duration::from_secs(3600);
        let cookie = Cookie::new().unwrap();
        let set = cookie.set;
        std::thread::scope(|scope| {
            scope.spawn(move || semaphore::set(set, 0).unwrap());
            assert!(cookie.wait(long).unwrap());
        });
        // `dmsetup udevcomplete_all` removes them.
        semaphore::set(set, 1).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || semaphore::remove(set).unwrap());
            assert!(cookie.wait(long).unwrap());
        });
    }

    #[test]
    fn cookies_that_wait_too_long_are_removed() {
        let _alone = ALONE.lock();
        let (cookie, other) = (Cookie::new().unwrap(), Cookie::new().unwrap());
        let us = std::process::id();
        assert_eq!(release(us, Duration::from_secs(3600)), 0, "a cookie was removed too early");
        assert_eq!(release(u32::MAX, Duration::ZERO), 0, "a cookie of another process was removed");
        assert!(is_there(cookie.key) && is_there(other.key));
        assert_eq!(release(us, Duration::ZERO), 2);
        assert!(!is_there(cookie.key) && !is_there(other.key));
        assert!(cookie.wait(Duration::from_secs(3600)).unwrap(), "the wait timed out");
    }

    #[test]
    fn the_kernels_list_is_read() {
        let line = " 223018503         12   600          1     0     0     0     0 1794999999 1795000000";
        assert_eq!(listed(line), Some(ListedSemaphore { key: 223_018_503, set: 12, changed: 1_795_000_000 }));
        assert_eq!(
            listed("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime"),
            None
        );
    }
}
