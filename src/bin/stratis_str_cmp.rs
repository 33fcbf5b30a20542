//! `stratis-str-cmp A B`: a udev helper that prints `0` if the two texts are equal, else `1`; it succeeds either way, since
//! a rule reads what it prints (`spec/tools/utilities.md` §7). Runs for every event of a filesystem's device and in the
//! initrd, so it needs nothing but the standard library, and knows nothing of pools or the daemon.

use std::{
    env,
    error::Error,
    io::{self, Write},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let first = arguments.next().ok_or("missing first argument, this program requires exactly 2 arguments")?;
    let second = arguments.next().ok_or("missing second argument, this program requires exactly 2 arguments")?;
    writeln!(io::stdout(), "{}", i32::from(first != second))?;
    Ok(())
}
