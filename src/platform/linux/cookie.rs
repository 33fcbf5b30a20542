//! Cookies: how device-mapper tells that udev is done with a change of a device.
//!
//! A cookie is the key of a System V semaphore. Its number goes along with a call that changes a device, into the event that
//! the kernel sends; the last rule of device-mapper (`95-dm-notify.rules`) lets `dmsetup udevcomplete` take one off the
//! semaphore. A worker of udev that is killed never does. So every wait ends at a deadline, and no semaphore is left behind.
//!
//! Knows nothing of devices.

use std::{
    fs, io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::libc;
use rand::{TryRngCore, rngs::OsRng};

/// Upper half of the key of each cookie.
const MAGIC: u32 = 0x0d4d;
/// How often a number that is taken is drawn again.
const DRAWS: u32 = 16;
/// All semaphores of the machine.
const SEMAPHORES: &str = "/proc/sysvipc/sem";

/// Waits of the daemon and of its children that udev did not end. One count, since it is one udev.
static UNANSWERED: AtomicU64 = AtomicU64::new(0);

/// Notes waits that have been given up. Gives how many there have been so far.
pub(super) fn note_unanswered(count: u64) -> u64 {
    UNANSWERED.fetch_add(count, Ordering::Relaxed) + count
}

/// Waits that have been given up so far.
pub(super) fn unanswered() -> u64 {
    UNANSWERED.load(Ordering::Relaxed)
}

mod semaphore {
    //! The calls on semaphores, each on the first and only one of a set.
    #![allow(unsafe_code)]

    use std::{ffi::c_void, io, time::Duration};

    use nix::libc::{self, GETPID, IPC_CREAT, IPC_EXCL, IPC_RMID, SETVAL, c_int, key_t, sembuf, size_t, timespec};

    /// What goes along with a control call; glibc leaves its definition to the caller (semctl(2)).
    #[repr(C)]
    #[derive(Clone, Copy)]
    union Argument {
        value: c_int,
        _pointer: *mut c_void,
    }

    // SAFETY: missing in the crate, there in every C library for Linux with these arguments (semop(2)).
    unsafe extern "C" {
        fn semtimedop(set: c_int, steps: *mut sembuf, count: size_t, limit: *const timespec) -> c_int;
    }

    fn checked(answer: c_int) -> io::Result<c_int> {
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }

    /// Makes a semaphore for root alone; a key that is taken is an error.
    pub(super) fn make(key: u32) -> io::Result<c_int> {
        // SAFETY: the call takes numbers only.
        checked(unsafe { libc::semget(key as key_t, 1, 0o600 | IPC_CREAT | IPC_EXCL) })
    }

    pub(super) fn set(set: c_int, value: c_int) -> io::Result<()> {
        // SAFETY: SETVAL takes a `union semun` with a number in it, and dereferences nothing.
        checked(unsafe { libc::semctl(set, 0, SETVAL, Argument { value }) }).map(drop)
    }

    pub(super) fn remove(set: c_int) -> io::Result<()> {
        // SAFETY: IPC_RMID ignores the fourth argument.
        checked(unsafe { libc::semctl(set, 0, IPC_RMID) }).map(drop)
    }

    /// The process that changed it last.
    pub(super) fn last_process(set: c_int) -> io::Result<c_int> {
        // SAFETY: GETPID ignores the fourth argument.
        checked(unsafe { libc::semctl(set, 0, GETPID) })
    }

    /// Waits for it to be 0.
    pub(super) fn wait_for_zero(set: c_int, limit: Duration) -> io::Result<()> {
        let mut step = sembuf { sem_num: 0, sem_op: 0, sem_flg: 0 };
        let limit = timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: both pointers are to values that live until the call returns, and there is one step, as is said.
        checked(unsafe { semtimedop(set, &mut step, 1, &limit) }).map(drop)
    }
}

/// A semaphore that stands at 1 until udev is done; removed when dropped.
#[derive(Debug)]
pub(super) struct Cookie {
    key: u32,
    set: libc::c_int,
}

impl Cookie {
    /// A cookie that nobody else uses.
    ///
    /// # Errors
    /// When the kernel has no semaphore to give.
    pub(super) fn new() -> io::Result<Cookie> {
        let mut failed = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..DRAWS {
            let number = OsRng.try_next_u32().map_err(io::Error::other)? & 0xffff;
            // No cookie has the number 0: with the call it means that there is none.
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

    /// What goes along with the call: the lower half of the key.
    pub(super) fn number(&self) -> u32 {
        self.key & 0xffff
    }

    /// Waits until udev is done, or somebody has removed the semaphore. `false`: not within `limit`.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
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
        // One that has gone already is no matter; for another reason it cannot fail.
        let _ = semaphore::remove(self.set);
    }
}

/// A semaphore as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    key: u32,
    set: libc::c_int,
    /// Seconds since 1970 of the last change of its value.
    changed: u64,
}

/// Reads a line of the kernel's list: key, set, permissions, count, four owners, times of the last step and of the last
/// setting.
fn listed(line: &str) -> Option<Listed> {
    let mut words = line.split_ascii_whitespace();
    let key: i32 = words.next()?.parse().ok()?;
    let set = words.next()?.parse().ok()?;
    let by_step: u64 = words.nth(6)?.parse().ok()?;
    let by_setting: u64 = words.next()?.parse().ok()?;
    let changed = by_step.max(by_setting);
    Some(Listed { key: key.cast_unsigned(), set, changed })
}

/// Removes the cookies that a process has been waiting for so long: it goes on then, as if udev were done. Gives how many.
///
/// Device-mapper's own library waits without a deadline. A process that waits has itself changed the semaphore last.
pub(super) fn release(process: u32, waiting: Duration) -> usize {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let is_late = |semaphore: &Listed| {
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

    use super::{Cookie, Listed, SEMAPHORES, listed, release, semaphore};

    /// One of these tests removes all cookies of the process.
    static ALONE: Mutex<()> = Mutex::new(());

    fn is_there(cookie: u32) -> bool {
        let list = fs::read_to_string(SEMAPHORES).unwrap();
        list.lines().filter_map(listed).any(|semaphore| semaphore.key == cookie)
    }

    /// A worker of udev that was killed blocked the pool for ever.
    #[test]
    fn a_wait_ends_at_its_deadline() {
        let _alone = ALONE.lock();
        let cookie = Cookie::new().unwrap();
        let key = cookie.key;
        assert_eq!(key >> 16, 0x0d4d);
        assert!(is_there(key));
        assert!(!cookie.wait(Duration::from_millis(1)).unwrap());
        drop(cookie);
        assert!(!is_there(key), "no semaphore is left behind");
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
    fn cookies_of_a_process_that_waits_too_long_are_removed() {
        let _alone = ALONE.lock();
        let (cookie, other) = (Cookie::new().unwrap(), Cookie::new().unwrap());
        let us = std::process::id();
        assert_eq!(release(us, Duration::from_secs(3600)), 0, "it has not waited so long");
        assert_eq!(release(u32::MAX, Duration::ZERO), 0, "they are not that process's");
        assert!(is_there(cookie.key) && is_there(other.key));
        assert_eq!(release(us, Duration::ZERO), 2);
        assert!(!is_there(cookie.key) && !is_there(other.key));
        assert!(cookie.wait(Duration::from_secs(3600)).unwrap(), "who waits goes on");
    }

    #[test]
    fn the_kernels_list_is_read() {
        let line = " 223018503         12   600          1     0     0     0     0 1794999999 1795000000";
        assert_eq!(listed(line), Some(Listed { key: 223_018_503, set: 12, changed: 1_795_000_000 }));
        assert_eq!(
            listed("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime"),
            None
        );
    }
}
