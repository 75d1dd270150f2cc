//! A user's image is hostile input until it was checked here.
//!
//! A qcow2 file can name other files as its backing or data file, and whoever opens it opens those. So its header is
//! read first, by these few lines, and everything that could refer elsewhere, and every feature not known to be
//! harmless, is refused; only then `qemu-img` looks at it, told the format and under limits. Raw is raw: it is never
//! probed, so a raw image that begins like a qcow2 file is a disk with these bytes.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::tool::{self, Limits, ToolError};

/// What a sound image turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Size of the disk it describes, bytes.
    pub virtual_size: u64,
}

/// Why an image is not used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file cannot be read.
    #[error("the image cannot be read")]
    Unreadable(#[source] std::io::Error),
    /// Only `qcow2` and `raw` are.
    #[error("disk format {0:?} is not supported: use qcow2 or raw")]
    Format(String),
    /// It says qcow2 and is not.
    #[error("the image is not a qcow2 image")]
    NotQcow2,
    /// It lies over another file.
    #[error("the image names a backing file")]
    BackingFile,
    /// Its data is in another file.
    #[error("the image names an external data file")]
    ExternalData,
    /// It needs a secret.
    #[error("the image is encrypted")]
    Encrypted,
    /// It says so itself.
    #[error("the image is marked corrupt")]
    Corrupt,
    /// It needs what is not known to be harmless.
    #[error("the image uses a qcow2 version or feature that is not supported ({0})")]
    Feature(String),
    /// Larger than allowed.
    #[error("the image describes a disk of {virtual_size} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        virtual_size: u64,
        /// The limit.
        limit: u64,
    },
    /// `qemu-img` does not accept it, or a limit ended `qemu-img`; or it is not installed.
    #[error("the image could not be checked: {0}")]
    Tool(ToolError),
}

impl CheckError {
    /// Whether another attempt may end otherwise: the machine is to blame, not the image.
    #[must_use]
    pub fn may_pass_later(&self) -> bool {
        match self {
            Self::Unreadable(_) => true,
            Self::Tool(error) => error.is_missing(),
            _ => false,
        }
    }
}

/// Incompatible features that refer to nothing else: dirty refcounts, compression type, extended L2 entries.
const HARMLESS: u64 = 1 | 1 << 3 | 1 << 4;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Checks an image of a format, to describe a disk of at most `limit` bytes.
///
/// # Errors
/// [`CheckError`] says what is wrong with it.
pub async fn check(path: &Path, format: &str, limit: u64, limits: Limits) -> Result<Checked, CheckError> {
    let virtual_size = match format {
        "raw" => tokio::fs::metadata(path).await.map_err(CheckError::Unreadable)?.len(),
        "qcow2" => {
            let file = path.to_owned();
            let header = tokio::task::spawn_blocking(move || check_header(&file)).await;
            let declared = header.map_err(|e| CheckError::Unreadable(std::io::Error::other(e)))??;
            // Before the tool may allocate by it.
            within(declared, limit)?;
            check_by_tool(path, limits).await?
        }
        other => return Err(CheckError::Format(other.to_owned())),
    };
    within(virtual_size, limit)?;
    Ok(Checked { virtual_size })
}

fn within(virtual_size: u64, limit: u64) -> Result<(), CheckError> {
    if virtual_size > limit { Err(CheckError::TooLarge { virtual_size, limit }) } else { Ok(()) }
}

/// Reads the header's fixed fields (QEMU, `docs/interop/qcow2.txt`). Returns the size of the disk.
fn check_header(path: &PathBuf) -> Result<u64, CheckError> {
    let mut header = Vec::with_capacity(104);
    let file = std::fs::File::open(path).map_err(CheckError::Unreadable)?;
    file.take(104).read_to_end(&mut header).map_err(CheckError::Unreadable)?;
    let word = |at: usize| -> Result<u64, CheckError> {
        let bytes = header.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(|bytes| u64::from(u32::from_be_bytes(bytes))).ok_or(CheckError::NotQcow2)
    };
    let long = |at: usize| -> Result<u64, CheckError> { Ok(word(at)? << 32 | word(at + 4)?) };
    if word(0)? != 0x5146_49fb {
        return Err(CheckError::NotQcow2);
    }
    let version = word(4)?;
    if long(8)? != 0 || word(16)? != 0 {
        return Err(CheckError::BackingFile);
    }
    if word(32)? != 0 {
        return Err(CheckError::Encrypted);
    }
    let incompatible = match version {
        2 => 0,
        3 => long(72)?,
        _ => return Err(CheckError::Feature(format!("version {version}"))),
    };
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(CheckError::ExternalData);
    }
    if incompatible & CORRUPT != 0 {
        return Err(CheckError::Corrupt);
    }
    if incompatible & !HARMLESS != 0 {
        return Err(CheckError::Feature(format!("incompatible features {incompatible:#x}")));
    }
    long(24)
}

/// What `qemu-img info` says, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Option<SpecificData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    #[serde(default)]
    corrupt: bool,
    data_file: Option<String>,
    encrypt: Option<serde::de::IgnoredAny>,
}

async fn check_by_tool(path: &Path, limits: Limits) -> Result<u64, CheckError> {
    // Without the prefix, a path with a colon could be read as a protocol.
    let file = format!("file:{}", path.display());
    let output = tool::run("qemu-img", &["info", "--output=json", "-f", "qcow2", &file], limits).await;
    let output = output.map_err(CheckError::Tool)?;
    let info: Info = serde_json::from_slice(&output).map_err(|error| {
        CheckError::Tool(ToolError::Failed {
            tool: "qemu-img",
            stderr: format!("its answer is not understood: {error}"),
        })
    })?;
    let data = info.format_specific.and_then(|specific| specific.data);
    if info.format != "qcow2" {
        return Err(CheckError::NotQcow2);
    }
    if info.backing_filename.is_some() {
        return Err(CheckError::BackingFile);
    }
    if info.encrypted || data.as_ref().is_some_and(|data| data.encrypt.is_some()) {
        return Err(CheckError::Encrypted);
    }
    if data.as_ref().is_some_and(|data| data.data_file.is_some()) {
        return Err(CheckError::ExternalData);
    }
    if data.is_some_and(|data| data.corrupt) {
        return Err(CheckError::Corrupt);
    }
    Ok(info.virtual_size)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    const LIMIT: u64 = 1 << 30;

    fn make(dir: &Path, arguments: &[&str]) {
        let status = Command::new("qemu-img").arg("create").arg("-q").args(arguments).current_dir(dir).status();
        assert!(status.expect("qemu-img is needed").success());
    }

    async fn verdict(path: &Path, format: &str) -> Result<Checked, CheckError> {
        check(path, format, LIMIT, Limits::STANDARD).await
    }

    #[tokio::test]
    async fn sound_images_pass() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["-f", "qcow2", "a", "64M"]);
        assert_eq!(verdict(&dir.path().join("a"), "qcow2").await.unwrap(), Checked { virtual_size: 64 << 20 });
        make(dir.path(), &["-f", "qcow2", "-o", "compat=0.10", "old", "1M"]);
        assert_eq!(verdict(&dir.path().join("old"), "qcow2").await.unwrap(), Checked { virtual_size: 1 << 20 });
        std::fs::write(dir.path().join("raw"), [7; 4096]).unwrap();
        assert_eq!(verdict(&dir.path().join("raw"), "raw").await.unwrap(), Checked { virtual_size: 4096 });
    }

    #[tokio::test]
    async fn raw_is_never_probed() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["-f", "raw", "base", "1M"]);
        make(dir.path(), &["-f", "qcow2", "-b", "base", "-F", "raw", "evil", "1M"]);
        let path = dir.path().join("evil");
        let size = std::fs::metadata(&path).unwrap().len();
        assert_eq!(verdict(&path, "raw").await.unwrap(), Checked { virtual_size: size });
    }

    #[tokio::test]
    async fn what_refers_elsewhere_or_is_not_what_it_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        make(dir.path(), &["-f", "raw", "base", "1M"]);
        make(dir.path(), &["-f", "qcow2", "-b", "base", "-F", "raw", "backed", "1M"]);
        assert!(matches!(verdict(&at("backed"), "qcow2").await, Err(CheckError::BackingFile)));
        make(dir.path(), &["-f", "qcow2", "-o", "data_file=data", "outside", "1M"]);
        assert!(matches!(verdict(&at("outside"), "qcow2").await, Err(CheckError::ExternalData)));
        assert!(matches!(verdict(&at("base"), "qcow2").await, Err(CheckError::NotQcow2)));
        make(dir.path(), &["-f", "qcow2", "large", "2G"]);
        assert!(matches!(verdict(&at("large"), "qcow2").await, Err(CheckError::TooLarge { .. })));
        assert!(matches!(verdict(&at("base"), "vmdk").await, Err(CheckError::Format(_))));
        std::fs::write(at("short"), b"QFI\xfb").unwrap();
        assert!(matches!(verdict(&at("short"), "qcow2").await, Err(CheckError::NotQcow2)));
        // Tables that would fill the memory are the tool's to find.
        make(dir.path(), &["-f", "qcow2", "tables", "1M"]);
        let mut tables = std::fs::read(at("tables")).unwrap();
        tables[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
        std::fs::write(at("tables"), &tables).unwrap();
        assert!(matches!(verdict(&at("tables"), "qcow2").await, Err(CheckError::Tool(_))));
    }

    #[tokio::test]
    async fn unknown_features_are_refused_by_the_header() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["-f", "qcow2", "a", "1M"]);
        let path = dir.path().join("a");
        let mut bytes = std::fs::read(&path).unwrap();
        for (bit, corrupt) in [(1, true), (17, false)] {
            bytes[72..80].copy_from_slice(&(1_u64 << bit).to_be_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let verdict = verdict(&path, "qcow2").await;
            assert!(if corrupt {
                matches!(verdict, Err(CheckError::Corrupt))
            } else {
                matches!(verdict, Err(CheckError::Feature(_)))
            });
        }
    }
}
