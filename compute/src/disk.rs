//! Files of servers and of base images, under the agent's state directory:
//!
//! ```text
//! base/BLOB.FORMAT                    image data, read only, shared
//! servers/UUID/disk.qcow2             root disk, laid over a base image or empty
//! servers/UUID/ephemeral.qcow2        extra disk, empty
//! servers/UUID/swap.qcow2             swap disk, empty
//! servers/UUID/config.iso             config-drive
//! servers/UUID/console.log            serial console
//! ```
//!
//! Everything is made under another name, flushed and renamed: what has its name is whole. A base image is a hard link
//! to the image store's file (a copy across file systems), so that the image can be deleted while servers use it; it
//! goes with its last server. An overlay names its base and its format, so neither is ever probed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use luc_engine::record::{Server, ServerImage};
use uuid::Uuid;

use crate::plan::{Files, base_name};
use crate::tool::{self, Limits, ToolError};
use crate::xml::Disk;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Why a server has no disks. What is there is whole.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The flavor's disk is smaller than the image.
    #[error("the image describes a disk of {image} bytes, and the flavor's disk has {flavor}")]
    TooSmall {
        /// The image's size.
        image: u64,
        /// The flavor's.
        flavor: u64,
    },
    /// Neither an image nor a flavor with a disk.
    #[error("the server has neither an image nor a disk in its flavor")]
    NoSize,
    /// The image's data is not in the cache.
    #[error("the base image is not here")]
    NoBase,
    /// The disk failed or is full.
    #[error("the host's disk cannot be used: {0}")]
    Io(#[from] io::Error),
    /// `qemu-img` failed or is not installed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl DiskError {
    /// Whether it will be so however often it is tried.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::TooSmall { .. } | Self::NoSize)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Disks {
    base: PathBuf,
    servers: PathBuf,
}

impl Disks {
    /// Opens the directories, or makes them.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let disks = Self { base: state_dir.join("base"), servers: state_dir.join("servers") };
        // The hypervisor's user passes through, and lists nothing.
        for dir in [&disks.base, &disks.servers] {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
        }
        Ok(disks)
    }

    fn dir(&self, server: Uuid) -> PathBuf {
        self.servers.join(server.to_string())
    }

    /// The serial console's log.
    #[must_use]
    pub fn console(&self, server: Uuid) -> PathBuf {
        self.dir(server).join("console.log")
    }

    /// Where its config-drive is.
    #[must_use]
    pub fn drive(&self, server: Uuid) -> PathBuf {
        self.dir(server).join("config.iso")
    }

    /// Which files a server has.
    #[must_use]
    pub fn files(&self, server: Uuid) -> Files {
        let dir = self.dir(server);
        // The root disk is the last to get its name.
        Files { any: dir.exists(), disks: dir.join("disk.qcow2").exists(), drive: self.drive(server).exists() }
    }

    /// All servers that have files.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn servers(&self) -> io::Result<Vec<Uuid>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.servers)? {
            all.extend(Uuid::parse_str(&entry?.file_name().to_string_lossy()));
        }
        Ok(all)
    }

    /// Where an image's data is, or will be.
    #[must_use]
    pub fn base_of(&self, image: &ServerImage) -> PathBuf {
        self.base.join(base_name(image))
    }

    /// Takes an image's data, a whole and checked file, into the cache.
    ///
    /// # Errors
    /// The file cannot be linked or copied.
    pub fn take_base(&self, image: &ServerImage, data: &Path) -> io::Result<()> {
        let base = self.base_of(image);
        if base.exists() {
            return Ok(());
        }
        let new = self.base.join(format!("{}.new", base_name(image)));
        if new.exists() {
            fs::remove_file(&new)?;
        }
        if fs::hard_link(data, &new).is_err() {
            fs::copy(data, &new)?;
            fs::File::open(&new)?.sync_all()?;
        }
        fs::rename(&new, &base)?;
        fs::File::open(&self.base)?.sync_all()
    }

    /// Whether an image's data is in the cache.
    #[must_use]
    pub fn has_base(&self, image: &ServerImage) -> bool {
        self.base_of(image).exists()
    }

    /// Removes the base images of which `used` says that no server uses them.
    ///
    /// # Errors
    /// The directory cannot be read, or a file not removed.
    pub fn clean_bases(&self, used: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.base)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !used(&name) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Makes a server's disks. `image_size`: what its image, which is in the cache, describes.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn make(&self, id: Uuid, server: &Server, image_size: Option<u64>) -> Result<(), DiskError> {
        let dir = self.dir(id);
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir)?;
        let flavor = server.flavor.disk_gib.saturating_mul(GIB);
        let size = match (flavor, image_size) {
            (0, None) => return Err(DiskError::NoSize),
            (0, Some(image)) => image,
            (flavor, Some(image)) if image > flavor => return Err(DiskError::TooSmall { image, flavor }),
            (flavor, _) => flavor,
        };
        let ephemeral = server.flavor.ephemeral_gib.saturating_mul(GIB);
        let swap = server.flavor.swap_mib.saturating_mul(MIB);
        for (name, size) in [("ephemeral.qcow2", ephemeral), ("swap.qcow2", swap)] {
            if size > 0 {
                create(&dir.join(name), size, None).await?;
            }
        }
        let base = server.image.as_ref().map(|image| (self.base_of(image), image.disk_format.as_str()));
        if base.as_ref().is_some_and(|(path, _)| !path.exists()) {
            return Err(DiskError::NoBase);
        }
        create(&dir.join("disk.qcow2"), size, base.as_ref().map(|(path, format)| (path.as_path(), *format))).await?;
        fs::File::open(&dir)?.sync_all()?;
        Ok(())
    }

    /// A server's disks in the guest's order; the config-drive is the last.
    #[must_use]
    pub fn paths(&self, id: Uuid) -> Vec<PathBuf> {
        let dir = self.dir(id);
        let names = ["disk.qcow2", "ephemeral.qcow2", "swap.qcow2", "config.iso"];
        names.iter().map(|name| dir.join(name)).filter(|path| path.exists()).collect()
    }

    /// Removes all files of a server.
    ///
    /// # Errors
    /// Some may be left.
    pub fn remove(&self, id: Uuid) -> io::Result<()> {
        match fs::remove_dir_all(self.dir(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// How a disk at a path goes into a domain.
#[must_use]
pub fn describe(path: &Path) -> Disk<'_> {
    let drive = path.extension().is_some_and(|extension| extension == "iso");
    Disk { path, format: if drive { "raw" } else { "qcow2" }, read_only: drive }
}

async fn create(path: &Path, size: u64, base: Option<(&Path, &str)>) -> Result<(), DiskError> {
    let new = path.with_extension("new");
    if new.exists() {
        fs::remove_file(&new)?;
    }
    let mut arguments: Vec<OsString> = ["create", "-q", "-f", "qcow2"].map(Into::into).into();
    if let Some((base, format)) = base {
        // -u: the base is not opened, its size is known.
        arguments.extend([OsString::from("-u"), "-F".into(), format.into(), "-b".into(), base.into()]);
    }
    arguments.extend([new.clone().into(), size.next_multiple_of(512).to_string().into()]);
    tool::run("qemu-img", &arguments, Limits::STANDARD).await?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use luc_engine::record::{ImageData, ServerFlavor};

    use super::*;

    fn server(disk_gib: u64) -> Server {
        let data = ImageData { blob: "b10b".into(), ..ImageData::default() };
        let image = Some(ServerImage { disk_format: "raw".into(), data, ..ServerImage::default() });
        let flavor = ServerFlavor { disk_gib, swap_mib: 64, ..ServerFlavor::default() };
        Server { image, flavor, ..Server::default() }
    }

    async fn info(path: &Path) -> serde_json::Value {
        let arguments = [OsString::from("info"), "--output=json".into(), path.into()];
        serde_json::from_slice(&tool::run("qemu-img", &arguments, Limits::STANDARD).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn disks_lie_over_their_image_have_the_flavors_size_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let disks = Disks::open(dir.path()).unwrap();
        let data = dir.path().join("data");
        fs::write(&data, vec![1; 3 << 20]).unwrap();
        let (id, record) = (Uuid::from_u128(1), server(1));
        let image = record.image.clone().unwrap();
        assert!(matches!(disks.make(id, &record, Some(3 << 20)).await, Err(DiskError::NoBase)));
        disks.take_base(&image, &data).unwrap();
        // The image may be deleted while its data is used.
        fs::remove_file(&data).unwrap();
        disks.make(id, &record, Some(3 << 20)).await.unwrap();
        assert_eq!(disks.files(id), Files { any: true, disks: true, drive: false });
        let root = info(&disks.paths(id)[0]).await;
        assert_eq!(root["virtual-size"], GIB);
        assert_eq!(root["backing-filename-format"], "raw");
        assert_eq!(info(&disks.paths(id)[1]).await["virtual-size"], 64 * MIB);

        disks.clean_bases(|_| true).unwrap();
        assert!(disks.has_base(&image));
        disks.remove(id).unwrap();
        disks.remove(id).unwrap();
        assert_eq!(disks.files(id), Files::default());
        disks.clean_bases(|_| false).unwrap();
        assert!(!disks.has_base(&image));
    }

    #[tokio::test]
    async fn a_disk_is_never_smaller_than_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let disks = Disks::open(dir.path()).unwrap();
        let made = disks.make(Uuid::nil(), &server(1), Some(GIB + 1)).await;
        assert!(matches!(made, Err(DiskError::TooSmall { .. })));
        let made = disks.make(Uuid::nil(), &Server::default(), None).await;
        assert!(matches!(made, Err(DiskError::NoSize)));
    }
}
