//! How the server is, shown over HTTP.

pub(crate) mod json;
