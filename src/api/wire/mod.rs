//! What goes over the wire, one file per API. Nothing else is serialised for a client.

pub mod chat;
pub mod error;
pub mod models;
pub mod ops;
