//! The kinds of record, each a typed struct mapped to its Automerge document by `autosurgeon`.
//!
//! A document holds **wishes** only: what users and operators want. Concurrent writers of one field are merged by
//! Automerge: of two scalars one wins, alike everywhere; maps merge key by key. What an agent **sees**
//! (status, power, progress) is not in the document: it changes too often for a history that is never dropped
//! (applying a change costs more with every change before it), and its order is not Automerge's but the agent's
//! (`PROTOCOL.md`, S4). It is kept beside the document, see [`crate::agent::Observation`]. What a server **holds**
//! (its host, its share of the quota) is its live claims in the ledger, never a field.
//!
//! Deletion is in the entry's header, never in the document, so that judges who do not hold the content know it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use autosurgeon::{Hydrate, Reconcile};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::entry::encode;
use crate::id::{EntryId, HostId, Millis, PoolId};

/// Which kind a record is. The numbers are part of the disk and wire formats: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
#[repr(u8)]
pub enum Kind {
    /// See [`Site`].
    Site = 1,
    /// See [`Host`].
    Host = 2,
    /// See [`Project`].
    Project = 3,
    /// See [`User`].
    User = 4,
    /// See [`Assignment`].
    Assignment = 5,
    /// See [`Flavor`].
    Flavor = 6,
    /// See [`Image`].
    Image = 7,
    /// See [`Keypair`].
    Keypair = 8,
    /// See [`Server`].
    Server = 9,
    /// See [`Revocation`].
    Revocation = 10,
    /// See [`ServerGroup`].
    ServerGroup = 11,
    /// See [`Aggregate`].
    Aggregate = 12,
    /// See [`AddressPool`].
    AddressPool = 13,
    /// See [`Address`].
    Address = 14,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 14] = [
        Self::Site,
        Self::Host,
        Self::Project,
        Self::User,
        Self::Assignment,
        Self::Flavor,
        Self::Image,
        Self::Keypair,
        Self::Server,
        Self::Revocation,
        Self::ServerGroup,
        Self::Aggregate,
        Self::AddressPool,
        Self::Address,
    ];

    /// Identity records are written by replicas of identity authorities only (E7).
    #[must_use]
    pub fn is_identity(self) -> bool {
        matches!(self, Self::Project | Self::User | Self::Assignment)
    }
}

/// A record's name: its kind and its random id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct RecordId {
    /// Its kind.
    pub kind: Kind,
    /// Its id, random unless said otherwise at the kind.
    pub id: Uuid,
}

impl Ord for RecordId {
    /// By kind, then as the bytes of the id, in one comparison.
    fn cmp(&self, other: &Self) -> Ordering {
        self.kind.cmp(&other.kind).then_with(|| self.id.as_u128().cmp(&other.id.as_u128()))
    }
}
impl PartialOrd for RecordId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl RecordId {
    /// An id that only `entry` can give a record: half of it are `random` bits, the other half is their hash with the
    /// entry's author and number (a UUID of version 8). Once such a record is gone, it is known to be gone for ever
    /// without anybody remembering it.
    #[must_use]
    pub fn certified(kind: Kind, entry: EntryId, random: Uuid) -> Self {
        let (_, low) = random.as_u64_pair();
        // The variant's bits are part of what is hashed.
        let low = low & !(0b11 << 62) | (0b10 << 62);
        let mut bytes = b"luc/record/1\0".to_vec();
        bytes.extend(encode(&(kind, entry, low)));
        let mut high = [0; 8];
        high.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
        let high = u64::from_be_bytes(high) & !0xf000 | 0x8000;
        Self { kind, id: Uuid::from_u64_pair(high, low) }
    }

    /// Whether one entry alone can create a record of this id. A host's follows from its agent's key and has no version,
    /// whatever its bits look like.
    #[must_use]
    pub fn is_certified(self) -> bool {
        self.kind != Kind::Host && self.id.get_version_num() == 8
    }

    /// Whether `entry` can.
    #[must_use]
    pub fn is_certified_by(self, entry: EntryId) -> bool {
        Self::certified(self.kind, entry, self.id) == self
    }
}

/// A site, as its operators describe it. Its id is UUIDv5 of its name: all replicas of a site name the same record.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Site {
    /// The availability zone's name; never changes.
    pub name: String,
    /// For people.
    pub description: String,
    /// Where its API is reached by clients: base URL of its endpoints, as in the service catalog.
    pub endpoint: String,
}

/// A hypervisor, as its agent introduced it. Its capacity is the pool whose subject names it.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Host {
    /// Host name, unique in its site.
    pub name: String,
    /// The site it belongs to; never changes. Only replicas of this site may write this record (E7).
    pub site: String,
    /// `QEMU`, `KVM`, `test`: as libvirt names it.
    pub hypervisor_type: String,
    /// libvirt's number for the hypervisor's version, e.g. 7002000.
    pub hypervisor_version: u64,
    /// Physical processors; the pool's vCPU are these times the overcommit ratio.
    pub cpus: u64,
    /// Physical memory, MiB.
    pub memory_mib: u64,
    /// Disk set aside for servers, GiB.
    pub disk_gib: u64,
    /// The operator's wish: a disabled host takes no new server.
    pub disabled: bool,
    /// Why, if disabled.
    pub disabled_reason: String,
    /// The processor's architecture, as images name it: `x86_64`, `aarch64`; empty if the agent has not told.
    #[serde(default)]
    #[autosurgeon(missing = "String::new")]
    pub architecture: String,
    /// The pool that its agent has said it serves, as [`PoolId`] writes it: only this one's rights are spent (S3).
    #[serde(default)]
    #[autosurgeon(missing = "String::new")]
    pub pool: String,
    /// The pool of a dead host whose operator has said that the machine may come back, with another pool. Empty if none.
    #[serde(default)]
    #[autosurgeon(missing = "String::new")]
    pub revived: String,
    /// The operator's word that it is down, whatever is heard of it: it takes no new server (Nova's `forced_down`). Its servers
    /// keep what they hold, since this proves nothing: see [`crate::hosts`] for a host that is dead.
    #[serde(default)]
    #[autosurgeon(missing = "Default::default")]
    pub forced_down: bool,
}

impl Host {
    /// The pool that its agent serves; none if nobody has written it down.
    #[must_use]
    pub fn served_pool(&self) -> Option<PoolId> {
        self.pool.parse().ok()
    }
}

/// A project (tenant). Its quota is the pool whose subject names it.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Project {
    /// Unique in the cloud (domain `default`).
    pub name: String,
    /// For people.
    pub description: String,
    /// A disabled project issues and accepts no token.
    pub enabled: bool,
    /// Keystone's tags and extra options, by name.
    pub extra: BTreeMap<String, String>,
    /// The quota that operators want, by Nova's names of its dimensions; empty if nobody has changed it. The pools follow
    /// it as far as rights are free.
    #[serde(default)]
    #[autosurgeon(missing = "BTreeMap::new")]
    pub quota: BTreeMap<String, u64>,
    /// The replica that brings the pools to it: one alone, so that no two burn the same surplus. Empty if `quota` is.
    #[serde(default)]
    #[autosurgeon(missing = "String::new")]
    pub quota_by: String,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct User {
    /// Unique in the cloud (domain `default`).
    pub name: String,
    /// For people.
    pub description: String,
    /// Optional e-mail address.
    pub email: String,
    /// A disabled user gets no token, and tokens already issued stop working.
    pub enabled: bool,
    /// Argon2 hash in PHC string format; never leaves through an API.
    pub password_hash: String,
    /// Raised with each change of password: tokens of an older generation are void.
    pub generation: u64,
    /// Project used when a request names none.
    pub default_project: Option<Uuid>,
}

/// A role of a user in a project. Two sites may grant the same role apart: taking it away deletes every one of them.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Assignment {
    /// The user.
    pub user: Uuid,
    /// The project.
    pub project: Uuid,
    /// `admin`, `member` or `reader`.
    pub role: String,
}

/// What a server is given.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Flavor {
    /// OpenStack's flavor id, chosen by the creator ("1") or a UUID; unique in the cloud.
    pub flavor_id: String,
    /// Unique in the cloud.
    pub name: String,
    /// For people.
    pub description: String,
    /// vCPU.
    pub vcpus: u64,
    /// Memory, MiB.
    pub ram_mib: u64,
    /// Root disk, GiB; 0 means the image's own size.
    pub disk_gib: u64,
    /// Extra disk, GiB.
    pub ephemeral_gib: u64,
    /// Swap, MiB.
    pub swap_mib: u64,
    /// Visible to all projects.
    pub public: bool,
    /// Nova's extra specs.
    pub extra_specs: BTreeMap<String, String>,
    /// Projects that may use it though it is not public: their ids in hex (the values are empty).
    pub access: BTreeMap<String, String>,
}

/// An image. Its data, once uploaded, is content-addressed and never changes.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Image {
    /// The owner.
    pub project: Uuid,
    /// Not unique.
    pub name: String,
    /// `qcow2` or `raw`; empty until known.
    pub disk_format: String,
    /// `bare`.
    pub container_format: String,
    /// `public`, `private`, `shared` or `community`.
    pub visibility: String,
    /// Cannot be deleted while set.
    pub protected: bool,
    /// Shown in lists only to those who ask for hidden images.
    pub hidden: bool,
    /// Refuse flavors with a smaller disk, GiB.
    pub min_disk_gib: u64,
    /// Refuse flavors with less memory, MiB.
    pub min_ram_mib: u64,
    /// Glance's tags (the values are empty: a map merges, a list does not).
    pub tags: BTreeMap<String, String>,
    /// Any other property, flat as in Glance.
    pub properties: BTreeMap<String, String>,
    /// Creation, Unix milliseconds.
    pub created_at: Millis,
    /// Last change, Unix milliseconds. For people.
    pub updated_at: Millis,
    /// The data, once uploaded.
    pub data: Option<ImageData>,
}

/// The data of an image.
#[derive(Clone, Debug, PartialEq, Eq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct ImageData {
    /// Root of the blob: BLAKE3 of its manifest, in hex. Names the data in every blob store.
    pub blob: String,
    /// Bytes.
    pub size: u64,
    /// Size of the disk it describes, bytes (equal to `size` for raw).
    pub virtual_size: u64,
    /// MD5 in hex: Glance's `checksum`.
    pub md5: String,
    /// SHA-512 in hex: Glance's `os_hash_value`.
    pub sha512: String,
    /// The site that took the upload; others fetch it from there first.
    pub site: String,
}

/// A user's SSH key.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Keypair {
    /// The owner.
    pub user: Uuid,
    /// Unique for its owner.
    pub name: String,
    /// `ssh` or `x509`.
    pub key_type: String,
    /// As OpenSSH writes it.
    pub public_key: String,
    /// MD5 in Nova's colon form.
    pub fingerprint: String,
    /// Creation, Unix milliseconds.
    pub created_at: Millis,
}

/// The power a user wants a server to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub enum Power {
    /// Running: ACTIVE.
    #[default]
    Running,
    /// Shut down, disk kept: SHUTOFF.
    Stopped,
    /// vCPUs held, memory kept: PAUSED.
    Paused,
    /// Memory saved to disk: SUSPENDED.
    Suspended,
}

/// The flavor a server was created with, copied: flavors can be deleted while servers live (Nova does the same).
#[derive(Clone, Debug, PartialEq, Eq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct ServerFlavor {
    /// The flavor's record.
    pub record: Uuid,
    /// See [`Flavor`].
    pub flavor_id: String,
    /// See [`Flavor`].
    pub name: String,
    /// vCPU.
    pub vcpus: u64,
    /// Memory, MiB.
    pub ram_mib: u64,
    /// Root disk, GiB; 0 means the image's own size.
    pub disk_gib: u64,
    /// Extra disk, GiB.
    pub ephemeral_gib: u64,
    /// Swap, MiB.
    pub swap_mib: u64,
    /// Nova's extra specs.
    pub extra_specs: BTreeMap<String, String>,
}

/// The image a server was created from, copied as far as booting needs it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct ServerImage {
    /// The image's record, which may be gone.
    pub record: Uuid,
    /// `qcow2` or `raw`.
    pub disk_format: String,
    /// Its data.
    pub data: ImageData,
}

/// A virtual machine, as wished.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Server {
    /// The owner.
    pub project: Uuid,
    /// Who created it.
    pub user: Uuid,
    /// Not unique.
    pub name: String,
    /// For people.
    pub description: String,
    /// The guest's host name, made from the first name.
    pub hostname: String,
    /// An address its users say they reach it under: kept and shown, used by nothing. Empty if none.
    pub access_ipv4: String,
    /// As `access_ipv4`, in canonical form.
    pub access_ipv6: String,
    /// `AUTO` or `MANUAL`, as asked; empty means `MANUAL`. Shown only: LUC never repartitions a guest's disk.
    pub disk_config: String,
    /// The availability zone that was asked for; empty if none was.
    pub availability_zone: String,
    /// What it is given.
    pub flavor: ServerFlavor,
    /// What its disk starts as; none boots from an empty disk.
    pub image: Option<ServerImage>,
    /// Nova's metadata.
    pub metadata: BTreeMap<String, String>,
    /// Nova's tags (values empty).
    pub tags: BTreeMap<String, String>,
    /// Name of the keypair, if any.
    pub key_name: Option<String>,
    /// Its public key, copied: keypairs can be deleted while servers live.
    pub public_key: Option<String>,
    /// User data, base64 as the user sent it; empty if none.
    pub user_data: String,
    /// The administrator password handed to the guest by config-drive; empty if none.
    pub admin_pass: String,
    /// `--config-drive`: shown as asked; LUC always attaches one, it has no metadata service yet.
    pub config_drive: bool,
    /// Wanted power.
    pub power: Power,
    /// Raised by every action that sets `power` (start, stop, pause, unpause, suspend, resume, hard reboot), also when
    /// it sets what was set before: so a start of a server that powered itself off is a new wish. An agent brings the
    /// pair of `power` and `power_changes` about once, and then leaves the machine to its guest.
    pub power_changes: u64,
    /// How many soft reboots were asked for, ever.
    pub soft_reboots: u64,
    /// How many hard reboots were asked for, ever.
    pub hard_reboots: u64,
    /// Locked servers refuse actions of non-admins.
    pub locked: bool,
    /// Why, if locked.
    pub locked_reason: Option<String>,
    /// Nova's reservation id: servers created by one request share it.
    pub reservation_id: String,
    /// Index in that request.
    pub launch_index: u64,
    /// Creation, Unix milliseconds.
    pub created_at: Millis,
    /// Last change of a wish, Unix milliseconds. For people and `changes-since`.
    pub updated_at: Millis,
    /// Request id of the last action, and what it was: Nova's instance actions.
    pub actions: BTreeMap<String, ServerAction>,
    /// The server group that it was created in; it never changes.
    #[serde(default)]
    pub group: Option<Uuid>,
}

/// One line of a server's history, keyed by request id.
#[derive(Clone, Debug, PartialEq, Eq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct ServerAction {
    /// `create`, `stop`, …
    pub action: String,
    /// Who.
    pub user: Uuid,
    /// When, Unix milliseconds.
    pub start: Millis,
}

/// A token that stopped working before its time. Kept until it would have expired anyway.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Revocation {
    /// The token's audit id.
    pub audit_id: String,
    /// When the token expires by itself, Unix milliseconds.
    pub expires_at: Millis,
}

/// What a server group asks of the places of its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub enum GroupPolicy {
    /// All on one host, or not at all.
    Affinity,
    /// Never more than the group's limit on one host.
    AntiAffinity,
    /// On one host as far as there is room.
    SoftAffinity,
    /// On as many hosts as there are.
    #[default]
    SoftAntiAffinity,
}

impl GroupPolicy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Affinity, Self::AntiAffinity, Self::SoftAffinity, Self::SoftAntiAffinity];

    /// Nova's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti-affinity",
            Self::SoftAffinity => "soft-affinity",
            Self::SoftAntiAffinity => "soft-anti-affinity",
        }
    }
}

/// Servers that belong together, or apart. A hard policy holds while sites are cut off from each other, because the
/// right to place a member is spent like any other (`Subject::Group`).
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct ServerGroup {
    /// The owner.
    pub project: Uuid,
    /// Who created it.
    pub user: Uuid,
    /// Not unique.
    pub name: String,
    /// Never changes.
    pub policy: GroupPolicy,
    /// Anti-affinity: how many members one host may have, at least 1; never changes. 0 for other policies.
    pub max_per_host: u64,
    /// Whether the limit was given by the user: Nova shows only such a one.
    pub has_limit: bool,
}

/// Hosts that have something in common, which flavors can ask for.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Aggregate {
    /// Unique in the cloud.
    pub name: String,
    /// The zone that all its hosts are of; empty if none was named. Zones are sites.
    pub availability_zone: String,
    /// What its hosts have, for `aggregate_instance_extra_specs` of flavors.
    pub metadata: BTreeMap<String, String>,
    /// Its hosts: their ids (the values are empty).
    pub hosts: BTreeMap<String, String>,
    /// Creation, Unix milliseconds.
    pub created_at: Millis,
    /// Last change, Unix milliseconds. For people; 0 if there was none.
    pub updated_at: Millis,
}

/// Addresses that are handed out one by one. Which they are, and who holds them, is the pool whose subject names this
/// record and that was minted by the entry that created it ([`crate::view::View::address_pool`]).
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct AddressPool {
    /// Unique in the cloud.
    pub name: String,
    /// For people.
    pub description: String,
    /// Creation, Unix milliseconds.
    pub created_at: Millis,
}

/// Addresses that an operator has taken: its live claims say which. Deleting it returns them.
#[derive(Clone, Debug, PartialEq, Default, Reconcile, Hydrate, Serialize, Deserialize)]
pub struct Address {
    /// Of which [`AddressPool`]; never changes.
    pub pool: Uuid,
    /// For people.
    pub purpose: String,
    /// Creation, Unix milliseconds.
    pub created_at: Millis,
}

/// Any record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant is the kind of its name")]
pub enum Record {
    Site(Site),
    Host(Host),
    Project(Project),
    User(User),
    Assignment(Assignment),
    Flavor(Flavor),
    Image(Image),
    Keypair(Keypair),
    Server(Arc<Server>),
    Revocation(Revocation),
    ServerGroup(ServerGroup),
    Aggregate(Aggregate),
    AddressPool(AddressPool),
    Address(Address),
}

impl Record {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Site(_) => Kind::Site,
            Self::Host(_) => Kind::Host,
            Self::Project(_) => Kind::Project,
            Self::User(_) => Kind::User,
            Self::Assignment(_) => Kind::Assignment,
            Self::Flavor(_) => Kind::Flavor,
            Self::Image(_) => Kind::Image,
            Self::Keypair(_) => Kind::Keypair,
            Self::Server(_) => Kind::Server,
            Self::Revocation(_) => Kind::Revocation,
            Self::ServerGroup(_) => Kind::ServerGroup,
            Self::Aggregate(_) => Kind::Aggregate,
            Self::AddressPool(_) => Kind::AddressPool,
            Self::Address(_) => Kind::Address,
        }
    }
}

/// UUIDv5 namespace of everything LUC derives from names.
pub const NAMESPACE: Uuid = Uuid::from_u128(0x6c75_6300_5a1e_5c0d_8e11_0f5d_15c0_7e12);

/// The id of the record of the site called `name`.
#[must_use]
pub fn site_record(name: &str) -> RecordId {
    RecordId { kind: Kind::Site, id: Uuid::new_v5(&NAMESPACE, format!("site/{name}").as_bytes()) }
}

/// The id of the record of a host.
#[must_use]
pub fn host_record(host: HostId) -> RecordId {
    RecordId { kind: Kind::Host, id: host.0 }
}
