//! Frames: what travels on a stream. A length, a version, then MessagePack; nothing is read past a limit.
//!
//! A hostile frame costs its sender the connection and this replica nothing: the length is checked before a byte is
//! allocated for it, and whatever does not decode ends the stream.

use std::sync::Arc;

use luc_engine::entry::{Frontier, Tip, from_untrusted};
use luc_engine::id::{ClaimId, EntryId, HostId, Millis, PoolId, ReplicaId, SiteName};
use luc_engine::ledger::Amount;
use luc_engine::view::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of all frames.
pub const VERSION: u8 = 8;
/// Largest frame, bytes: one entry at its limit, with room for the rest of its batch.
pub const MAX_FRAME: usize = 6 << 20;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection went away.
    #[error("the stream ended: {0}")]
    Io(#[from] std::io::Error),
    /// Longer than allowed.
    #[error("a frame of {0} bytes is over the limit")]
    TooLong(usize),
    /// Another version.
    #[error("frame version {0} is not known here")]
    Version(u8),
    /// Does not decode.
    #[error("a frame does not decode: {0}")]
    Encoding(String),
    /// Ended where a frame was due.
    #[error("the peer closed the stream")]
    Closed,
}

/// Between two replicas, on the control stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Msg {
    /// What the sender holds: send me what I lack.
    Frontier {
        /// What.
        held: Frontier,
        /// What the sender shows of the state that these entries make; none if it holds more, and asks for some of it once more.
        shown: Option<Shown>,
        /// Whether it is said after everything that came before was dealt with: what it lacks was not received. Said
        /// every second otherwise, it says nothing about what is under way.
        answer: bool,
    },
    /// Entries. If `more`, the sender waits for a [`Msg::Frontier`] before it goes on.
    Entries {
        /// As they travel.
        #[serde(with = "entry_list")]
        entries: Vec<Arc<[u8]>>,
        /// Whether the receiver shall answer with its frontier.
        more: bool,
    },
    /// The receiver lacks this entry, and it is in the sender's log no more.
    Dropped(EntryId),
    /// Entries of the receiver's were not dealt with, since too many had arrived.
    Lost,
    /// The sender holds what it said last.
    Unchanged,
    /// The last entry of the receiver's own that the sender holds: said first, so that whoever starts from an old copy of its
    /// store learns it at once (`PROTOCOL.md`, M4).
    Yours(Option<Tip>),
    /// Soft state, every second or so: never enters the log.
    Heartbeat(Status),
}

impl Msg {
    /// About how many bytes it takes in memory.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Entries { entries, .. } => entries.iter().map(|entry| entry.len() + 64).sum(),
            Self::Dropped(_) | Self::Lost | Self::Unchanged | Self::Yours(_) => 64,
            Self::Frontier { held, .. } => held.0.len() * 64 + 64,
            Self::Heartbeat(status) => (status.hosts.len() + status.connected.len()) * 128 + 128,
        }
    }
}

mod entry_list {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    pub(super) fn serialize<S: Serializer>(entries: &[Arc<[u8]>], s: S) -> Result<S::Ok, S::Error> {
        entries.iter().map(|entry| Bytes::new(entry)).collect::<Vec<_>>().serialize(s)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Arc<[u8]>>, D::Error> {
        Ok(Vec::<ByteBuf>::deserialize(d)?.into_iter().map(|entry| entry.into_vec().into()).collect())
    }
}

/// What a replica shows of its state, with the frontier that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The state's digest.
    pub digest: Digest,
    /// Whether it was given to the replica, and nobody else has shown the same yet (R14).
    pub on_trust: bool,
}

/// What a replica tells of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Its clock, Unix milliseconds.
    pub at: Millis,
    /// The digest of its state at its frontier, as text.
    pub digest: String,
    /// Whom it is connected to: others need not forward their entries to it.
    pub connected: Arc<[ReplicaId]>,
    /// Its site's hosts, as heard from their agents.
    pub hosts: Vec<HostStatus>,
    /// How many agents on other machines are its witnesses now (`PROTOCOL.md`, M4).
    pub witnesses: usize,
}

/// Soft state of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Which.
    pub host: HostId,
    /// How long ago its agent was heard, milliseconds; none if never since the replica started.
    pub age: Option<u64>,
    /// What it said.
    pub heartbeat: luc_engine::agent::Heartbeat,
}

/// The first frame of every further stream: what is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The control stream between two replicas: frames of [`Msg`] both ways.
    Control,
    /// An agent attaches: `luc_engine::agent::FromAgent` go in, `ToAgent` come out.
    Agent,
    /// Rights are asked for. Answered by [`RightsAnswer`].
    Rights {
        /// Of this pool.
        pool: PoolId,
        /// At least so much; of what the holder can spare, if it is not needed yet.
        amount: Amount,
        /// Whether it is asked for before it is needed.
        ahead: bool,
        /// What the asker holds, so that the answer can carry what it lacks (A6).
        frontier: Frontier,
    },
    /// The manifest of a blob. Answered by `Result<Manifest, String>`.
    BlobManifest(String),
    /// A blob's chunks from one on. Answered by a `Result<(), String>`, then the chunks, raw.
    BlobChunks {
        /// The blob.
        blob: String,
        /// The first chunk wanted.
        from: u64,
    },
    /// The last lines of a server's console, from a host of the answering site. Answered by `Result<String, String>`.
    Console {
        /// The host.
        host: HostId,
        /// The server.
        server: uuid::Uuid,
        /// How many lines from the end; all that is kept if none.
        lines: Option<u64>,
    },
    /// What the answering replica holds now. Answered by a `Frontier`.
    Frontier,
    /// A snapshot for a new replica, behind a place in an earlier one if that is still kept. Answered by a
    /// `Result<SnapshotHead, String>`, rows, and one empty row.
    Snapshot(Option<SnapshotPlace>),
    /// An entry, as it travels: the proof that it is held. Answered by an `Option` of its bytes.
    Entry(EntryId),
    /// By which of these claims on hosts the answering replica stands (S1). Answered by a `Vec<ClaimId>`.
    Vouch(Vec<ClaimId>),
    /// The right to place a member of a server group on a host, of whose pool the answering replica is the root.
    /// Answered by [`RightsAnswer`].
    MemberRight {
        /// The group.
        group: uuid::Uuid,
        /// The host.
        host: HostId,
        /// What the asker holds: it may have created the group just now.
        frontier: Frontier,
    },
}

/// The answer to [`Request::Rights`] and [`Request::MemberRight`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RightsAnswer {
    /// What was granted.
    pub granted: Amount,
    /// The entries that the asker lacks to use it.
    #[serde(with = "entry_list")]
    pub entries: Vec<Arc<[u8]>>,
    /// Why nothing was, if so.
    pub refused: Option<String>,
}

/// How far a newcomer has come with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPlace {
    /// Which snapshot.
    pub snapshot: u64,
    /// The table of the last row that it holds.
    pub table: String,
    /// That row's key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
}

/// What comes before the rows of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// Which snapshot.
    pub snapshot: u64,
    /// Whether the rows go on behind the place that was named; else what the newcomer has is of another state.
    pub resumed: bool,
}

/// A row of a snapshot. An empty table name ends it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// The table's name.
    pub table: String,
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// The value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// What a newcomer says, on a connection of its own kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    #[serde(with = "serde_bytes")]
    pub secret: Vec<u8>,
    /// The newcomer's Ed25519 public key.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
    /// Its signature over this connection's exported keying material: proof that it has the key.
    #[serde(with = "serde_bytes")]
    pub proof: Vec<u8>,
    /// Where others reach it (replicas).
    pub addresses: Vec<String>,
    /// Its id (agents).
    pub host: Option<HostId>,
}

/// What a newcomer gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The cloud.
    pub cloud: luc_engine::id::CloudId,
    /// The site that the token admits to.
    pub site: SiteName,
    /// The authority's certificate.
    #[serde(with = "serde_bytes")]
    pub authority: Vec<u8>,
    /// The newcomer's certificate.
    #[serde(with = "serde_bytes")]
    pub certificate: Vec<u8>,
    /// The authority's private key, PEM, for sponsors.
    pub authority_key: Option<String>,
}

/// Encodes a frame.
#[must_use]
pub fn frame<T: Serialize>(value: &T) -> Vec<u8> {
    let body = rmp_serde::to_vec(value).unwrap_or_default();
    let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(body.len() + 5);
    bytes.extend(length.to_be_bytes());
    bytes.push(VERSION);
    bytes.extend(body);
    bytes
}

/// Writes a frame.
///
/// # Errors
/// [`WireError::Io`].
pub async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), value: &T) -> Result<(), WireError> {
    stream.write_all(&frame(value)).await.map_err(WireError::Io)
}

/// Reads a frame of at most `limit` bytes.
///
/// # Errors
/// [`WireError`]; the stream is of no more use.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> Result<T, WireError> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(WireError::Closed),
        other => other?,
    };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > limit || length == 0 {
        return Err(WireError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    decode(&bytes)
}

/// The frame with which bytes begin, and what comes behind it.
///
/// # Errors
/// [`WireError`]; [`WireError::Closed`] if it is not whole.
pub fn first<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(WireError::Closed)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let (frame, rest) = rest.split_at_checked(length).ok_or(WireError::Closed)?;
    Ok((decode(frame)?, rest))
}

/// A frame without its length.
fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, WireError> {
    match frame.split_first() {
        Some((&VERSION, body)) => from_untrusted(body).map_err(|error| WireError::Encoding(error.to_string())),
        Some((version, _)) => Err(WireError::Version(*version)),
        None => Err(WireError::TooLong(0)),
    }
}
