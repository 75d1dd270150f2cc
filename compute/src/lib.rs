//! The agent of a LUC host: a pure [`plan`], executed by libvirt.

pub mod agent;
pub mod config;
pub mod configdrive;
pub mod console;
pub mod disk;
pub mod events;
pub mod host;
pub mod image_check;
pub mod libvirt;
pub mod link;
pub mod plan;
pub mod store;
pub mod tool;
mod work;
pub mod world;
pub mod xml;

pub use agent::{Agent, AgentError, run};
pub use config::{AgentConfig, VirtType};
pub use link::{Fetch, FetchError, Images, Link, LinkEvent, LinkHandle, Progress, link};
