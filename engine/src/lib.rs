//! The state of a LUC cloud. Pure: no clock, randomness, socket, thread or runtime; time and random bits come in as
//! arguments, and I/O goes through [`store::Store`] alone.

mod account;
pub mod agent;
pub mod amount;
mod apply;
pub mod branch;
pub mod document;
pub mod entry;
pub mod filters;
pub mod hosts;
pub mod id;
pub mod interval;
pub mod ledger;
#[cfg(feature = "memo")]
pub mod memo;
pub mod mutant;
mod receive;
pub mod record;
pub mod replica;
pub mod retire;
pub mod schedule;
pub mod site_mutant;
mod stage;
pub mod store;
pub mod tips;
pub mod tx;
pub mod view;
