//! `stratis-str-cmp A B`: a udev helper that prints `0` if the two texts are equal, else `1`. It
//! succeeds either way, because the rule reads its output (`docs/spec/tools/utilities.md` §7). It
//! runs for every event of a filesystem's device and in the initrd, so it uses only the standard
//! library. This program knows nothing of pools or the daemon.
//!
//! A filesystem's UUID also equals the name of its device-mapper device, which ends in the UUID
//! without hyphens: udev rules can neither cut a text nor remove characters from it.

use std::{
    env,
    error::Error,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
};

/// The positions of the hyphens in a UUID.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
const UUID_BYTES: usize = 36;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let first = arguments.next().ok_or("missing first argument, this program requires exactly 2 arguments")?;
    let second = arguments.next().ok_or("missing second argument, this program requires exactly 2 arguments")?;
    let equal = first == second || is_device_of(second.as_bytes(), first.as_bytes());
    writeln!(io::stdout(), "{}", i32::from(!equal))?;
    Ok(())
}

/// Whether this is the device name of the filesystem with this UUID:
/// `stratis-1-POOL-thin-fs-FILESYSTEM`.
fn is_device_of(name: &[u8], uuid: &[u8]) -> bool {
    let has_form = uuid.len() == UUID_BYTES
        && uuid.iter().enumerate().all(|(at, byte)| match HYPHENS.contains(&at) {
            true => *byte == b'-',
            false => byte.is_ascii_hexdigit(),
        });
    let digits: Vec<u8> = uuid.iter().copied().filter(|byte| *byte != b'-').collect();
    let rest = name.strip_prefix(b"stratis-1-").and_then(|rest| rest.strip_suffix(&digits[..]));
    has_form && rest.is_some_and(|rest| rest.ends_with(b"-thin-fs-"))
}
