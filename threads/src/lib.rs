//! Concurrency for daemons.
