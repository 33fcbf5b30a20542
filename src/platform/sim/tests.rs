//! Promises of the whole machine.
