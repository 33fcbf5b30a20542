//! `stratis-base32-decode KEY B32`: a udev helper that prints `KEY=TEXT`, where TEXT is B32 decoded
//! (RFC 4648, upper case, without padding; `docs/spec/tools/utilities.md` §8). The kernel accepts
//! only letters and digits in the properties of a synthetic event, so names of pools and
//! filesystems travel in this form. This program knows nothing of pools or the daemon.

use std::{
    env,
    error::Error,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
};

use data_encoding::BASE32_NOPAD;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let key = arguments.next().ok_or("missing first argument, this program requires exactly 2 arguments")?;
    let encoded = arguments.next().ok_or("missing second argument, this program requires exactly 2 arguments")?;
    let text = String::from_utf8(BASE32_NOPAD.decode(encoded.as_bytes())?)?;
    // One write, so that nothing is printed on an error.
    let line = [key.as_bytes(), b"=", text.as_bytes(), b"\n"].concat();
    io::stdout().write_all(&line)?;
    Ok(())
}
