//! Entries: the only way state changes (`PROTOCOL.md`, E1–E7).
//!
//! An entry is one atomic, signed change set of one replica. Its **header** always travels, since every judge of the
//! ledgers needs it; its **content** (document changes, observations, names) may be left out where a record's scope
//! says so, and is bound to the header by its hash. The header's frontier is given as the difference to the author's
//! previous entry: chains have no gaps, so every receiver can add it up, and an entry stays small in a large cloud.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use uuid::Uuid;

use crate::agent::{Observation, Statement};
use crate::id::{ClaimId, CloudId, EntryId, HostId, Millis, PoolId, ReplicaId, SiteName};
use crate::ledger::Amount;
use crate::mutant::{Mutant, on};
use crate::record::{Kind, RecordId};
use crate::retire::{Request, Retiree};
use crate::tips::Tips;

/// Version of the entry format; the first byte of every encoded entry.
pub const FORMAT: u8 = 9;
/// Largest encoded entry, header and content together: a hostile one costs no more memory than this.
pub const MAX_ENTRY: usize = 4 << 20;
/// Largest encoded header: the two of a fork must fit into one entry.
pub const MAX_HEADER: usize = 1 << 20;

/// BLAKE3 hash of an encoded header: the identity of an entry, with its author and number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Hash(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl Hash {
    /// Hash of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first 8 bytes, as frontiers carry them (E5).
    #[must_use]
    pub fn short(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first)
    }
}
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
}

/// The last entry of one author that somebody holds: its number, and the start of its hash so that forks show (E5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tip {
    /// Its number.
    pub number: u64,
    /// The first 8 bytes of its hash.
    pub hash: u64,
}

/// For every replica, the highest entry held: a version vector.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Frontier(pub Tips);

impl Frontier {
    /// The number held of `replica`, 0 if none.
    #[must_use]
    pub fn number(&self, replica: ReplicaId) -> u64 {
        self.0.get(&replica).map_or(0, |tip| tip.number)
    }

    /// Whether everything in `other` is held here too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.0.is(&other.0) || other.0.beside(&self.0).all(|(_, tip, held)| number(held) >= tip.number)
    }

    /// Whether the entry is held.
    #[must_use]
    pub fn holds(&self, entry: EntryId) -> bool {
        self.number(entry.author) >= entry.number
    }

    /// How many entries of `other` are missing here.
    #[must_use]
    pub fn missing(&self, other: &Self) -> u64 {
        other.0.beside(&self.0).map(|(_, tip, held)| tip.number.saturating_sub(number(held))).sum()
    }

    /// Takes up a tip.
    pub fn set(&mut self, replica: ReplicaId, tip: Tip) {
        self.0.insert(replica, tip);
    }
}

fn number(tip: Option<&Tip>) -> u64 {
    tip.map_or(0, |tip| tip.number)
}

/// Which sites must hold an entry's content.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Scope {
    /// All.
    #[default]
    Everywhere,
    /// Only these.
    Sites(Vec<SiteName>),
}

/// The signed part of an entry that everybody holds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The cloud: an entry of one cloud means nothing in another.
    pub cloud: CloudId,
    /// Who wrote it.
    pub author: ReplicaId,
    /// Its place in the author's log, from 1.
    pub number: u64,
    /// Hash of the author's previous header; zero for number 1.
    pub previous: Hash,
    /// What the author held of others, where that differs from its previous entry: of one who forked, the end of each
    /// branch.
    pub seen: Vec<(ReplicaId, Tip)>,
    /// When, by the author's clock. Decides nothing (E6).
    pub time: Millis,
    /// Who must hold the content.
    pub scope: Scope,
    /// Records created, each with what it refers to.
    pub created: Vec<Created>,
    /// Records deleted.
    pub deleted: Vec<RecordId>,
    /// Changes of ledgers.
    pub ledger: Vec<LedgerOp>,
    /// Changes of membership.
    pub members: Vec<MemberOp>,
    /// What agents have promised.
    pub statements: Vec<Statement>,
    /// Hash of the encoded content; zero if there is none.
    pub content: Hash,
}

/// A record's creation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Created {
    /// The record.
    pub record: RecordId,
    /// What it refers to: those are "deleting" rather than gone while it lives (R1).
    pub references: Vec<RecordId>,
}

/// What a pool is the capacity of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// A host's vCPU, memory and disk. Minted by a replica of its site, which its agent has signed: no other site can
    /// make a pool for it.
    Host(HostIdentity),
    /// A project's quota. Minted by a replica of an identity authority.
    Quota {
        /// The project.
        project: Uuid,
    },
    /// Votes on retirements (M2). Minted by the founder's first entry, and never spent.
    Votes,
    /// The right to place members of a server group whose policy is hard.
    Group {
        /// The group's record.
        group: Uuid,
        /// Anti-affinity: on this host, as many as were minted; each member claims one. Minted once, by the root of the
        /// host's own pool, so that no two replicas make it. Affinity: none, and one right for the whole group, minted
        /// by the entry that creates it; it is held, not claimed, while a member is placed.
        host: Option<HostId>,
    },
    /// Addresses: which, the amounts say. Minted by whoever creates the record that they are for, in the same entry: so
    /// the record, whose id is random, has one pool, whoever mints others in its name.
    Addresses {
        /// What they are for.
        of: RecordId,
    },
}

impl Subject {
    /// The record whose deletion closes the pool: nothing is minted, granted or claimed of it any more by whoever has seen
    /// that. None for hosts, which die rather than being deleted, and for votes.
    #[must_use]
    pub fn record(&self) -> Option<RecordId> {
        match self {
            Self::Quota { project } => Some(RecordId { kind: Kind::Project, id: *project }),
            Self::Group { group, .. } => Some(RecordId { kind: Kind::ServerGroup, id: *group }),
            Self::Addresses { of } => Some(*of),
            Self::Host(_) | Self::Votes => None,
        }
    }
}

/// A host, as its agent has signed it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct HostIdentity {
    /// The host: its id follows from `agent_key`.
    pub host: HostId,
    /// Its site, for ever.
    pub site: SiteName,
    /// Its agent's Ed25519 public key, which signs statements (A3).
    #[serde(with = "serde_bytes")]
    pub agent_key: [u8; 32],
    /// The agent's signature over cloud and site.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl HostIdentity {
    /// The host whose agent has `key`, at a site of a cloud.
    #[must_use]
    pub fn sign(cloud: CloudId, site: &SiteName, key: &SigningKey) -> Self {
        let agent_key = key.verifying_key().to_bytes();
        let signature = key.sign(&host_bytes(cloud, site)).to_bytes().to_vec();
        Self { host: HostId::of_key(&agent_key), site: site.clone(), agent_key, signature }
    }

    /// Whether the agent has signed that its host belongs to this site of `cloud`.
    #[must_use]
    pub fn is_genuine(&self, cloud: CloudId) -> bool {
        let bytes = host_bytes(cloud, &self.site);
        HostId::of_key(&self.agent_key) == self.host && is_signed(&self.agent_key, &bytes, &self.signature)
    }
}

fn host_bytes(cloud: CloudId, site: &SiteName) -> Vec<u8> {
    [b"luc/host/1\0".as_slice(), cloud.0.as_bytes(), site.as_str().as_bytes()].concat()
}

/// Whether `signature` is `public_key`'s over `bytes` (Ed25519).
pub(crate) fn is_signed(public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
    #[cfg(feature = "memo")]
    return crate::memo::signed(public_key, bytes, signature, || is_signed_afresh(public_key, bytes, signature));
    #[cfg(not(feature = "memo"))]
    is_signed_afresh(public_key, bytes, signature)
}

fn is_signed_afresh(public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
    let key = VerifyingKey::from_bytes(public_key).ok();
    let signature = Signature::from_slice(signature).ok();
    matches!((key, signature), (Some(key), Some(signature)) if key.verify(bytes, &signature).is_ok())
}

/// One change of a ledger (A1–A5). What is claimed and released is judged at the author's own past.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LedgerOp {
    /// Makes a pool, named by this operation. The author is its root and holds all of it.
    Mint {
        /// What it is the capacity of.
        subject: Subject,
        /// How much.
        amount: Amount,
        /// Grants of others than the root are spent only once the root has countersigned them (A5).
        confirmed: bool,
    },
    /// Adds to a pool. Its root only, or the root's heir.
    Grow {
        /// The pool.
        pool: PoolId,
        /// How much.
        amount: Amount,
    },
    /// Destroys free rights of the author: capacity shrinks.
    Burn {
        /// The pool.
        pool: PoolId,
        /// How much.
        amount: Amount,
    },
    /// Moves free rights of the author to another member.
    Grant {
        /// The pool.
        pool: PoolId,
        /// To whom.
        to: ReplicaId,
        /// How much.
        amount: Amount,
    },
    /// Spends free rights of the author. The claim is named by this operation; the author is its holder.
    Claim {
        /// The pool.
        pool: PoolId,
        /// How much.
        amount: Amount,
        /// What for.
        record: RecordId,
        /// The placement epoch that a claim on a host gives its server (S1); 0 for other pools.
        epoch: u64,
    },
    /// Gives a claim's rights back to its holder, who is the author or whose heir the author is.
    Release {
        /// The claim.
        claim: ClaimId,
    },
    /// Declares a host dead, by an operator's word that its machine is off and will never again run what it ran (S5). From then on nothing is
    /// claimed of the pool, and claims on it are released without the agent's word.
    DeclareDead {
        /// The pool that the host's agent serves.
        pool: PoolId,
        /// When, by the author's clock. For people.
        at: Millis,
        /// The user who said so. For people.
        by: Uuid,
    },
    /// Countersigns a grant of a confirmed pool: from here on its receiver can spend it. The pool's root only, or the root's
    /// heir.
    Confirm {
        /// The pool.
        pool: PoolId,
        /// To whom was granted.
        to: ReplicaId,
        /// The entry that granted.
        grant: EntryId,
        /// Which of its ledger operations.
        index: u32,
    },
    /// Takes over the free rights of a retired replica: its heir only. Of votes, one's own part of them: whoever stayed.
    Inherit {
        /// The pool.
        pool: PoolId,
        /// Who is retired.
        from: ReplicaId,
    },
}

/// One change of membership (M1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemberOp {
    /// Admits a replica. In the cloud's very first entry, the author admits itself.
    Join(Member),
    /// A member's own new addresses.
    Readdress {
        /// `host:port` of its QUIC endpoint, the best first.
        addresses: Vec<String>,
    },
    /// The certificate of a member is revoked: nobody who knows this talks to it any more.
    Revoke {
        /// Whose.
        replica: ReplicaId,
    },
    /// An operator's word that replicas are gone for good (M2). Sponsors only.
    Retire(Request),
    /// The proof that a replica forked, which starts its retirement as a request would (M3). Any member.
    Fork(Fork),
    /// As a proof of a fork, where no two headers with one number are left: the author holds two branches of that replica's log, which
    /// its frontier names. Any member.
    Branched {
        /// Who forked, and who inherits from it.
        retiree: Retiree,
    },
    /// The author seals these replicas: of them it holds what this entry's frontier says, and takes no more than another
    /// survivor has.
    Seal {
        /// Whom: whole requests that it knows, and all that it has sealed before.
        set: BTreeSet<ReplicaId>,
    },
    /// The author assents to a retirement: of what it has sealed last it holds all seals that must be there, and its frontier
    /// says which. Once for each set, before it seals a larger one (R11).
    Assent {
        /// Whom its last seal covers.
        set: BTreeSet<ReplicaId>,
    },
    /// Nothing but what every entry says: that its author holds what its frontier names. Written by who has taken much
    /// and written nothing, since others fold only what they know to be held by all.
    Held,
}

/// Two entries of one author with one number, and who shall inherit from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fork {
    /// One.
    pub one: SignedHeader,
    /// The other.
    pub other: SignedHeader,
    /// Gets the author's rights, claims, and its place as the root of pools.
    pub heir: ReplicaId,
}

impl Fork {
    /// Who forked, if these headers are of one author and number, and differ. The signatures are for
    /// [`SignedHeader::verify`].
    #[must_use]
    pub fn author(&self) -> Option<ReplicaId> {
        let header = |signed: &SignedHeader| decode::<Header>(&signed.header, "header").ok();
        let (one, other) = (header(&self.one)?, header(&self.other)?);
        let same = (one.cloud, one.author, one.number) == (other.cloud, other.author, other.number);
        (same && self.one.hash() != self.other.hash()).then_some(one.author)
    }
}

/// An entry without its content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedHeader {
    /// As its author encoded it.
    #[serde(with = "serde_bytes")]
    header: Vec<u8>,
    #[serde(with = "serde_bytes")]
    signature: Vec<u8>,
}

impl SignedHeader {
    /// Hash of the header.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of(&self.header)
    }

    /// Whether `public_key` signed it.
    #[must_use]
    pub fn verify(&self, public_key: &[u8; 32]) -> bool {
        is_signed(public_key, &signed_bytes(&self.hash()), &self.signature)
    }
}

/// A member, as its sponsor admitted it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its id, which follows from the key.
    pub replica: ReplicaId,
    /// Its Ed25519 public key: signs its entries, and is the key of its certificate.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
    /// Its site.
    pub site: SiteName,
    /// `host:port` of its QUIC endpoint, the best first.
    pub addresses: Vec<String>,
    /// May write projects, users and roles (E7).
    pub identity_authority: bool,
    /// May admit further members.
    pub sponsor: bool,
    /// The short number is (sponsor, this): two joins in a split do not clash.
    pub index: u32,
}

/// The part of an entry that only replicas in scope hold.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Content {
    /// In order.
    pub ops: Vec<ContentOp>,
}

/// One change of content.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ContentOp {
    /// One Automerge change of a record's document.
    Change {
        /// The record.
        record: RecordId,
        /// The change, as Automerge encodes it.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// What an agent saw.
    Observe(Observation),
    /// A name is given to a record (R3).
    Bind {
        /// The name.
        name: Name,
        /// How many deletions of this name the author had seen.
        generation: u64,
        /// The bearer.
        bearer: RecordId,
    },
    /// A name's binding is taken back: its bearer was renamed or deleted.
    Unbind {
        /// The name.
        name: Name,
        /// Which binding.
        generation: u64,
        /// Its bearer.
        bearer: RecordId,
    },
}

/// A unique name: within a kind and a parent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Name {
    /// The kind of its bearer.
    pub kind: Kind,
    /// Within what it is unique: nil for the whole cloud, a user for keypairs. Flavor ids use a parent of their own.
    pub parent: Uuid,
    /// The name.
    pub name: String,
}

/// Why bytes are no entry. Nothing was taken from them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// Another version than [`FORMAT`].
    #[error("entry format {0} is not known here")]
    Format(u8),
    /// Longer than [`MAX_ENTRY`].
    #[error("an entry of {0} bytes is over the limit")]
    TooLong(usize),
    /// Does not decode.
    #[error("the entry's {part} does not decode: {reason}")]
    Encoding {
        /// `frame`, `header` or `content`.
        part: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// The content is not the one that the header names.
    #[error("the entry's content does not match its header")]
    ContentHash,
    /// The author's key did not sign it.
    #[error("the entry's signature is not its author's")]
    Signature,
    /// The header names another cloud.
    #[error("the entry belongs to another cloud")]
    Cloud,
}

/// An entry as it travels and rests: encoded once by its author, never again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Wire {
    #[serde(with = "serde_bytes")]
    header: Vec<u8>,
    #[serde(with = "serde_bytes")]
    signature: Vec<u8>,
    #[serde(with = "serde_bytes")]
    content: Vec<u8>,
}

/// A decoded entry, with the bytes it came from.
#[derive(Clone)]
pub struct Entry {
    /// The header.
    pub header: Header,
    /// The content, if held.
    pub content: Content,
    /// The log that it belongs to: its author's, or a branch of it.
    pub(crate) log: ReplicaId,
    hash: Hash,
    signature: Vec<u8>,
    bytes: Arc<[u8]>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({} {:?})", self.id(), self.hash)
    }
}

impl Entry {
    /// Encodes and signs. `header.content` is set from `content`.
    #[must_use]
    pub fn sign(mut header: Header, content: Content, key: &SigningKey) -> Self {
        let content_bytes = if content.ops.is_empty() { Vec::new() } else { encode(&content) };
        header.content = if content_bytes.is_empty() { Hash::default() } else { Hash::of(&content_bytes) };
        let header_bytes = encode(&header);
        let hash = Hash::of(&header_bytes);
        let signature = key.sign(&signed_bytes(&hash)).to_bytes().to_vec();
        #[cfg(feature = "memo")]
        crate::memo::know_signed(&key.verifying_key().to_bytes(), &signed_bytes(&hash), &signature);
        let wire = Wire { header: header_bytes, signature, content: content_bytes };
        let mut bytes = vec![FORMAT];
        bytes.extend(encode(&wire));
        let log = header.author;
        Self { header, content, log, hash, signature: wire.signature, bytes: bytes.into() }
    }

    /// Decodes and checks everything that needs no state: version, lengths, encoding, the content's hash. The
    /// signature is checked by [`Entry::verify`], once the author's key is known.
    ///
    /// # Errors
    /// [`BadEntry`]; nothing is kept.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEntry> {
        if bytes.len() > MAX_ENTRY {
            return Err(BadEntry::TooLong(bytes.len()));
        }
        let (format, rest) = bytes.split_first().ok_or(BadEntry::Format(0))?;
        if *format != FORMAT {
            return Err(BadEntry::Format(*format));
        }
        let wire: Wire = decode(rest, "frame")?;
        if wire.header.len() > MAX_HEADER {
            return Err(BadEntry::TooLong(wire.header.len()));
        }
        let header: Header = decode(&wire.header, "header")?;
        let content_hash = if wire.content.is_empty() { Hash::default() } else { Hash::of(&wire.content) };
        if header.content != content_hash {
            return Err(BadEntry::ContentHash);
        }
        let content = if wire.content.is_empty() { Content::default() } else { decode(&wire.content, "content")? };
        let hash = Hash::of(&wire.header);
        let log = header.author;
        Ok(Self { header, content, log, hash, signature: wire.signature, bytes: bytes.into() })
    }

    /// The hash of an encoded entry whose rest was decoded before: only its frame is.
    pub(crate) fn hash_of(bytes: &[u8]) -> Result<Hash, BadEntry> {
        let framed: (&Bytes, &Bytes, &Bytes) = decode(bytes.get(1..).unwrap_or_default(), "frame")?;
        Ok(Hash::of(framed.0))
    }

    /// As [`Entry::decode`], to be shared.
    ///
    /// # Errors
    /// [`BadEntry`]; nothing is kept.
    pub fn decode_shared(bytes: &[u8]) -> Result<Arc<Self>, BadEntry> {
        #[cfg(feature = "memo")]
        return crate::memo::entry(bytes);
        #[cfg(not(feature = "memo"))]
        Self::decode(bytes).map(Arc::new)
    }

    /// Checks the author's signature.
    ///
    /// # Errors
    /// [`BadEntry::Signature`] if `public_key` did not sign it.
    pub fn verify(&self, public_key: &[u8; 32]) -> Result<(), BadEntry> {
        let signed = is_signed(public_key, &signed_bytes(&self.hash), &self.signature);
        if signed || on(Mutant::SignatureUnchecked) { Ok(()) } else { Err(BadEntry::Signature) }
    }

    /// Author and number, as it was signed.
    #[must_use]
    pub fn id(&self) -> EntryId {
        EntryId { author: self.header.author, number: self.header.number }
    }

    /// By what it is named where it is held: of an author who forked, the branch and number.
    #[must_use]
    pub fn held_as(&self) -> EntryId {
        EntryId { author: self.log, number: self.header.number }
    }

    /// The entry as one of this log, where it was read from.
    #[must_use]
    pub fn in_log(self: Arc<Self>, log: ReplicaId) -> Arc<Self> {
        if self.log == log { self } else { Arc::new(Self { log, ..Self::clone(&self) }) }
    }

    /// The part that proves who wrote it.
    ///
    /// # Errors
    /// [`BadEntry`], which cannot be: it was decoded before.
    pub(crate) fn signed_header(&self) -> Result<SignedHeader, BadEntry> {
        let wire: Wire = decode(self.bytes.get(1..).unwrap_or_default(), "frame")?;
        Ok(SignedHeader { header: wire.header, signature: wire.signature })
    }

    /// Hash of the header.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Number and short hash, as frontiers name it.
    #[must_use]
    pub fn tip(&self) -> Tip {
        Tip { number: self.header.number, hash: self.hash.short() }
    }

    /// As it travels and rests.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, shared: an entry goes to many peers.
    #[must_use]
    pub fn shared_bytes(&self) -> Arc<[u8]> {
        self.bytes.clone()
    }
}

fn signed_bytes(hash: &Hash) -> Vec<u8> {
    let mut bytes = b"luc/entry/1\0".to_vec();
    bytes.extend(hash.0);
    bytes
}

/// Encodes one of our own types. They hold nothing that MessagePack cannot.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap_or_default()
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], part: &'static str) -> Result<T, BadEntry> {
    from_untrusted(bytes).map_err(|error| BadEntry::Encoding { part, reason: error.to_string() })
}

/// Deepest nesting of what is decoded: our own types need less than half.
const DEPTH: usize = 64;

/// Decodes MessagePack that anybody may have sent. A field that is not known is skipped by walking through it on the
/// stack, and the library's own limit of 1,024 levels takes more than a thread has in a debug build.
///
/// # Errors
/// What the decoder says; nothing is kept.
pub fn from_untrusted<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(DEPTH);
    T::deserialize(&mut decoder)
}
