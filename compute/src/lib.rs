//! The agent of a LUC host: a pure [`plan`], executed by libvirt.

pub mod configdrive;
pub mod console;
pub mod events;
pub mod image_check;
pub mod libvirt;
pub mod plan;
pub mod store;
pub mod tool;
pub mod world;
pub mod xml;
