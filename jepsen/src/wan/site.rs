//! Network namespaces, one a site, and what is left of a switch that was killed.
//!
//! Whoever runs a network holds a lock on its directory's file. What a dead one has left (namespaces and what runs in
//! them) is known by its names, and taken away when the next one of that name starts, or by `wan clean`.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::device::Tap;
use super::switch::Switch;

/// How long programs in a namespace are waited for after they were told to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A name that namespaces and interfaces cannot have.
    #[error("{0:?} is no name: 1 to 12 of a-z, 0-9 and -")]
    Name(String),
    /// Another switch runs it.
    #[error("the network {0:?} is up already")]
    Running(String),
    /// A command failed.
    #[error("{0}: {1}")]
    Command(String, String),
    /// Files or devices.
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

/// A network's place in the file system, locked: nobody else runs it.
pub struct Network {
    name: String,
    _lock: File,
}

impl Network {
    /// Takes a name, and takes away what a dead switch of that name has left.
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn take(name: &str) -> Result<Self, SiteError> {
        check(name)?;
        let dir = directory(name);
        let failed = |error| SiteError::Io(dir.display().to_string(), error);
        fs::create_dir_all(&dir).map_err(failed)?;
        let lock = File::create(dir.join("lock")).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| SiteError::Running(name.to_owned()))?;
        let network = Self { name: name.to_owned(), _lock: lock };
        network.clean();
        fs::create_dir_all(&dir).map_err(failed)?;
        Ok(network)
    }

    /// Makes a site's namespace with the device in it, `wan0`, whose other end is returned. `all` are the addresses of all
    /// sites, whose hardware addresses it is told: behind a cut there is silence, as in a wide-area network, not an error
    /// for want of an answer to ARP.
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn site(&self, index: usize, site: &str, address: Ipv4Addr, all: &[Ipv4Addr]) -> Result<Tap, SiteError> {
        check(site)?;
        let namespace = namespace(&self.name, site);
        // Made here and moved: the descriptor stays with this process. The name is in use for a moment only.
        let device = format!("wan{}-{index}", std::process::id());
        let tap = Tap::new(&device).map_err(|error| SiteError::Io(format!("the device {device}"), error))?;
        let (hardware, with_prefix) = (hardware(index), format!("{address}/24"));
        ip(&["netns", "add", &namespace])?;
        ip(&["link", "set", &device, "netns", &namespace, "name", "wan0"])?;
        ip(&["-n", &namespace, "link", "set", "wan0", "address", &hardware, "up"])?;
        ip(&["-n", &namespace, "address", "add", &with_prefix, "dev", "wan0"])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        for (other, to) in all.iter().enumerate().filter(|(other, _)| *other != index) {
            let (to, hardware) = (to.to_string(), self::hardware(other));
            ip(&["-n", &namespace, "neigh", "add", &to, "lladdr", &hardware, "dev", "wan0", "nud", "permanent"])?;
        }
        Ok(tap)
    }

    /// Takes all namespaces of this name away, and ends what runs in them: it has lost its network.
    fn clean(&self) {
        let prefix = format!("wan-{}.", self.name);
        let listed = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = listed.filter_map(|entry| entry.file_name().into_string().ok());
        for namespace in names.filter(|name| name.starts_with(&prefix)) {
            end_all_in(&namespace);
            let _ = ip(&["netns", "del", &namespace]);
        }
        let _ = fs::remove_file(socket(&self.name));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.clean();
        let _ = fs::remove_dir_all(directory(&self.name));
    }
}

/// Where a network's control socket is.
#[must_use]
pub fn socket(name: &str) -> PathBuf {
    directory(name).join("control")
}

/// The name of a site's namespace.
#[must_use]
pub fn namespace(network: &str, site: &str) -> String {
    format!("wan-{network}.{site}")
}

fn directory(name: &str) -> PathBuf {
    Path::new("/run/luc-wan").join(name)
}

fn hardware(site: usize) -> String {
    let bytes = Switch::address(site).map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}

fn check(name: &str) -> Result<(), SiteError> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=12).contains(&name.len()) && name.bytes().all(good);
    if good { Ok(()) } else { Err(SiteError::Name(name.to_owned())) }
}

fn end_all_in(namespace: &str) {
    let until = Instant::now() + PATIENCE;
    for signal in ["TERM", "KILL"] {
        loop {
            let pids = pids(namespace);
            if pids.is_empty() {
                return;
            }
            let _ = Command::new("kill").arg(format!("-{signal}")).args(&pids).stderr(Stdio::null()).status();
            std::thread::sleep(Duration::from_millis(20));
            if signal == "TERM" && Instant::now() >= until {
                break;
            }
            if signal == "KILL" && Instant::now() >= until + PATIENCE {
                return;
            }
        }
    }
}

fn pids(namespace: &str) -> Vec<String> {
    let listed = Command::new("ip").args(["netns", "pids", namespace]).stderr(Stdio::null()).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    listed.split_whitespace().map(str::to_owned).collect()
}

fn ip(arguments: &[&str]) -> Result<(), SiteError> {
    let words = format!("ip {}", arguments.join(" "));
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| SiteError::Io(words.clone(), error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(SiteError::Command(words, String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
