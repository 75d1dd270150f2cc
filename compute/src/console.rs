//! The serial console: a file that libvirt appends to, bounded on the disk and in every answer.
//!
//! A guest can write for ever. The file is opened for appending by others, so it can neither be renamed away nor cut at
//! its end without losing what comes next. Its old part is released instead: a hole is punched, the length stays, and
//! what is appended meanwhile is not touched. Where the file system cannot, the file is emptied.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FallocateFlags;

/// Kept of a console, bytes.
pub const KEPT: u64 = 1 << 20;
/// The most of a console that is read for an answer, bytes; Nova gives 100 KiB.
pub const ANSWER: u64 = 256 << 10;

/// Releases all but the last [`KEPT`] bytes of a console, once twice as much is held.
///
/// # Errors
/// The file cannot be opened or changed; it is then as before.
pub fn bound(path: &Path) -> io::Result<()> {
    let metadata = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    let held = metadata.blocks().saturating_mul(512);
    if held < 2 * KEPT || metadata.len() < 2 * KEPT {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, metadata.len() - KEPT).or_else(|_| file.set_len(0))
}

/// The last lines of a console, or all that fits an answer. A console nobody has written to is empty.
///
/// # Errors
/// The file cannot be read.
pub fn tail(path: &Path, lines: Option<u64>) -> io::Result<String> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        file => file?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ANSWER)))?;
    let mut bytes = Vec::new();
    file.take(ANSWER).read_to_end(&mut bytes)?;
    // A part that was released reads as zeros.
    let begin = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[begin..]).replace('\0', "");
    let Some(lines) = lines else { return Ok(text) };
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let ends: Vec<usize> = text.trim_end_matches('\n').match_indices('\n').map(|(at, _)| at + 1).collect();
    if lines == 0 {
        return Ok(String::new());
    }
    // The last line needs no line break before it to count.
    let from = ends.len().checked_sub(lines).and_then(|skipped| ends.get(skipped)).copied().unwrap_or(0);
    Ok(text[from..].to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    #[test]
    fn a_tail_is_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        assert_eq!(tail(&path, Some(3)).unwrap(), "");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&path, None).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(tail(&path, Some(2)).unwrap(), "two\nthree\n");
        assert_eq!(tail(&path, Some(3)).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(tail(&path, Some(9)).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(tail(&path, Some(0)).unwrap(), "");
        std::fs::write(&path, b"\xff\0bytes").unwrap();
        assert_eq!(tail(&path, Some(1)).unwrap(), "\u{fffd}bytes");
    }

    #[test]
    fn a_console_is_bounded_while_it_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for round in 0..6 {
            writer.write_all(&[b'x'; 1 << 20]).unwrap();
            writeln!(writer, "\nround {round}").unwrap();
            writer.sync_all().unwrap();
            bound(&path).unwrap();
            let held = path.metadata().unwrap().blocks() * 512;
            assert!(held <= 3 * KEPT, "{held} bytes held");
            assert_eq!(tail(&path, Some(1)).unwrap(), format!("round {round}\n"));
            assert!(tail(&path, None).unwrap().len() <= usize::try_from(ANSWER).unwrap());
        }
    }
}
