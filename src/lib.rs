//! percept serves open-weight vision-language models and Whisper to OpenAI clients.
//!
//! The modules in the order in which a request meets them:
//!
//! - [`cli`], [`config`], [`server`]: what was typed becomes a server
//! - [`hub`]: where a checkpoint is; [`demo`]: those that are part of the program
//! - [`memory`]: how memory is shared out before anything is served
//! - [`plan`]: the same as a table, for people and for programs
//! - [`api`]: HTTP and JSON, and nothing else knows them
//! - [`access`]: who may use it, and how much
//! - [`operations`]: what is watched and kept: figures, usage, the audit log
//! - [`store`]: what clients leave: files and batches
//! - [`router`]: which engine a model's name means
//! - [`media`]: files to pixels and samples, on a pool
//! - [`text`]: conversations to tokens, tokens to text
//! - [`speech`]: recordings to text, a client of an engine
//! - [`request`]: what an engine is asked
//! - [`engine`]: one thread that owns a model and steps it for all requests at once
//! - [`mod@bench`]: how fast all of that is, as a client sees it
#![forbid(unsafe_code)]

pub mod access;
pub mod api;
pub mod bench;
pub mod cli;
pub mod config;
pub mod demo;
pub mod device;
pub mod engine;
pub mod hub;
pub mod media;
pub mod memory;
pub mod operations;
pub mod plan;
pub mod request;
pub mod router;
pub mod server;
pub mod speech;
pub mod store;
pub mod text;
