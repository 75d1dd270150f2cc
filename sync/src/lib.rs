//! Replication of a LUC cloud: the protocol core (pure), its driver, certificates, image data.

pub mod agents;
pub mod blob;
pub mod ca;
pub mod demand;
pub mod join;
pub mod net;
pub mod node;
pub mod proto;
mod reach;
pub mod rpc;
pub mod snapshot;
mod spool;
mod transport;
mod vouching;
pub mod waiting;
pub mod wire;
