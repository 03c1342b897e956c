//! The server of vsync.
