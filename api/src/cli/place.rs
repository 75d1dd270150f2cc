//! Where a store lies: what tells the store that was made from a copy of it (`PROTOCOL.md`, M4).
//!
//! A copy differs in its inode or the time of its birth, a cloned disk in the machine, a restored virtual machine in the
//! generation that the hypervisor counts. What this system does not tell is left out. A disk that was rolled back in its
//! place differs in nothing: that shows only to others, who hold what it has lost.

use std::path::Path;

use anyhow::{Context, Result};
use luc_engine::replica::Replica;
use luc_engine::store::RedbStore;

use super::config::Config;
use super::found::STORE;

/// `luc replica moved`.
pub(super) fn moved(config: &Path) -> Result<()> {
    let path = Config::load(config)?.data_dir.join(STORE);
    let mut store = RedbStore::open(&path).context("is the replica stopped?")?;
    Replica::resettle(&mut store, &of(&path)?)?;
    println!("The store at {} writes from here from now on.", path.display());
    Ok(())
}

/// The place of a file, as bytes that are equal while it has not moved.
pub(super) fn of(path: &Path) -> Result<Vec<u8>> {
    let wanted = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
    let at = || format!("cannot tell where {} lies", path.display());
    let stat = rustix::fs::statx(rustix::fs::CWD, path, rustix::fs::AtFlags::empty(), wanted).with_context(at)?;
    let file_system = rustix::fs::statvfs(path).with_context(at)?.f_fsid;
    let text = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let place = (
        text("/etc/machine-id"),
        text("/sys/firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw"),
        file_system,
        stat.stx_ino,
        (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
    );
    Ok(format!("{place:?}").into_bytes())
}
