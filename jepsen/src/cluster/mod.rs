//! A cloud of real `luc` processes on this machine: sites in network namespaces that our own switch joins, each node with
//! its own disk and its own hypervisor. What a nemesis does to it is in [`disk`], [`node`], [`net`] and [`member`].
//!
//! It needs root. Everything lies below `/run/luc-jepsen/NAME` but for the logs, and is taken away when the cloud is dropped; a
//! suite that was killed takes its processes with it, and what it leaves (files, mounts) goes when the next one of that name starts.

pub mod disk;
pub mod hypervisor;
pub mod member;
pub mod net;
pub mod node;
pub mod process;

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use self::disk::Disk;
use self::hypervisor::{Driver, Hypervisor};
use self::net::Net;
use self::node::{Common, Node, Place, Role};
use self::process::eventually;
use crate::client::Client;
use crate::workload::{Cloud, Endpoint};

/// Names of sites, in order.
pub const SITES: [&str; 8] = ["paris", "lyon", "rennes", "nantes", "nice", "lille", "brest", "grenoble"];
/// The first site's address; those of the others follow.
pub const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// How long hosts may take to be up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a cloud is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name: several can be up, under different names of 1 to 12 letters, digits and hyphens.
    pub name: String,
    /// Its sites.
    pub sites: Vec<String>,
    /// How many of them, from the first on, have a second replica.
    pub doubled: usize,
    /// How many of them, from the last on, have a further host with an agent alone.
    pub hosts: usize,
    /// What lines are like, in the switch's words: `delay=10ms jitter=1ms`.
    pub lines: String,
    /// What chance decides in the network follows from it.
    pub seed: u64,
    /// The binary under test.
    pub luc: PathBuf,
    /// Another one, to which a rolling restart changes and from which the next one changes back: a newer version. The same if
    /// none.
    pub other: Option<PathBuf>,
    /// This binary, which is the switch too.
    pub jepsen: PathBuf,
    /// `packaging/libvirt/private-libvirtd.sh`.
    pub libvirtd: PathBuf,
    /// What virtual machines are.
    pub driver: Driver,
    /// Each node's disk, MiB.
    pub disk_mib: u64,
    /// Whether clocks can be set otherwise (libfaketime).
    pub clocks: bool,
    /// Where logs go.
    pub logs: PathBuf,
    /// Further sections of every configuration.
    pub more: String,
}

/// The administrator's password.
pub const PASSWORD: &str = "jepsen";

/// A cloud that is up.
pub struct Cluster {
    /// Its nodes, the founder first, site by site.
    pub nodes: Vec<Node>,
    /// Its network.
    pub net: Net,
    /// Replicas whose retirement was asked for.
    pub retiring: Vec<String>,
    spec: Spec,
    root: Root,
}

impl Cluster {
    /// A cloud with all its sites and hosts up.
    ///
    /// # Errors
    /// What keeps it from starting; then nothing of it is left.
    pub fn start(spec: Spec) -> Result<Self> {
        let root = Root::take(&spec.name)?;
        std::fs::create_dir_all(&spec.logs)?;
        let net = Net::start(&spec.jepsen, &spec.name, &spec.sites, spec.seed, &spec.logs.join("switch.log"))?;
        let mut cluster = Self { nodes: Vec::new(), net, retiring: Vec::new(), spec, root };
        cluster.net.say(&cluster.lines())?;
        // Daemons take a second to start: all at once.
        for site in 0..cluster.spec.sites.len() {
            cluster.prepare(site, Role::Replica, true)?;
        }
        for site in 0..cluster.spec.doubled.min(cluster.spec.sites.len()) {
            cluster.prepare(site, Role::Replica, true)?;
        }
        let from = cluster.spec.sites.len().saturating_sub(cluster.spec.hosts);
        for site in from..cluster.spec.sites.len() {
            cluster.prepare(site, Role::Agent, true)?;
        }
        cluster.nodes.iter_mut().filter_map(|node| node.hypervisor.as_mut()).try_for_each(Hypervisor::ready)?;
        cluster.found()?;
        cluster.note_replica(0)?;
        (1..cluster.nodes.len()).try_for_each(|at| cluster.join(at))?;
        cluster.hosts_are_up()?;
        Ok(cluster)
    }

    /// How it was made.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What sets all lines as they are meant to be.
    #[must_use]
    pub fn lines(&self) -> String {
        format!("set * * {} loss=0% duplicate=0% reorder=0% rate=none", self.spec.lines)
    }

    /// Where its files are, but for those on nodes' disks.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.root.path
    }

    /// The cloud as clients know it: one endpoint a replica, in the order of nodes.
    #[must_use]
    pub fn cloud(&self) -> Cloud {
        let replicas = self.nodes.iter().filter(|node| node.role == Role::Replica);
        Cloud {
            endpoints: replicas.map(|node| self.endpoint(node)).collect(),
            password: PASSWORD.into(),
            operations: 0,
        }
    }

    fn endpoint(&self, node: &Node) -> Endpoint {
        Endpoint { site: node.site.clone(), base: node.base(), namespace: Some(self.net.path(&node.site)) }
    }

    /// The administrator at a node's APIs.
    #[must_use]
    pub fn ask(&self, node: &Node) -> Client {
        Client::admin(&self.endpoint(node), PASSWORD)
    }

    /// Makes ready a node at a site: its directory, its disk, its configuration, and its hypervisor if it is a host. It does
    /// not run yet.
    ///
    /// # Errors
    /// What the system says.
    pub fn prepare(&mut self, site: usize, role: Role, host: bool) -> Result<usize> {
        let name = self.spec.sites.get(site).context("no such site")?.clone();
        let taken = |number: u16| self.root.path.join(format!("{name}-{number}")).exists();
        let number = (1..u16::MAX).find(|number| !taken(*number)).context("too many nodes")?;
        let dir = self.root.path.join(format!("{name}-{number}"));
        std::fs::create_dir_all(&dir)?;
        let namespace = self.net.namespace(&name);
        let log = self.spec.logs.join(format!("{name}-{number}.libvirt.log"));
        // First: a daemon, which has a view of the file system of its own, sees no disk that comes after it.
        let disk = Disk::make(&dir.join("disk"), self.spec.disk_mib)?;
        let Spec { driver, libvirtd, .. } = &self.spec;
        let hypervisor = || Hypervisor::start(*driver, &namespace, libvirtd, &dir.join("libvirt"), &log);
        let hypervisor = host.then(hypervisor).transpose()?;
        let site_replicas = self.nodes.iter().filter(|node| node.site == name && node.role == Role::Replica);
        let (memory_mib, capacity) = match driver {
            Driver::Test => (262_144, "cpus = 64\ndisk_gib = 4096\nshutdown_seconds = 2"),
            Driver::Qemu => (8_192, "cpus = 8\ndisk_gib = 80\nshutdown_seconds = 5"),
        };
        let common = Common {
            luc: &self.spec.luc,
            root: &self.root.path,
            logs: &self.spec.logs,
            clocks: self.spec.clocks,
            capacity,
            memory_mib,
            more: &self.spec.more,
            replicas: site_replicas.map(Node::quic).collect(),
        };
        let address = Ipv4Addr::from(u32::from(FIRST) + u32::try_from(site)?);
        let place = Place { site: name, namespace, address, number };
        self.nodes.push(Node::prepare(role, place, disk, hypervisor, &common)?);
        Ok(self.nodes.len() - 1)
    }

    fn found(&mut self) -> Result<()> {
        let password = self.root.path.join("password");
        std::fs::write(&password, PASSWORD)?;
        let founder = self.nodes.first_mut().context("a cloud needs a site")?;
        let site = founder.site.clone();
        founder.luc(&["init", "--site", &site, "--password-file", &password.display().to_string()])?;
        founder.start()?;
        founder.ready()
    }

    fn hosts_are_up(&self) -> Result<()> {
        let first = self.nodes.first().context("a cloud needs a site")?;
        let asker = self.ask(first);
        eventually(PATIENCE, "all hosts to be up", || {
            // Its own host is known a moment later than it is up itself.
            let Ok(hosts) = asker.get("/luc/v1/hosts") else { return Ok(false) };
            let up = |host: &&serde_json::Value| host["state"] == "up";
            Ok(hosts["hosts"].as_array().is_some_and(|hosts| hosts.iter().filter(up).count() == self.nodes.len()))
        })
        .map(drop)
    }
}

/// A cloud's place in the file system, locked while it is up.
struct Root {
    path: PathBuf,
    _lock: File,
}

impl Root {
    fn take(name: &str) -> Result<Self> {
        let path = Path::new("/run/luc-jepsen").join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}: root is needed", path.display()))?;
        let lock = File::create(path.with_extension("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("a cloud called {name:?} is up already: give this one another --name");
        }
        let root = Self { path, _lock: lock };
        root.clean();
        std::fs::create_dir_all(&root.path)?;
        Ok(root)
    }

    fn clean(&self) {
        disk::sweep(&self.path);
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.clean();
        let _ = std::fs::remove_file(self.path.with_extension("lock"));
    }
}
