//! What a run leaves in its directory: the history as JSON lines and as EDN, what was seen beside, verdicts, report, and logs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::cluster::process::output;
use crate::history::History;
use crate::run::Run;
use crate::workload::Cloud;

/// The history's file.
pub const HISTORY: &str = "history.jsonl";
/// The file of all else that a run left.
pub const RUN: &str = "run.json";
/// The verdicts' file.
pub const VERDICTS: &str = "verdicts.json";
/// The directory of logs.
pub const LOGS: &str = "logs";

/// Writes all of a run.
///
/// # Errors
/// What the system says.
pub fn write(dir: &Path, run: &Run) -> Result<()> {
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(HISTORY, run.history.to_json()?)?;
    write(RUN, serde_json::to_string(run)?)?;
    write(VERDICTS, serde_json::to_string_pretty(&run.verdicts)?)?;
    crate::report::write(dir, run).with_context(|| format!("cannot write the report into {}", dir.display()))?;
    Ok(())
}

/// Reads a run that was written.
///
/// # Errors
/// If it is none.
pub fn read(dir: &Path) -> Result<Run> {
    let text = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: is it a run's directory?", path.display()))
    };
    let run: Run = serde_json::from_str(&text(RUN)?).context("run.json is no run")?;
    let history = History::from_json(&text(HISTORY)?).context("history.jsonl is no history")?;
    Ok(Run { history, ..run })
}

/// The logs that a run has left, relative to its directory.
#[must_use]
pub fn logs(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join(LOGS)).into_iter().flatten().flatten();
    let mut logs: Vec<PathBuf> = entries.map(|entry| Path::new(LOGS).join(entry.file_name())).collect();
    logs.sort();
    logs
}

/// What ran.
#[must_use]
pub fn versions(cluster: Option<&Cluster>, cloud: &Cloud) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([("jepsen".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    let first_line = |text: String| text.lines().next().unwrap_or_default().trim().to_owned();
    let mut told = |name: &str, command: &mut Command| {
        if let Ok(text) = output(command) {
            versions.insert(name.to_owned(), first_line(text));
        }
    };
    told("kernel", Command::new("uname").arg("-sr"));
    if let Some(cluster) = cluster {
        told("luc", Command::new(&cluster.spec().luc).arg("--version"));
        told("libvirt", Command::new("virsh").arg("--version"));
        told("source", Command::new("git").args(["describe", "--always", "--dirty"]));
    } else {
        versions.insert("endpoints".into(), cloud.endpoints.len().to_string());
    }
    versions
}
