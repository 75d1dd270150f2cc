//! A host's hypervisor: a libvirt daemon of its own that outlives the agent, and that the suite asks from outside what runs.
//!
//! The daemon is `packaging/libvirt/private-libvirtd.sh guard`: it ends, with all it runs, when the suite does, in whatever
//! way. With libvirt's simulated driver its domains live as long as the daemon and somebody is connected, so a **keeper** is
//! connected at all times; when that daemon is killed they are gone, as if the host had lost its power.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::{Ended, end, eventually, output, spawn};

/// How long a daemon may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What virtual machines are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// libvirt's own simulated ones.
    Test,
    /// QEMU's.
    Qemu,
}

/// A host's hypervisor.
pub struct Hypervisor {
    driver: Driver,
    namespace: String,
    script: PathBuf,
    dir: PathBuf,
    log: PathBuf,
    daemon: Option<Child>,
    keeper: Option<Child>,
}

/// Servers' domains, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    /// Those that run or are paused.
    pub active: BTreeSet<String>,
    /// Those that are defined, and do not run.
    pub inactive: BTreeSet<String>,
}

impl Hypervisor {
    /// Starts a daemon on a directory; [`Hypervisor::ready`] waits for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(driver: Driver, namespace: &str, script: &Path, dir: &Path, log: &Path) -> Result<Self> {
        let (namespace, script) = (namespace.to_owned(), script.to_owned());
        let (dir, log) = (dir.to_owned(), log.to_owned());
        let mut hypervisor = Self { driver, namespace, script, dir, log, daemon: None, keeper: None };
        hypervisor.run()?;
        Ok(hypervisor)
    }

    fn run(&mut self) -> Result<()> {
        let mut guard = Command::new("ip");
        guard.args(["netns", "exec", &self.namespace, "bash"]).arg(&self.script).arg(&self.dir).arg("guard");
        if let Some(root) = self.dir.parent().and_then(Path::parent) {
            guard.env("LUC_LIBVIRT_CACHE", root.join("libvirt-cache"));
        }
        self.daemon = Some(spawn(guard.stdin(Stdio::piped()), &self.log)?);
        Ok(())
    }

    /// Waits until the daemon answers, and connects the keeper.
    ///
    /// # Errors
    /// If it does not.
    pub fn ready(&mut self) -> Result<()> {
        eventually(PATIENCE, "libvirtd to answer", || Ok(self.virsh("version").is_ok()))?;
        if self.driver == Driver::Test {
            let mut keeper = Command::new("virsh");
            keeper.args(["-q", "-c", &self.uri()]).stdin(Stdio::piped());
            self.keeper = Some(spawn(&mut keeper, &self.log)?);
            // The keeper is a shell without commands, which connects first of all. That it has is seen from what it keeps.
            eventually(PATIENCE, "the keeper to be connected", || {
                let _ = self.virsh("undefine test; destroy test; undefine test");
                Ok(!self.virsh("list --all --name")?.lines().any(|name| name.trim() == "test"))
            })?;
        }
        Ok(())
    }

    /// What agents and the suite connect to.
    #[must_use]
    pub fn uri(&self) -> String {
        let driver = match self.driver {
            Driver::Test => "test+unix:///default",
            Driver::Qemu => "qemu+unix:///system",
        };
        format!("{driver}?socket={}", self.dir.join("run/libvirt/libvirt-sock").display())
    }

    /// Starts the daemon anew, if it was killed.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn revive(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            return Ok(());
        }
        self.run()?;
        self.ready()
    }

    /// `kill -9`. Simulated machines are gone then; QEMU's run on.
    ///
    /// # Errors
    /// If its process cannot be found.
    pub fn kill(&mut self) -> Result<()> {
        let pid = std::fs::read_to_string(self.dir.join("run/libvirtd.pid")).context("libvirtd has no process id")?;
        output(Command::new("kill").args(["-KILL", pid.trim()]))?;
        self.leave();
        // Its guard leaves its machines alone, and goes.
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.keeper.take().into_iter().for_each(|keeper| end(keeper, Ended::Killed));
    }

    fn virsh(&self, words: &str) -> Result<String> {
        virsh(&self.uri(), words)
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.leave();
        // The guard ends the daemon and its machines when its input closes.
        self.daemon.take().into_iter().for_each(|daemon| end(daemon, Ended::Asked));
        let _ = output(Command::new("bash").arg(&self.script).arg(&self.dir).arg("stop"));
    }
}

/// What a daemon says that there is.
///
/// # Errors
/// If it does not answer.
pub fn domains(uri: &str) -> Result<Domains> {
    let said = virsh(uri, "list --uuid; echo ===; list --inactive --uuid")?;
    let Some((active, inactive)) = said.split_once("===") else { bail!("virsh says {said:?}") };
    let ids = |text: &str| text.split_whitespace().filter(|id| id.len() == 36).map(str::to_owned).collect();
    Ok(Domains { active: ids(active), inactive: ids(inactive) })
}

fn virsh(uri: &str, words: &str) -> Result<String> {
    output(Command::new("timeout").args(["20", "virsh", "-q", "-c", uri, words]))
}
