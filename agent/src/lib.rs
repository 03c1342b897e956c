//! The agent of vsync.
