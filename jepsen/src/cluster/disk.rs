//! A node's disk: a file system of its own in memory, so that it can be full, wiped and copied without harm to others.
//!
//! It is filled by making it no larger than what is on it: writes then fail as on any full disk, and no memory is used up.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::output;

/// How often a disk is made full again that has grown meanwhile.
const TRIES: u32 = 20;

/// A mounted file system.
pub struct Disk {
    path: PathBuf,
    mib: u64,
}

impl Disk {
    /// An empty one of so many MiB.
    ///
    /// # Errors
    /// What mounting says.
    pub fn make(path: &Path, mib: u64) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let size = format!("size={mib}m,mode=0700");
        output(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "luc-jepsen"]).arg(path))?;
        Ok(Self { path: path.into(), mib })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves so many KiB free.
    ///
    /// # Errors
    /// What the system says.
    pub fn fill(&self, free_kib: u64) -> Result<()> {
        let mut tries = 0;
        loop {
            let stat = rustix::fs::statvfs(&self.path)?;
            let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize) / 1024;
            // Refused if more was written since we looked.
            match self.resize(&format!("{}k", used.saturating_add(free_kib))) {
                Err(_) if tries < TRIES => tries += 1,
                done => return done,
            }
        }
    }

    /// Gives it back all its room.
    ///
    /// # Errors
    /// What the system says.
    pub fn free(&self) -> Result<()> {
        self.resize(&format!("{}m", self.mib))
    }

    fn resize(&self, size: &str) -> Result<()> {
        output(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.path)).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// Takes away what a suite that was killed has left mounted below a directory.
pub fn sweep(root: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    paths.map(Path::new).filter(|path| path.starts_with(root)).for_each(unmount);
}

fn unmount(path: &Path) {
    // Lazily: a process that is just being killed may still have a file open.
    let _ = output(Command::new("umount").arg("-l").arg(path));
}

/// Copies a directory, everything in it and its times.
///
/// # Errors
/// What `cp` says.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    output(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}
