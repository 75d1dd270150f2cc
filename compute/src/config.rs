//! What an operator decides about a host.

use std::path::PathBuf;
use std::time::Duration;

use luc_engine::id::{CloudId, SiteName};
use serde::{Deserialize, Serialize};

/// By whom guests are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtType {
    /// `kvm` where the processor's flags name `vmx` or `svm` and `/dev/kvm` exists, else `qemu`. The device alone proves
    /// nothing: there are machines that have it, and on which guests hang.
    #[default]
    Auto,
    /// By the processor.
    Kvm,
    /// By emulation: slow, works everywhere.
    Qemu,
}

/// An agent's settings.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The host's name, unique in its site.
    pub name: String,
    /// The site it belongs to.
    pub site: SiteName,
    /// The cloud: domains of other clouds are not touched.
    pub cloud: CloudId,
    /// libvirt's URI: `qemu:///system`, `qemu+unix:///system?socket=…`, `test:///default`.
    pub libvirt_uri: String,
    /// By whom guests are executed; of no meaning on `test:`.
    pub virt_type: VirtType,
    /// libvirt's machine type: `pc` or `q35`, or a version of them.
    pub machine: String,
    /// Where the agent keeps its memory, base images and the disks of its servers. Absolute: libvirt opens these files.
    pub state_dir: PathBuf,
    /// vCPU promised for each processor.
    pub cpu_overcommit: u64,
    /// Memory kept for the host itself, MiB.
    pub reserved_memory_mib: u64,
    /// Disk kept free where `state_dir` is, GiB.
    pub reserved_disk_gib: u64,
    /// Processors, instead of what libvirt says.
    pub cpus: Option<u64>,
    /// Memory for servers, MiB, instead of what libvirt says less what is reserved.
    pub memory_mib: Option<u64>,
    /// Disk for servers, GiB, instead of what the file system holds less what is reserved.
    pub disk_gib: Option<u64>,
    /// How long a guest may take to shut down or reboot when asked, before it is forced.
    pub shutdown_timeout: Duration,
    /// Largest disk that an image may describe, bytes.
    pub max_image_size: u64,
}

impl AgentConfig {
    /// The defaults for everything but who and where.
    #[must_use]
    pub fn new(name: &str, site: SiteName, cloud: CloudId, libvirt_uri: &str, state_dir: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            site,
            cloud,
            libvirt_uri: libvirt_uri.to_owned(),
            virt_type: VirtType::default(),
            machine: "pc".to_owned(),
            state_dir,
            cpu_overcommit: 4,
            reserved_memory_mib: 512,
            reserved_disk_gib: 2,
            cpus: None,
            memory_mib: None,
            disk_gib: None,
            shutdown_timeout: Duration::from_secs(60),
            max_image_size: 1 << 40,
        }
    }
}
