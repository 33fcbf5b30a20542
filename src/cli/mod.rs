//! The command lines of programs, one file for each: what a program accepts.
//!
//! Must never know: how a program does what it accepts.

mod level;
pub mod stratis_min;
pub mod stratisd_min;

pub use level::Level;
