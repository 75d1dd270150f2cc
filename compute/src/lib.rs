//! The agent of a LUC host: a pure [`plan`], executed by libvirt.

pub mod plan;
pub mod store;
pub mod world;
pub mod events;
pub mod libvirt;
pub mod xml;
pub mod configdrive;
pub mod console;
pub mod image_check;
pub mod tool;
