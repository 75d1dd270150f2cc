//! Processes of the suite: each in a group of its own, so that Ctrl-C is for the suite alone, and each ended with it.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::enter;

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its input is closed and it is asked to; after some seconds it is killed.
    Asked,
    /// At once.
    Killed,
}

/// How long a process that was asked to end may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Starts a process whose output goes to a file.
///
/// # Errors
/// What the system says, with the program's name.
pub fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    // This thread may have asked something from a site's network.
    enter(None)?;
    let file = OpenOptions::new().create(true).append(true).open(log);
    let file = file.with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file).process_group(0);
    command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// Runs a command, and gives what it printed.
///
/// # Errors
/// What it printed as an error.
pub fn output(command: &mut Command) -> Result<String> {
    use std::os::unix::process::CommandExt;
    enter(None)?;
    let words = || {
        let words = command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        format!("{} {words}", command.get_program().display())
    };
    let said = words();
    let output = command.process_group(0).stdin(Stdio::null()).output().with_context(|| said.clone())?;
    if !output.status.success() {
        bail!("{said}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Ends a process, and waits for its end.
pub fn end(mut child: Child, how: Ended) {
    drop(child.stdin.take());
    if how == Ended::Asked {
        let _ = signal(&child, Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal.
///
/// # Errors
/// What the system says.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
    Ok(kill_process(pid, signal)?)
}

/// Waits until something holds.
///
/// # Errors
/// If it does not in time, or if asking fails for good.
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if holds()? {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
