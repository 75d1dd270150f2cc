//! Runs `qemu-img` and `xorriso` under limits of memory, processor time and time.
//!
//! `qemu-img` reads what users made: `prlimit` bounds its address space and processor time, a clock its life, so that
//! an image made to take for ever takes half a minute.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// What a tool may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of address space.
    pub memory: u64,
    /// Seconds of processor time.
    pub cpu_seconds: u64,
    /// Time in all.
    pub time: Duration,
}

impl Limits {
    /// Nova's for `qemu-img info`: a GiB and half a minute. Time in all is longer: the machine may be busy.
    pub const STANDARD: Self = Self { memory: 1 << 30, cpu_seconds: 30, time: Duration::from_secs(120) };
}

/// Why a tool gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be run: is it installed?
    #[error("{tool} cannot be run")]
    Missing {
        /// Which.
        tool: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long, and was ended.
    #[error("{tool} did not end within {seconds} seconds")]
    TooLong {
        /// Which.
        tool: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// It failed, or a limit ended it.
    #[error("{tool} failed: {stderr}")]
    Failed {
        /// Which.
        tool: &'static str,
        /// What it said, shortened.
        stderr: String,
    },
}

impl ToolError {
    /// Whether the tool, not its input, is to blame.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// Runs a tool and returns what it wrote.
///
/// # Errors
/// [`ToolError`]. What the tool had written to files by then may be there.
pub async fn run<S: AsRef<OsStr>>(tool: &'static str, arguments: &[S], limits: Limits) -> Result<Vec<u8>, ToolError> {
    let mut command = Command::new("prlimit");
    command.arg(format!("--as={}", limits.memory)).arg(format!("--cpu={}", limits.cpu_seconds)).arg("--").arg(tool);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limits.time, command.output()).await;
    let output = output.map_err(|_| ToolError::TooLong { tool, seconds: limits.time.as_secs() })?;
    let output = output.map_err(|source| ToolError::Missing { tool, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    // What prlimit says when it cannot find its tool.
    if output.status.code() == Some(127) || stderr.contains("failed to execute") {
        return Err(ToolError::Missing { tool, source: io::Error::other(stderr) });
    }
    let stderr = if stderr.is_empty() { output.status.to_string() } else { stderr };
    Err(ToolError::Failed { tool, stderr })
}
