//! Planning: pure functions from state to plan.
pub mod sizes;
