//! The APIs of a LUC site: OpenStack's Identity, Compute and Image, and LUC's own, served by one process on one port.
//!
//! The core speaks its own errors; HTTP appears only here, and each service's own error format in one place
//! ([`http`]). Who may do what is in one place too ([`policy`]).

mod addresses;
pub mod app;
pub mod auth;
pub mod bootstrap;
pub mod cli;
pub mod compute;
pub mod discovery;
mod hosts;
pub mod http;
pub mod identity;
pub mod image;
pub mod luc;
mod members;
#[cfg(feature = "mutants")]
mod mutants;
pub mod policy;
mod pools;
mod rights;
#[cfg(test)]
mod testing;
pub mod wan;
