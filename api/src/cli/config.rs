//! The configuration file: TOML, one a process. Every key is checked; an unknown one is an error, not a surprise.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use luc_compute::config::{AgentConfig, VirtType};
use luc_engine::id::{CloudId, SiteName};
use luc_engine::ledger::Dimension;
use serde::Deserialize;

use crate::app::Settings;
use crate::bootstrap::project_quota;

/// What a new configuration file looks like: every key with its default.
pub(super) const TEMPLATE: &str = r#"# LUC's configuration. Every key is here with its default, unless it says "required".

# Where this process keeps everything: store, keys, image data. Required.
data_dir = "/var/lib/luc"
# Address of the QUIC endpoint: other replicas and agents connect here (UDP).
listen = "0.0.0.0:4786"
# Where others reach that endpoint, host:port, the best first. Required for replicas.
advertise = []
# Replicas of the site, host:port. Required for `luc agent`, unused by `luc serve`.
replicas = []

[replica]
# Bytes of the log that are kept for members that are away. One that was away for longer takes a snapshot.
log_max_bytes = 268435456

[api]
# Address of the OpenStack APIs (TCP, HTTP). Put TLS in front of it where the network is not yours.
listen = "0.0.0.0:8774"
# Base URL that clients reach it under, if it is not the address they used: "https://paris.example".
public_url = ""
# How long a token works, seconds.
token_seconds = 3600
# How long a request that carries X-LUC-Frontier may wait, seconds.
frontier_seconds = 5
# Largest image, and largest disk that an image may describe, GiB.
max_image_gib = 64
# Quota of a new project.
quota_instances = 10
quota_cores = 20
quota_ram_mib = 51200
quota_server_groups = 10

[agent]
# Whether `luc serve` runs an agent for this machine.
enabled = true
# The host's name in the cloud, unique in its site; the machine's host name if empty.
name = ""
# libvirt's URI: "qemu:///system" for real machines, "test:///default" for libvirt's simulated hypervisor.
libvirt_uri = "qemu:///system"
# "kvm", "qemu" (emulated), or "auto": kvm where the processor's flags have vmx or svm.
virt_type = "auto"
# libvirt's machine type.
machine = "pc"
# vCPU promised for each processor.
cpu_overcommit = 4
# Kept for the host itself.
reserved_memory_mib = 512
reserved_disk_gib = 2
# Instead of what the machine has; 0 means what it has.
cpus = 0
memory_mib = 0
disk_gib = 0
# How long a guest may take to shut down when asked, before it is forced, seconds.
shutdown_seconds = 60

[log]
# "text" or "json".
format = "text"
# As RUST_LOG: "info", "debug", "luc_sync=debug,info".
level = "info"
"#;

/// Below that a log is no use to anybody: what a member missed in a moment is more.
const LEAST_LOG: u64 = 64 << 10;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    pub(super) data_dir: PathBuf,
    #[serde(default = "default_listen")]
    pub(super) listen: SocketAddr,
    #[serde(default)]
    pub(super) advertise: Vec<String>,
    #[serde(default)]
    pub(super) replicas: Vec<String>,
    #[serde(default)]
    pub(super) replica: Replica,
    #[serde(default)]
    pub(super) api: Api,
    #[serde(default)]
    pub(super) agent: Agent,
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Replica {
    pub(super) log_max_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub(super) listen: SocketAddr,
    public_url: String,
    token_seconds: u64,
    frontier_seconds: u64,
    max_image_gib: u64,
    quota_instances: u64,
    quota_cores: u64,
    quota_ram_mib: u64,
    quota_server_groups: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Agent {
    pub(super) enabled: bool,
    name: String,
    libvirt_uri: String,
    virt_type: VirtType,
    machine: String,
    cpu_overcommit: u64,
    reserved_memory_mib: u64,
    reserved_disk_gib: u64,
    cpus: u64,
    memory_mib: u64,
    disk_gib: u64,
    shutdown_seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    format: LogFormat,
    level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogFormat {
    Text,
    Json,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 4786))
}

impl Default for Replica {
    fn default() -> Self {
        Self { log_max_bytes: luc_engine::replica::LOG_BYTES }
    }
}

impl Default for Api {
    fn default() -> Self {
        let Settings { default_quota: quota, token_lifetime, frontier_wait, .. } = Settings::default();
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8774)),
            public_url: String::new(),
            token_seconds: token_lifetime.as_secs(),
            frontier_seconds: frontier_wait.as_secs(),
            max_image_gib: 64,
            quota_instances: quota.get(Dimension::Instances),
            quota_cores: quota.get(Dimension::Vcpus),
            quota_ram_mib: quota.get(Dimension::MemoryMib),
            quota_server_groups: quota.get(Dimension::ServerGroups),
        }
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            enabled: true,
            name: String::new(),
            libvirt_uri: "qemu:///system".into(),
            virt_type: VirtType::Auto,
            machine: "pc".into(),
            cpu_overcommit: 4,
            reserved_memory_mib: 512,
            reserved_disk_gib: 2,
            cpus: 0,
            memory_mib: 0,
            disk_gib: 0,
            shutdown_seconds: 60,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

impl Config {
    /// Reads and checks a file.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        // The library's message names the key, the line and the reason.
        let config: Self = toml::from_str(&text).with_context(|| format!("{name} is not a valid configuration"))?;
        config.check().with_context(|| format!("{name} is not a valid configuration"))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if !self.data_dir.is_absolute() {
            bail!("data_dir must be an absolute path, not {:?}", self.data_dir);
        }
        for (key, addresses) in [("advertise", &self.advertise), ("replicas", &self.replicas)] {
            for address in addresses {
                let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
                if port.and_then(|port| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
                    bail!("{key} must be host:port, not {address:?}");
                }
            }
        }
        for (key, value) in [
            ("api.token_seconds", self.api.token_seconds),
            ("api.max_image_gib", self.api.max_image_gib),
            ("agent.cpu_overcommit", self.agent.cpu_overcommit),
        ] {
            if value == 0 {
                bail!("{key} must be at least 1");
            }
        }
        if self.replica.log_max_bytes < LEAST_LOG {
            bail!("replica.log_max_bytes must be at least {LEAST_LOG}");
        }
        let url = &self.api.public_url;
        if !url.is_empty() && !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("api.public_url must start with http:// or https://, not {url:?}");
        }
        tracing_subscriber::EnvFilter::try_new(&self.log.level).context("log.level is not a valid filter")?;
        Ok(())
    }

    /// What the APIs are told.
    pub(super) fn settings(&self) -> Settings {
        let api = &self.api;
        Settings {
            token_lifetime: Duration::from_secs(api.token_seconds),
            frontier_wait: Duration::from_secs(api.frontier_seconds),
            max_image: api.max_image_gib.saturating_mul(1 << 30),
            default_quota: project_quota(
                api.quota_instances,
                api.quota_cores,
                api.quota_ram_mib,
                api.quota_server_groups,
            ),
            public_url: (!api.public_url.is_empty()).then(|| api.public_url.clone()),
        }
    }

    /// Where clients reach this site's API, as far as that is known.
    pub(super) fn endpoint(&self) -> String {
        if !self.api.public_url.is_empty() {
            return self.api.public_url.clone();
        }
        let listen = self.api.listen;
        // An address of every interface is none that a client could use: the first advertised host is.
        let advertised = self.advertise.first().and_then(|address| address.rsplit_once(':')).map(|(host, _)| host);
        match advertised.filter(|_| listen.ip().is_unspecified()) {
            Some(host) => format!("http://{host}:{}", listen.port()),
            None => format!("http://{listen}"),
        }
    }

    /// What the agent is told.
    pub(super) fn agent_config(&self, site: SiteName, cloud: CloudId) -> AgentConfig {
        let agent = &self.agent;
        let name = if agent.name.is_empty() { host_name() } else { agent.name.clone() };
        let given = |n: u64| (n > 0).then_some(n);
        AgentConfig {
            virt_type: agent.virt_type,
            machine: agent.machine.clone(),
            cpu_overcommit: agent.cpu_overcommit,
            reserved_memory_mib: agent.reserved_memory_mib,
            reserved_disk_gib: agent.reserved_disk_gib,
            cpus: given(agent.cpus),
            memory_mib: given(agent.memory_mib),
            disk_gib: given(agent.disk_gib),
            shutdown_timeout: Duration::from_secs(agent.shutdown_seconds),
            max_image_size: self.api.max_image_gib.saturating_mul(1 << 30),
            ..AgentConfig::new(&name, site, cloud, &agent.libvirt_uri, self.agent_dir())
        }
    }

    pub(super) fn agent_dir(&self) -> PathBuf {
        self.data_dir.join("agent")
    }

    /// Starts logging to standard error.
    pub(super) fn start_logging(&self) {
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| self.log.level.clone());
        let filter = tracing_subscriber::EnvFilter::new(filter);
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // Logging twice in one process is no reason to stop.
        let _ = match self.log.format {
            LogFormat::Text => builder.with_ansi(false).try_init(),
            LogFormat::Json => builder.json().try_init(),
        };
    }
}

/// The machine's host name, or `host` where it has none.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "host".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid_and_holds_the_defaults() {
        let template: Config = toml::from_str(TEMPLATE).expect("the template parses");
        assert_eq!(format!("{:?}", template.replica), format!("{:?}", Replica::default()));
        assert_eq!(format!("{:?}", template.api), format!("{:?}", Api::default()));
        assert_eq!(format!("{:?}", template.agent), format!("{:?}", Agent::default()));
        assert_eq!(format!("{:?}", template.log), format!("{:?}", Log::default()));
        assert_eq!(template.listen, default_listen());
    }

    #[test]
    fn what_is_wrong_is_named_with_file_key_and_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("luc.toml");
        let cases = [
            ("data_dir = \"/x\"\nlisten = 7", "listen"),
            ("data_dir = \"/x\"\nlisen = \"0.0.0.0:1\"", "lisen"),
            ("data_dir = \"x\"", "data_dir"),
            ("data_dir = \"/x\"\nadvertise = [\"paris\"]", "advertise"),
            ("data_dir = \"/x\"\n[agent]\nvirt_type = \"xen\"", "virt_type"),
            ("data_dir = \"/x\"\n[agent]\ncpu_overcommit = 0", "cpu_overcommit"),
            ("data_dir = \"/x\"\n[replica]\nlog_max_bytes = 1", "replica.log_max_bytes"),
            ("", "data_dir"),
        ];
        for (text, key) in cases {
            std::fs::write(&path, text).expect("written");
            let error = format!("{:#}", Config::load(&path).expect_err(text));
            assert!(error.contains("luc.toml") && error.contains(key), "{text:?}: {error}");
        }
    }
}
