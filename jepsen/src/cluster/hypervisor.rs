//! A host's hypervisor: a libvirt daemon of its own that outlives the agent, and that the suite asks from outside what runs.
//!
//! The daemon is `packaging/libvirt/private-libvirtd.sh guard`: it ends, with all it runs, when the suite does, in whatever
//! way. With libvirt's simulated driver its domains live as long as the daemon and somebody is connected, so a **keeper** is
//! connected at all times; when that daemon is killed they are gone, as if the host had lost its power.

use std::collections::BTreeSet;
use std::io::{PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags};

use super::process::{Ended, end, eventually, output, spawn};

/// How long a daemon may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

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

/// Who asks one daemon again and again: by one connection, which is made anew when it broke. A process and a connection for
/// each question cost the machine more than all answers.
pub struct Asker {
    uri: String,
    shell: Option<Shell>,
}

/// A `virsh` that reads commands.
struct Shell {
    process: Child,
    input: ChildStdin,
    output: PipeReader,
}

/// What is asked. The marks are in quotes, since the shell repeats what it is told.
const QUESTION: &str = "list --uuid; echo \"active-\"end; list --inactive --uuid; echo \"inactive-\"end\n";
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

impl Asker {
    /// One who has asked nothing yet.
    #[must_use]
    pub fn new(uri: &str) -> Self {
        Self { uri: uri.into(), shell: None }
    }

    /// What the daemon says that there is.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn domains(&mut self) -> Result<Domains> {
        let shell = match self.shell.take() {
            Some(shell) => shell,
            None => Shell::start(&self.uri)?,
        };
        // It is not asked again after an error.
        let shell = self.shell.insert(shell);
        let said = shell.ask(QUESTION, "inactive-end").and_then(|said| parse(&said));
        if said.is_err() {
            self.shell = None;
        }
        said
    }
}

impl Shell {
    fn start(uri: &str) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        crate::client::enter(None)?;
        let (output, errors) = std::io::pipe()?;
        let mut virsh = Command::new("virsh");
        virsh.args(["-q", "-c", uri]).stdin(Stdio::piped()).stdout(errors.try_clone()?).stderr(errors).process_group(0);
        let mut process = virsh.spawn().context("cannot run virsh")?;
        let input = process.stdin.take().context("virsh has no input")?;
        Ok(Self { process, input, output })
    }

    /// What it says up to a mark.
    fn ask(&mut self, question: &str, mark: &str) -> Result<String> {
        self.input.write_all(question.as_bytes())?;
        let (until, mut said, mut buffer) = (Instant::now() + ANSWER, Vec::new(), [0; 4096]);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let limit = rustix::event::Timespec::try_from(left)?;
            let mut waits = [PollFd::new(&self.output, PollFlags::IN)];
            if rustix::event::poll(&mut waits, Some(&limit))? == 0 {
                bail!("virsh did not answer in {} s", ANSWER.as_secs());
            }
            let count = self.output.read(&mut buffer)?;
            said.extend_from_slice(buffer.get(..count).unwrap_or_default());
            let text = String::from_utf8_lossy(&said);
            // Errors come before the mark: each command is tried, whatever came of the others.
            if count == 0 || text.contains("error:") {
                bail!("virsh says {:?}", text.trim());
            }
            if text.contains(mark) {
                return Ok(text.into_owned());
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a daemon says that there is.
///
/// # Errors
/// If it does not answer.
pub fn domains(uri: &str) -> Result<Domains> {
    Asker::new(uri).domains()
}

/// The machine that each of libvirt's simulated hosts has at its start, nobody's: for a moment two hosts have it.
const OF_LIBVIRT: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

fn parse(said: &str) -> Result<Domains> {
    let Some((active, inactive)) = said.split_once("active-end") else { bail!("virsh says {said:?}") };
    let is_machine = |word: &&str| uuid::Uuid::try_parse(word).is_ok() && *word != OF_LIBVIRT;
    let ids = |text: &str| text.split_whitespace().filter(is_machine).map(str::to_owned).collect();
    Ok(Domains { active: ids(active), inactive: ids(inactive) })
}

fn virsh(uri: &str, words: &str) -> Result<String> {
    output(Command::new("timeout").args(["20", "virsh", "-q", "-c", uri, words]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ONE: &str = "3c9ece96-4b66-8ecb-bceb-5f4daf7542d0";
    const TWO: &str = "33963385-e879-8493-ab35-5bc0ec487ebf";

    #[test]
    fn what_a_shell_says_is_read_though_it_repeats_what_it_was_told() {
        let said = format!("virsh # {QUESTION}{ONE}\n{OF_LIBVIRT}\n\nactive-end\n{TWO}\ninactive-end\n");
        let (active, inactive) = ([ONE.to_owned()].into(), [TWO.to_owned()].into());
        assert_eq!(parse(&said).unwrap(), Domains { active, inactive });
        assert!(parse("virsh # ").is_err());
    }

    #[test]
    fn marks_are_not_in_what_is_asked() {
        assert!(!QUESTION.contains("active-end"));
    }

    #[test]
    fn a_daemon_that_is_not_there_is_an_error_and_no_empty_host() {
        // Without virsh that is the error.
        let mut asker = Asker::new("test+unix:///default?socket=/nowhere/libvirt-sock");
        assert!(asker.domains().is_err());
        assert!(asker.domains().is_err(), "nor the second time");
    }
}
