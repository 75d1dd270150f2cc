//! Replication of a LUC cloud: the protocol core (pure), its driver, certificates, image data.

pub mod agents;
pub mod blob;
pub mod ca;
pub mod node;
pub mod proto;
pub mod token;
pub mod wire;
