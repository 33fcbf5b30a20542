//! Planning: pure functions from state to plan. So plans can be tested by the million and shown as
//! a dry run.
//!
//! This module knows numbers and the types of the metadata. It must never know the kernel, the
//! clock, or locks.

pub mod alloc;
pub mod cap;
pub mod growth;
pub mod sector_rules;
pub mod segments;
pub mod sizes;
pub mod watching;
