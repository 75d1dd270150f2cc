//! The agent of a LUC host: a pure [`plan`], executed by libvirt.

pub mod plan;
pub mod store;
pub mod world;
