//! The agent of vsync.
//!
//! - [`keys`]: how keys derive, what each machine holds, where they lie

pub mod keys;
