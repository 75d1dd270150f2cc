//! A node: one process of LUC (a replica with the agent of its machine, or a further host's agent alone), with its own disk
//! and its own hypervisor, at a site.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::disk::Disk;
use super::hypervisor::Hypervisor;
use super::process::{Ended, end, eventually, output, signal, spawn};
use crate::client::Client;
use crate::workload::Endpoint;

/// How long a process may take to answer on a busy machine. Much: it is no rule, and a run that breaks off is of no use.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `luc serve`.
    Replica,
    /// `luc agent`.
    Agent,
}

/// Where a node stands.
pub(super) struct Place {
    pub(super) site: String,
    pub(super) namespace: String,
    pub(super) address: Ipv4Addr,
    /// Its number at its site.
    pub(super) number: u16,
}

/// A node.
pub struct Node {
    /// Its name, which is its host's in the cloud: `paris-1`.
    pub name: String,
    /// Its site.
    pub site: String,
    /// What it is.
    pub role: Role,
    /// Its replica's id, once it has joined.
    pub replica: Option<String>,
    /// Whether it has left for good: it is not started again.
    pub left: bool,
    /// Its certificate was revoked: nobody takes anything from it, and it may not know.
    pub revoked: bool,
    /// The binary that it is started with.
    pub luc: PathBuf,
    /// Its hypervisor, if it is a host.
    pub hypervisor: Option<Hypervisor>,
    /// Its disk.
    pub disk: Disk,
    namespace: String,
    address: Ipv4Addr,
    number: u16,
    memory_mib: u64,
    config: PathBuf,
    clock: Option<PathBuf>,
    log: PathBuf,
    process: Option<Child>,
    paused: bool,
}

/// What all nodes of a cloud have in common.
pub(super) struct Common<'a> {
    pub(super) luc: &'a Path,
    /// Node's files that are not on its disk.
    pub(super) root: &'a Path,
    pub(super) logs: &'a Path,
    /// Whether its clock can be set otherwise.
    pub(super) clocks: bool,
    /// At the end of the `[agent]` section.
    pub(super) capacity: &'a str,
    /// MiB of memory of its machine.
    pub(super) memory_mib: u64,
    /// Further sections.
    pub(super) more: &'a str,
    /// Replicas of the site, for agents.
    pub(super) replicas: Vec<String>,
}

impl Node {
    /// A node that is configured, and does not run yet.
    pub(super) fn prepare(
        role: Role,
        place: Place,
        disk: Disk,
        hypervisor: Option<Hypervisor>,
        common: &Common<'_>,
    ) -> Result<Self> {
        let Place { site, namespace, address, number } = place;
        let name = format!("{site}-{number}");
        let dir = common.root.join(&name);
        let (config, log) = (dir.join("luc.toml"), common.logs.join(format!("{name}.log")));
        let clock = common.clocks.then(|| dir.join("clock"));
        let luc = common.luc.to_owned();
        let node = Self {
            name,
            site,
            role,
            replica: None,
            left: false,
            revoked: false,
            luc,
            hypervisor,
            disk,
            namespace,
            address,
            number,
            memory_mib: common.memory_mib,
            config,
            clock,
            log,
            process: None,
            paused: false,
        };
        node.configure(common)?;
        node.skew("+0")?;
        Ok(node)
    }

    fn configure(&self, common: &Common<'_>) -> Result<()> {
        let mut text = format!("data_dir = {:?}\n", self.data());
        match self.role {
            Role::Agent => text.push_str(&format!("replicas = {:?}\n", common.replicas)),
            Role::Replica => text.push_str(&format!(
                "listen = \"{quic}\"\nadvertise = [\"{quic}\"]\n[api]\nlisten = \"{}\"\ntoken_seconds = 86400\n",
                self.api(),
                quic = self.quic(),
            )),
        }
        text.push_str("[agent]\n");
        match &self.hypervisor {
            Some(hypervisor) => text.push_str(&format!(
                "name = {:?}\nlibvirt_uri = {:?}\nmemory_mib = {}\n{}\n",
                self.name,
                hypervisor.uri(),
                common.memory_mib,
                common.capacity
            )),
            None => text.push_str("enabled = false\n"),
        }
        text.push_str(common.more);
        std::fs::write(&self.config, text).with_context(|| format!("cannot write {}", self.config.display()))
    }

    /// Where its data are.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.disk.path().join("data")
    }

    /// Where its APIs are, `address:port`.
    #[must_use]
    pub fn api(&self) -> String {
        format!("{}:{}", self.address, 8774 + self.number)
    }

    /// Where other members reach it.
    #[must_use]
    pub fn quic(&self) -> String {
        format!("{}:{}", self.address, 4786 + self.number)
    }

    /// The base of its APIs.
    #[must_use]
    pub fn base(&self) -> String {
        format!("http://{}", self.api())
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Runs `luc` with its configuration, at its site, and gives what it printed.
    ///
    /// # Errors
    /// What it printed as an error.
    pub fn luc(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "timeout", "180"]).arg(&self.luc);
        // It runs on the same machine, whose clock is the one that was set: a token that it signs would have expired otherwise.
        if let Some(ahead) = self.ahead().filter(|ahead| *ahead != 0) {
            command.env("LD_PRELOAD", faketime()?).env("FAKETIME", format!("{ahead:+}"));
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        output(command.args(arguments).arg("--config").arg(&self.config))
    }

    /// By how many seconds its clock is ahead of this machine's, if it answers and its clock can be set.
    fn ahead(&self) -> Option<i64> {
        self.clock.as_ref()?;
        let answer = self.client().send("GET", "/healthz", &[], &[]).ok()?;
        let date = OffsetDateTime::parse(&answer.date?, &Rfc2822).ok()?;
        Some((date - OffsetDateTime::now_utc()).whole_seconds())
    }

    /// Asks it; patient for two seconds.
    fn client(&self) -> Client {
        let namespace = Some(Path::new("/run/netns").join(&self.namespace));
        let endpoint = Endpoint { site: self.site.clone(), base: self.base(), namespace };
        Client::new(&endpoint).patient(Duration::from_secs(2))
    }

    /// Starts it; [`Node::ready`] waits for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.is_running() || self.left {
            return Ok(());
        }
        let mut command = Command::new("ip");
        let tied = ["netns", "exec", &self.namespace, "setpriv", "--pdeathsig", "KILL"];
        command.args(tied).arg(&self.luc).arg(match self.role {
            Role::Replica => "serve",
            Role::Agent => "agent",
        });
        if let Some(clock) = &self.clock {
            // Read anew every second, so that clocks change while the process runs. Its timers stay as they are: no clock that
            // is set jumps there either.
            command.env("LD_PRELOAD", faketime()?).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.arg("--config").arg(&self.config).stdin(Stdio::null());
        self.process = Some(spawn(&mut command, &self.log)?);
        self.paused = false;
        Ok(())
    }

    /// Waits until it answers, be it that it is not well, and fails if it has ended.
    ///
    /// # Errors
    /// If it does not answer in time; its log says why.
    pub fn ready(&mut self) -> Result<()> {
        if self.role == Role::Agent || self.left {
            return Ok(());
        }
        let what = format!("{} to answer (see {})", self.name, self.log.display());
        let client = self.client();
        eventually(PATIENCE, &what, || {
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten()) {
                bail!("{} ended ({status}); see {}", self.name, self.log.display());
            }
            Ok(client.send("GET", "/healthz", &[], &[]).is_ok())
        })
        .map(drop)
    }

    /// Lets it have so much of its machine's memory, in permille of what it had at first, from its next start on.
    ///
    /// # Errors
    /// What the system says.
    pub fn resize(&self, permille: u64) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        let line = |line: &str| match line.strip_prefix("memory_mib = ") {
            Some(_) => format!("memory_mib = {}\n", self.memory_mib.saturating_mul(permille) / 1_000),
            None => format!("{line}\n"),
        };
        Ok(std::fs::write(&self.config, text.lines().map(line).collect::<String>())?)
    }

    /// Whether its process is there, and not paused.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !self.paused && self.is_running()
    }

    /// Whether a member's process runs there.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.role == Role::Replica && !self.left && self.replica.is_some() && self.is_up()
    }

    /// Whether its process is there.
    #[must_use]
    pub fn is_running(&self) -> bool {
        // One that has ended is a zombie until it is waited for.
        let stat = |process: &Child| std::fs::read_to_string(format!("/proc/{}/stat", process.id())).ok();
        let state = self.process.as_ref().and_then(stat);
        state.is_some_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().into_iter().for_each(|process| end(process, Ended::Killed));
        self.paused = false;
    }

    /// Asks it to stop, and waits for it.
    pub fn stop(&mut self) {
        if self.paused {
            let _ = self.resume();
        }
        self.process.take().into_iter().for_each(|process| end(process, Ended::Asked));
    }

    /// Stops its time: SIGSTOP.
    ///
    /// # Errors
    /// What the system says.
    pub fn pause(&mut self) -> Result<()> {
        if let Some(process) = &self.process {
            signal(process, Signal::STOP)?;
            self.paused = true;
        }
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// What the system says.
    pub fn resume(&mut self) -> Result<()> {
        if let Some(process) = self.process.as_ref().filter(|_| self.paused) {
            signal(process, Signal::CONT)?;
        }
        self.paused = false;
        Ok(())
    }

    /// Sets its clock off by so much, in libfaketime's words: `+30`, `-3600`, `+0 x1.1`.
    ///
    /// # Errors
    /// If its clock cannot be set, or what the system says.
    pub fn skew(&self, by: &str) -> Result<()> {
        match &self.clock {
            // Whole at every moment: the process may read it now.
            Some(path) => {
                let beside = path.with_extension("new");
                std::fs::write(&beside, format!("{by}\n"))?;
                Ok(std::fs::rename(beside, path)?)
            }
            None if by == "+0" => Ok(()),
            None => bail!("the clocks of this cloud cannot be set"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Before its hypervisor and its disk go.
        self.kill();
    }
}

/// libfaketime for programs with threads.
fn faketime() -> Result<PathBuf> {
    let places = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let places = places.chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")]);
    let mut found = places.map(|place| place.join("faketime/libfaketimeMT.so.1")).filter(|path| path.exists());
    found
        .next()
        .context("libfaketime is missing: packaging/install-deps.sh suite installs it, or leave out the fault `clock`")
}
