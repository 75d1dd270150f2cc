//! What an agent must not forget: who it is, what it was ordered, what it refused, what it told, and what replicas told it
//! of their logs.
//!
//! One redb file in the state directory. All changes that are ready go into one commit, and nothing that rests on a
//! change is done or said before that commit is on the disk. Refusals are kept for ever, some 60 bytes each: no replica can
//! know that no lagging one will order such a claim again. Values begin with the version of their format.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use luc_engine::agent::SignedTip;
use luc_engine::id::{ClaimId, EntryId, HostId, ReplicaId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::plan::Memory;
use crate::world::{Bound, Refused};

const IDENTITY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("identity");
const MEMORY: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("memory");
const REFUSED: TableDefinition<'_, [u8; 28], &[u8]> = TableDefinition::new("refused");
const WITNESSED: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("witnessed");

/// Memory for the file's pages, bytes: everything is read once, at the start.
const CACHE: usize = 4 << 20;
/// The format written by this version.
const VERSION: u8 = 1;

/// Why the agent's memory cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made or protected.
    #[error("the state directory {dir} cannot be used")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another agent has it open.
    #[error("the state directory {0} is in use by another agent")]
    InUse(PathBuf),
    /// The database failed; after a failed commit the agent must not go on.
    #[error("the agent's memory failed")]
    Database(#[source] Box<redb::Error>),
    /// Not written by this program, or by a later version.
    #[error("the agent's memory cannot be read: {what} is damaged or of a later version")]
    Damaged {
        /// Which value.
        what: String,
    },
    /// No randomness for a new key.
    #[error("the system gives no random bytes")]
    Random(#[source] io::Error),
}

/// Who an agent is.
#[derive(Clone)]
pub struct Identity {
    /// Its host: follows from the key.
    pub host: HostId,
    /// 1 at first (S4).
    pub incarnation: u64,
    /// Signs its statements; its public half is in the host's pool.
    pub key: SigningKey,
}

/// What was written down.
pub struct Loaded {
    /// Who.
    pub identity: Identity,
    /// The host's pool.
    pub bound: Bound,
    /// Of each server.
    pub memories: BTreeMap<Uuid, Memory>,
    /// Refused claims.
    pub refused: HashMap<ClaimId, Refused>,
    /// The last entry of its own that each replica has told of.
    pub witnessed: BTreeMap<ReplicaId, SignedTip>,
}

/// One change.
#[derive(Debug, Clone)]
pub enum Write {
    /// The host's pool.
    Bound(Bound),
    /// A server's memory.
    Memory(Uuid, Box<Memory>),
    /// A refusal; the server's memory goes.
    Refuse(ClaimId, Refused),
    /// A refusal as it is now, and nothing else.
    Refused(ClaimId, Refused),
    /// How far a replica's log goes.
    Witnessed(SignedTip),
}

/// See the module.
pub struct Store {
    database: Database,
}

fn database(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

impl Store {
    /// Opens an agent's memory, or begins one: with a new key, which makes it a new host.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed.
    pub fn open(dir: &Path) -> Result<(Self, Loaded), StoreError> {
        let directory = |source| StoreError::Directory { dir: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(directory)?;
        let path = dir.join("agent.redb");
        let database = Database::builder().set_cache_size(CACHE).create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(dir.to_owned()),
            error => database(error),
        })?;
        // It holds the agent's key.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(directory)?;
        let store = Self { database };
        store.begin()?;
        let loaded = store.load()?;
        Ok((store, loaded))
    }

    fn begin(&self) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        {
            let mut table = transaction.open_table(IDENTITY).map_err(database)?;
            transaction.open_table(MEMORY).map_err(database)?;
            transaction.open_table(REFUSED).map_err(database)?;
            transaction.open_table(WITNESSED).map_err(database)?;
            if table.get("key").map_err(database)?.is_none() {
                let mut key = [0; 32];
                io::Read::read_exact(&mut fs::File::open("/dev/urandom").map_err(StoreError::Random)?, &mut key)
                    .map_err(StoreError::Random)?;
                table.insert("key", encode(&key)?.as_slice()).map_err(database)?;
                table.insert("incarnation", encode(&1_u64)?.as_slice()).map_err(database)?;
            }
        }
        transaction.commit().map_err(database)
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        let table = transaction.open_table(IDENTITY).map_err(database)?;
        let get = |name: &'static str| {
            let value = table.get(name).map_err(database)?;
            value.map(|value| value.value().to_vec()).ok_or_else(|| StoreError::Damaged { what: name.to_owned() })
        };
        let key: [u8; 32] = decode("key", &get("key")?)?;
        let key = SigningKey::from_bytes(&key);
        let host = HostId::of_key(&key.verifying_key().to_bytes());
        let identity = Identity { host, incarnation: decode("incarnation", &get("incarnation")?)?, key };
        let bound = table.get("bound").map_err(database)?.map(|value| value.value().to_vec());
        let bound = bound.map(|value| decode("bound", &value)).transpose()?.unwrap_or_default();
        let mut memories = BTreeMap::new();
        for row in transaction.open_table(MEMORY).map_err(database)?.iter().map_err(database)? {
            let (id, value) = row.map_err(database)?;
            let id = Uuid::from_bytes(id.value());
            memories.insert(id, decode(&format!("server {id}"), value.value())?);
        }
        let mut refused = HashMap::new();
        for row in transaction.open_table(REFUSED).map_err(database)?.iter().map_err(database)? {
            let (id, value) = row.map_err(database)?;
            let claim = claim_of(id.value());
            refused.insert(claim, decode(&format!("claim {claim}"), value.value())?);
        }
        let mut witnessed = BTreeMap::new();
        for row in transaction.open_table(WITNESSED).map_err(database)?.iter().map_err(database)? {
            let (id, value) = row.map_err(database)?;
            let replica = ReplicaId(Uuid::from_bytes(id.value()));
            witnessed.insert(replica, decode(&format!("replica {replica}"), value.value())?);
        }
        Ok(Loaded { identity, bound, memories, refused, witnessed })
    }

    /// Makes changes durable, all or none.
    ///
    /// # Errors
    /// [`StoreError::Database`]: whether they are durable is unknown, and the agent must not go on.
    pub fn write(&self, writes: &[Write]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        {
            let mut memories = transaction.open_table(MEMORY).map_err(database)?;
            let mut refusals = transaction.open_table(REFUSED).map_err(database)?;
            for write in writes {
                match write {
                    Write::Bound(bound) => {
                        let mut identity = transaction.open_table(IDENTITY).map_err(database)?;
                        identity.insert("bound", encode(bound)?.as_slice()).map_err(database)?;
                    }
                    Write::Memory(server, memory) => {
                        memories.insert(server.as_bytes(), encode(memory)?.as_slice()).map_err(database)?;
                    }
                    Write::Refuse(claim, refused) => {
                        memories.remove(refused.server.as_bytes()).map_err(database)?;
                        refusals.insert(claim_key(*claim), encode(refused)?.as_slice()).map_err(database)?;
                    }
                    Write::Witnessed(word) => {
                        let mut witnessed = transaction.open_table(WITNESSED).map_err(database)?;
                        witnessed.insert(*word.replica.0.as_bytes(), encode(word)?.as_slice()).map_err(database)?;
                    }
                    Write::Refused(claim, refused) => {
                        refusals.insert(claim_key(*claim), encode(refused)?.as_slice()).map_err(database)?;
                    }
                }
            }
        }
        transaction.commit().map_err(database)
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![VERSION];
    // Named fields, so that a later version can add some.
    rmp_serde::encode::write_named(&mut bytes, value)
        .map_err(|error| StoreError::Damaged { what: error.to_string() })?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    let damaged = || StoreError::Damaged { what: what.to_owned() };
    let (version, value) = bytes.split_first().ok_or_else(damaged)?;
    if *version != VERSION {
        return Err(damaged());
    }
    rmp_serde::from_slice(value).map_err(|_| damaged())
}

fn claim_key(claim: ClaimId) -> [u8; 28] {
    let mut key = [0; 28];
    key[..16].copy_from_slice(claim.entry.author.0.as_bytes());
    key[16..24].copy_from_slice(&claim.entry.number.to_be_bytes());
    key[24..].copy_from_slice(&claim.index.to_be_bytes());
    key
}

fn claim_of(key: [u8; 28]) -> ClaimId {
    let (mut author, mut number, mut index) = ([0; 16], [0; 8], [0; 4]);
    author.copy_from_slice(&key[..16]);
    number.copy_from_slice(&key[16..24]);
    index.copy_from_slice(&key[24..]);
    let author = ReplicaId(Uuid::from_bytes(author));
    ClaimId { entry: EntryId { author, number: u64::from_be_bytes(number) }, index: u32::from_be_bytes(index) }
}
