//! Which threads exist, what connects them, how the daemon comes up and how it stops.
//!
//! Must never know: any policy about pools. It builds, joins and stops.

pub mod dispatch;
mod table;
