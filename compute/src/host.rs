//! What a host has, and how it fares.

use std::path::Path;

use luc_engine::agent::{Heartbeat, HostFacts};
use luc_engine::entry::HostIdentity;
use luc_engine::id::Millis;
use luc_engine::ledger::{Amount, Dimension};

use crate::config::{AgentConfig, VirtType};
use crate::libvirt::Node;
use crate::store::Identity;
use crate::xml::DomainType;

/// By whom domains are executed here.
#[must_use]
pub fn domain_type(config: &AgentConfig) -> DomainType {
    if config.libvirt_uri.starts_with("test:") {
        return DomainType::Test;
    }
    match config.virt_type {
        VirtType::Kvm => DomainType::Kvm,
        VirtType::Qemu => DomainType::Qemu,
        VirtType::Auto => {
            let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let virtual_cpus = has_virtualisation(&cpus) && Path::new("/dev/kvm").exists();
            if virtual_cpus { DomainType::Kvm } else { DomainType::Qemu }
        }
    }
}

/// Whether the flags in `/proc/cpuinfo` name hardware virtualisation.
fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.flat_map(str::split_whitespace).any(|flag| matches!(flag, "vmx" | "svm"))
}

/// Introduces a host.
#[must_use]
pub fn facts(config: &AgentConfig, identity: &Identity, node: &Node) -> HostFacts {
    let kind = match domain_type(config) {
        DomainType::Kvm => "KVM",
        DomainType::Qemu => "QEMU",
        DomainType::Test => "test",
    };
    let (disk, _) = disk_gib(&config.state_dir);
    HostFacts {
        identity: HostIdentity::sign(config.cloud, &config.site, &identity.key),
        name: config.name.clone(),
        incarnation: identity.incarnation,
        hypervisor_type: kind.to_owned(),
        hypervisor_version: node.version,
        cpus: config.cpus.unwrap_or(node.cpus),
        memory_mib: config.memory_mib.unwrap_or(node.memory_mib.saturating_sub(config.reserved_memory_mib)),
        disk_gib: config.disk_gib.unwrap_or(disk.saturating_sub(config.reserved_disk_gib)),
        cpu_overcommit: config.cpu_overcommit,
        architecture: std::env::consts::ARCH.to_owned(),
        pool: None,
    }
}

/// What a host can carry, whatever anybody orders.
#[must_use]
pub fn capacity(facts: &HostFacts) -> Amount {
    let vcpus = facts.cpus.saturating_mul(facts.cpu_overcommit);
    [(Dimension::Vcpus, vcpus), (Dimension::MemoryMib, facts.memory_mib), (Dimension::DiskGib, facts.disk_gib)]
        .into_iter()
        .collect()
}

/// How a host fares, as far as the system says; the rest is left at nothing.
#[must_use]
pub fn heartbeat(state_dir: &Path, at: Millis) -> Heartbeat {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    let (_, disk_free_gib) = disk_gib(state_dir);
    Heartbeat {
        at,
        load_hundredths: load.split_whitespace().next().and_then(hundredths).unwrap_or(0),
        memory_free_mib: available.unwrap_or(0) / 1024,
        disk_free_gib,
        ..Heartbeat::default()
    }
}

/// `1.25` as 125.
fn hundredths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(part.get(..2)?.parse().ok()?)
}

/// GiB in all and free of the file system that a path is on.
fn disk_gib(path: &Path) -> (u64, u64) {
    let Ok(stat) = rustix::fs::statvfs(path) else { return (0, 0) };
    let gib = |blocks: u64| blocks.saturating_mul(stat.f_frsize) >> 30;
    (gib(stat.f_blocks), gib(stat.f_bavail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_is_read_from_the_flags() {
        assert!(has_virtualisation("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags : svm"));
        assert!(!has_virtualisation("flags\t: fpu hypervisor\nvmx flags\t: vnmi\nmodel name: svm\n"));
    }

    #[test]
    fn load_is_read_as_hundredths() {
        assert_eq!(hundredths("1.25"), Some(125));
        assert_eq!(hundredths("0.05"), Some(5));
        assert_eq!(hundredths("x"), None);
    }
}
