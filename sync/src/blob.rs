//! Image data: content-addressed blobs on disk.
//!
//! A blob is named by the BLAKE3 hash of its **manifest**, the list of the BLAKE3 hashes of its 1 MiB chunks. So data
//! from anybody is verified chunk by chunk while it streams, and a transfer that was cut goes on at the chunk where it
//! stopped. A blob is either whole or absent; what is under way lies in a partial file of its own. At no time are more
//! than a few chunks in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use luc_engine::entry::Hash;
use luc_engine::site_mutant::{SiteMutant, on};
use md5::Md5;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// How the names of files begin that nobody needs once the process has ended: they are removed when the directory is opened.
pub(crate) const UNFINISHED: &str = "upload-";
/// Bytes in a chunk; the last of a blob may be shorter.
pub const CHUNK: u64 = 1 << 20;
/// How long a source of data may give nothing before another one is tried.
pub const STALL: Duration = Duration::from_secs(10);
/// Largest manifest taken from a peer: 4 TiB of data.
const MAX_CHUNKS: usize = 4 << 20;

/// What a blob is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Bytes in all.
    pub size: u64,
    /// BLAKE3 of each chunk, in order.
    pub chunks: Vec<Hash>,
}

impl Manifest {
    /// The blob's name: hex of the BLAKE3 hash of the manifest.
    #[must_use]
    pub fn root(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"luc/blob/1\0");
        hasher.update(&self.size.to_be_bytes());
        self.chunks.iter().for_each(|chunk| {
            hasher.update(&chunk.0);
        });
        hasher.finalize().to_hex().to_string()
    }

    fn is_sound(&self) -> bool {
        self.chunks.len() <= MAX_CHUNKS
            && u64::try_from(self.chunks.len()).is_ok_and(|count| count == self.size.div_ceil(CHUNK))
    }
}

/// What an upload turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The blob's name.
    pub blob: String,
    /// Bytes.
    pub size: u64,
    /// MD5, hex.
    pub md5: String,
    /// SHA-512, hex.
    pub sha512: String,
}

/// Why a blob could not be stored, opened or fetched. What was there before still is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlobError {
    /// The disk failed or is full.
    #[error("the image store cannot {doing}: {reason}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        reason: String,
    },
    /// Larger than allowed.
    #[error("the data is larger than the limit of {0} bytes")]
    TooLarge(u64),
    /// The sender stopped in the middle.
    #[error("the upload broke off: {0}")]
    Broken(String),
    /// Not a blob's name.
    #[error("{0:?} is not the name of a blob")]
    Name(String),
    /// Not here.
    #[error("blob {0} is not held here")]
    Absent(String),
    /// A peer sent other data than the name stands for.
    #[error("the data of blob {0} is not what its name says")]
    Corrupt(String),
    /// Nobody who has it could be reached. What was fetched so far is kept.
    #[error("the data is not held here, and nobody who has it can be reached now: {0}")]
    OutOfReach(String),
}

fn disk(doing: &'static str) -> impl Fn(std::io::Error) -> BlobError {
    move |error| BlobError::Disk { doing, reason: error.to_string() }
}

/// Fetches under way: blob, and (bytes done, bytes in all).
pub type Progress = Arc<Mutex<BTreeMap<String, (u64, u64)>>>;

/// The blobs of one replica or agent.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: Arc<PathBuf>,
    progress: Progress,
    fetching: Fetching,
}

/// One lock for each blob that somebody fetches or waits for, with when a fetch has failed last, and how.
type Fetching = Arc<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Failure>>>>>;
type Failure = Option<(Instant, BlobError)>;

/// The right to fetch a blob. See [`Blobs::turn`].
#[derive(Debug)]
pub struct Turn {
    fetching: Fetching,
    blob: String,
    guard: Option<tokio::sync::OwnedMutexGuard<Failure>>,
}

impl Drop for Turn {
    /// The last one takes the lock away with it.
    fn drop(&mut self) {
        let mut fetching = self.fetching.lock();
        self.guard = None;
        if fetching.get(&self.blob).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            fetching.remove(&self.blob);
        }
    }
}

impl Blobs {
    /// Opens the directory, or makes it. Uploads that a crash broke off are removed.
    ///
    /// # Errors
    /// [`BlobError::Disk`].
    pub fn open(dir: &Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(dir).map_err(disk("open"))?;
        for file in std::fs::read_dir(dir).map_err(disk("open"))?.flatten() {
            if file.file_name().to_string_lossy().starts_with(UNFINISHED) {
                std::fs::remove_file(file.path()).map_err(disk("clean up"))?;
            }
        }
        Ok(Self { dir: Arc::new(dir.to_owned()), progress: Arc::default(), fetching: Arc::default() })
    }

    /// The directory: the file system that has room.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Fetches under way.
    #[must_use]
    pub fn transfers(&self) -> Vec<(String, u64, u64)> {
        self.progress.lock().iter().map(|(blob, (done, size))| (blob.clone(), *done, *size)).collect()
    }

    /// The file of a blob, whole and verified, if it is held.
    #[must_use]
    pub fn path(&self, blob: &str) -> Option<PathBuf> {
        let path = self.file(blob, "").ok()?;
        path.exists().then_some(path)
    }

    /// Stores what `reader` gives, at most `limit` bytes. `unique` names the upload's temporary file. Nobody removes the blob
    /// before the turn is dropped: until then it can be written down what it is for.
    ///
    /// # Errors
    /// [`BlobError`]; nothing is left behind.
    pub async fn put(
        &self,
        mut reader: impl AsyncRead + Unpin,
        limit: u64,
        unique: u64,
    ) -> Result<(Stored, Turn), BlobError> {
        let temporary = self.dir.join(format!("{UNFINISHED}{unique:016x}"));
        let stored = self.write(&temporary, &mut reader, limit).await;
        let (manifest, stored) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                let _ = tokio::fs::remove_file(&temporary).await;
                return Err(error);
            }
        };
        let turn = self.turn(&stored.blob).await;
        self.finish(&temporary, &manifest).await?;
        Ok((stored, turn))
    }

    async fn write(
        &self,
        temporary: &Path,
        reader: &mut (impl AsyncRead + Unpin),
        limit: u64,
    ) -> Result<(Manifest, Stored), BlobError> {
        let mut file = File::create(temporary).await.map_err(disk("store an upload"))?;
        let (mut md5, mut sha512) = (Md5::new(), Sha512::new());
        let mut manifest = Manifest { size: 0, chunks: Vec::new() };
        loop {
            let mut chunk = Vec::new();
            let read = (&mut *reader).take(CHUNK).read_to_end(&mut chunk).await;
            let read = read.map_err(|error| BlobError::Broken(error.to_string()))?;
            if read == 0 {
                break;
            }
            manifest.size += u64::try_from(read).unwrap_or(u64::MAX);
            if manifest.size > limit {
                return Err(BlobError::TooLarge(limit));
            }
            md5.update(&chunk);
            sha512.update(&chunk);
            manifest.chunks.push(Hash::of(&chunk));
            file.write_all(&chunk).await.map_err(disk("store an upload"))?;
        }
        file.flush().await.map_err(disk("store an upload"))?;
        file.sync_all().await.map_err(disk("store an upload"))?;
        let (md5, sha512) = (hex::encode(md5.finalize()), hex::encode(sha512.finalize()));
        let stored = Stored { blob: manifest.root(), size: manifest.size, md5, sha512 };
        Ok((manifest, stored))
    }

    /// The manifest first, then the data under its name: a blob that is there has its manifest.
    async fn finish(&self, data: &Path, manifest: &Manifest) -> Result<(), BlobError> {
        let root = manifest.root();
        let bytes = rmp_serde::to_vec(manifest).unwrap_or_default();
        let beside = self.file(&root, ".manifest.new")?;
        let mut file = File::create(&beside).await.map_err(disk("store a manifest"))?;
        file.write_all(&bytes).await.map_err(disk("store a manifest"))?;
        file.sync_all().await.map_err(disk("store a manifest"))?;
        tokio::fs::rename(&beside, self.file(&root, ".manifest")?).await.map_err(disk("store a manifest"))?;
        tokio::fs::rename(data, self.file(&root, "")?).await.map_err(disk("store a blob"))?;
        // An image that was answered for survives a power cut: the names too must be on the disk.
        let dir = File::open(&*self.dir).await.map_err(disk("store a blob"))?;
        dir.sync_all().await.map_err(disk("store a blob"))
    }

    /// The manifest of a blob that is held.
    ///
    /// # Errors
    /// [`BlobError::Absent`] or [`BlobError::Disk`].
    pub async fn manifest(&self, blob: &str) -> Result<Manifest, BlobError> {
        if self.path(blob).is_none() {
            return Err(BlobError::Absent(blob.into()));
        }
        let bytes = tokio::fs::read(self.file(blob, ".manifest")?).await.map_err(disk("read a manifest"))?;
        rmp_serde::from_slice(&bytes).map_err(|_| BlobError::Corrupt(blob.into()))
    }

    /// A blob that is held, open at chunk `from`.
    ///
    /// # Errors
    /// [`BlobError::Absent`] or [`BlobError::Disk`].
    pub async fn read(&self, blob: &str, from: u64) -> Result<File, BlobError> {
        let path = self.path(blob).ok_or_else(|| BlobError::Absent(blob.into()))?;
        let mut file = File::open(path).await.map_err(disk("read a blob"))?;
        file.seek(std::io::SeekFrom::Start(from.saturating_mul(CHUNK))).await.map_err(disk("read a blob"))?;
        Ok(file)
    }

    /// Removes a blob that nothing `needs`, whole or in part, unless somebody fetches it or has just stored it. No error if it is
    /// not held. Says whether it is gone.
    ///
    /// # Errors
    /// [`BlobError::Disk`].
    pub async fn remove_unless(&self, blob: &str, needs: impl FnOnce(&str) -> bool) -> Result<bool, BlobError> {
        match self.try_turn(blob) {
            // What it is for is written down before a turn ends: asked under ours, nothing is missed.
            Some(_turn) if !needs(blob) => self.remove(blob).await.map(|()| true),
            _ => Ok(false),
        }
    }

    /// Removes the blobs that nothing `needs`, and that were neither stored nor fetched for so long: whoever has just done that
    /// may be about to use them. Says how many.
    ///
    /// # Errors
    /// [`BlobError::Disk`]; others may have been removed.
    pub async fn remove_idle(&self, idle: Duration, needs: impl Fn(&str) -> bool) -> Result<usize, BlobError> {
        let mut changed: BTreeMap<String, bool> = BTreeMap::new();
        let mut files = tokio::fs::read_dir(&*self.dir).await.map_err(disk("list blobs"))?;
        while let Some(file) = files.next_entry().await.map_err(disk("list blobs"))? {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(blob) = name.get(..64).filter(|blob| self.file(blob, "").is_ok()) else { continue };
            // One that cannot be told, or lies ahead of a clock that was set back, is no reason to remove anything.
            let modified = file.metadata().await.ok().and_then(|known| known.modified().ok());
            let is_idle = modified.and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= idle);
            *changed.entry(blob.to_owned()).or_default() |= !is_idle;
        }
        let mut removed = 0;
        for (blob, _) in changed.into_iter().filter(|(_, changed)| !changed) {
            removed += usize::from(self.remove_unless(&blob, &needs).await?);
        }
        Ok(removed)
    }

    async fn remove(&self, blob: &str) -> Result<(), BlobError> {
        for suffix in ["", ".manifest", ".manifest.new", ".partial"] {
            match tokio::fs::remove_file(self.file(blob, suffix)?).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(disk("remove a blob")(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A blob that is held, or comes by `fetch`. Of many who want one at a time one fetches it, and what comes of that comes of it
    /// for all who waited: were each to try for itself, the last would wait for as long as all of them take.
    ///
    /// # Errors
    /// What the fetch says, this one or the one that was waited for.
    pub async fn fetched(
        &self,
        blob: &str,
        fetch: impl Future<Output = Result<PathBuf, BlobError>>,
    ) -> Result<PathBuf, BlobError> {
        let began = Instant::now();
        if let Some(path) = self.path(blob) {
            return Ok(path);
        }
        let mut turn = self.turn(blob).await;
        if let Some(path) = self.path(blob) {
            return Ok(path);
        }
        if let Some((_, error)) = turn.guard.as_deref().and_then(Option::as_ref).filter(|(at, _)| *at >= began) {
            return Err(error.clone());
        }
        let fetched = fetch.await;
        if let Some(failure) = turn.guard.as_deref_mut() {
            *failure = fetched.as_ref().err().map(|error| (Instant::now(), error.clone()));
        }
        fetched
    }

    /// Holds the right to fetch a blob.
    pub async fn turn(&self, blob: &str) -> Turn {
        let mut turn = Turn { fetching: self.fetching.clone(), blob: blob.to_owned(), guard: None };
        let lock = self.fetching.lock().entry(blob.to_owned()).or_default().clone();
        turn.guard = Some(lock.lock_owned().await);
        turn
    }

    /// The same, unless somebody has it.
    fn try_turn(&self, blob: &str) -> Option<Turn> {
        let lock = self.fetching.lock().entry(blob.to_owned()).or_default().clone();
        let mut turn = Turn { fetching: self.fetching.clone(), blob: blob.to_owned(), guard: None };
        turn.guard = Some(lock.try_lock_owned().ok()?);
        Some(turn)
    }

    /// How many blobs somebody fetches or waits for.
    #[must_use]
    pub fn waited_for(&self) -> usize {
        self.fetching.lock().len()
    }

    /// How many chunks of an earlier, broken fetch are there and sound. They are hashed again: after a power cut, a
    /// file can be longer than what reached the disk.
    ///
    /// # Errors
    /// [`BlobError::Disk`].
    pub async fn resume(&self, blob: &str, manifest: &Manifest) -> Result<u64, BlobError> {
        let Ok(mut file) = File::open(self.file(blob, ".partial")?).await else { return Ok(0) };
        let mut sound = 0;
        for expected in &manifest.chunks {
            let mut chunk = Vec::new();
            (&mut file).take(CHUNK).read_to_end(&mut chunk).await.map_err(disk("read a blob"))?;
            if Hash::of(&chunk) != *expected {
                break;
            }
            sound += 1;
        }
        Ok(sound)
    }

    /// Takes the chunks of `manifest` from `from` on off a stream, verifying each, and finishes the blob. What was
    /// taken before an error stays for the next try.
    ///
    /// # Errors
    /// [`BlobError::Corrupt`] if a chunk is not what the manifest says; [`BlobError::Broken`] if the stream ended.
    pub async fn take(
        &self,
        blob: &str,
        manifest: &Manifest,
        from: u64,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<PathBuf, BlobError> {
        if manifest.root() != blob || !manifest.is_sound() {
            return Err(BlobError::Corrupt(blob.into()));
        }
        let partial = self.file(blob, ".partial")?;
        let mut file = File::options().create(true).truncate(false).write(true).open(&partial).await;
        let file = file.as_mut().map_err(|error| disk("store a blob")(std::io::Error::other(error.to_string())))?;
        // The last chunk may be short, and there already: the data ends at its size, not at a whole chunk.
        let mut done = from.saturating_mul(CHUNK).min(manifest.size);
        file.set_len(done).await.map_err(disk("store a blob"))?;
        file.seek(std::io::SeekFrom::Start(done)).await.map_err(disk("store a blob"))?;
        let _progress = Reporting { progress: &self.progress, blob };
        let first = usize::try_from(from).unwrap_or(usize::MAX);
        for chunk in manifest.chunks.iter().skip(first) {
            self.progress.lock().insert(blob.into(), (done, manifest.size));
            let length = CHUNK.min(manifest.size - done);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            fill(stream, &mut bytes).await?;
            if on(SiteMutant::ImageUnchecked)
                && let Some(first) = bytes.first_mut()
            {
                *first ^= 1;
            } else if Hash::of(&bytes) != *chunk {
                return Err(BlobError::Corrupt(blob.into()));
            }
            file.write_all(&bytes).await.map_err(disk("store a blob"))?;
            // The next try counts whole chunks by the file's length: it must not be ahead of what was written.
            file.flush().await.map_err(disk("store a blob"))?;
            done += length;
        }
        file.sync_all().await.map_err(disk("store a blob"))?;
        self.finish(&partial, manifest).await?;
        self.path(blob).ok_or_else(|| BlobError::Absent(blob.into()))
    }

    fn file(&self, blob: &str, suffix: &str) -> Result<PathBuf, BlobError> {
        let name = blob.len() == 64 && blob.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if name { Ok(self.dir.join(format!("{blob}{suffix}"))) } else { Err(BlobError::Name(blob.into())) }
    }
}

/// Reads until `bytes` are full. A source that gives nothing for [`STALL`] is given up; a slow one is not.
async fn fill(stream: &mut (impl AsyncRead + Unpin), mut bytes: &mut [u8]) -> Result<(), BlobError> {
    while !bytes.is_empty() {
        let read = tokio::time::timeout(STALL, stream.read(bytes)).await;
        let read = read.map_err(|_| BlobError::Broken(format!("nothing came for {} s", STALL.as_secs())))?;
        match read.map_err(|error| BlobError::Broken(error.to_string()))? {
            0 => return Err(BlobError::Broken("the stream ended".into())),
            count => bytes = bytes.split_at_mut(count).1,
        }
    }
    Ok(())
}

struct Reporting<'a> {
    progress: &'a Progress,
    blob: &'a str,
}

impl Drop for Reporting<'_> {
    fn drop(&mut self) {
        self.progress.lock().remove(self.blob);
    }
}
