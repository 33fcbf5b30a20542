//! Planning: pure functions from state to plan. So tests can run millions of plans, and a dry run
//! can show one.
//!
//! This module handles numbers and the types of the metadata. It must never depend on the kernel,
//! the clock, or locks.

pub mod alloc;
pub mod cap;
pub mod growth;
pub mod sector_rules;
pub mod segments;
pub mod sizes;
pub mod watching;
