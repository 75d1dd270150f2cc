//! What agents and replicas say to each other.
//!
//! A replica gives **orders**: for each server that holds a claim on the host, what is wanted. An order is the whole
//! wish, never a step, so a lost or repeated one does no harm. The agent answers with **observations** (what it sees)
//! and **statements** (what it promises for ever, signed). Nothing an agent is ordered rests on an entry that is not
//! flushed (`PROTOCOL.md`, E2).
//!
//! An agent is also its replicas' **witness** (M4): it keeps the last entry that each has told it of, on a disk of its
//! own, and shows that to whoever connects. So a replica whose disk was rolled back hears of what it has lost, though no
//! peer can be reached, before it writes those numbers again.

use std::sync::Arc;

use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::entry::{HostIdentity, Tip, is_signed};
use crate::id::{ClaimId, CloudId, HostId, Millis, PoolId, ReplicaId};
use crate::record::Server;

/// Replica to agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// The first message after the agent's [`FromAgent::Hello`]: every order that stands, whole. Servers of this cloud
    /// on the host that are not among them are orphans, unless a later order names them.
    Orders(Vec<Order>),
    /// One order was given or has changed.
    Order(Box<Order>),
    /// The host's pool, in answer to a [`FromAgent::Hello`] that names none, or one that will never count. Once it is on
    /// its disk, the agent introduces itself again, with this pool (S3); until then it is given no order.
    Pool {
        /// The pool.
        pool: PoolId,
        /// The pool that it replaces; an agent that serves another than this keeps it.
        instead_of: Option<PoolId>,
    },
    /// The pool that the host serves was declared dead (S5): from now on, whatever is ordered, nothing is started for it, and
    /// what runs is stopped. Its data stays until an order says that it shall go.
    Dead(PoolId),
    /// The replica's entry holding this statement is durable: the agent need not send it again.
    StatementHeld(ClaimId),
    /// How far the replica's own log goes: to be kept, and shown on every later connection. Said before any order that
    /// rests on those entries.
    Witness(Box<SignedTip>),
    /// Ask for the last `lines` of a server's console (all that is kept if none).
    Console {
        /// Repeated in the answer.
        request: u64,
        /// The server.
        server: Uuid,
        /// How many lines from the end.
        lines: Option<u64>,
    },
}

/// Agent to replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromAgent {
    /// What replicas have told this agent of their logs, if any has: before the first [`FromAgent::Hello`].
    Witnessed(Vec<SignedTip>),
    /// The first message on a connection but for that, and again after each [`ToAgent::Pool`].
    Hello(Box<HostFacts>),
    /// What the agent sees of one server. Sent when it changes, and for all servers after `Hello`.
    Observed(Box<Observation>),
    /// A signed promise. Repeated after each `Hello` until [`ToAgent::StatementHeld`].
    Stated(Statement),
    /// Soft state, every few seconds: never enters the log.
    Heartbeat(Heartbeat),
    /// The answer to [`ToAgent::Console`].
    ConsoleOutput {
        /// The request's number.
        request: u64,
        /// The text, or why there is none.
        output: Result<String, String>,
    },
}

/// A host, as its agent introduces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Host name.
    pub name: String,
    /// Which host, of which site: signed by the agent.
    pub identity: HostIdentity,
    /// Raised each time the agent starts without its old disk (S4); 1 at first.
    pub incarnation: u64,
    /// `QEMU`, `KVM` or `test`.
    pub hypervisor_type: String,
    /// As libvirt numbers it.
    pub hypervisor_version: u64,
    /// Physical processors.
    pub cpus: u64,
    /// Physical memory that servers may use, MiB.
    pub memory_mib: u64,
    /// Disk that servers may use, GiB.
    pub disk_gib: u64,
    /// vCPU a physical processor is promised as.
    pub cpu_overcommit: u64,
    /// The processor's architecture: `x86_64`, `aarch64`.
    #[serde(default)]
    pub architecture: String,
    /// The pool whose claims it obeys, and no others: told by a replica once, and on the agent's disk ever since (S3).
    /// While it is none, no right to the host is spent by anybody.
    #[serde(default)]
    pub pool: Option<PoolId>,
}

/// The whole wish for one server on one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The server; also the domain's UUID.
    pub server: Uuid,
    /// The claim on this host that allows it to run here. No claim, no start (rule `host-truth`).
    pub claim: ClaimId,
    /// The pool that the claim is on. An agent starts nothing for another pool than its own (S3).
    pub pool: PoolId,
    /// The server's placement epoch (S1). An agent obeys no lower epoch than it has seen for the server.
    pub epoch: u64,
    /// What is wanted.
    pub wanted: Wanted,
    /// Whether it may be started under this order (S1).
    pub vouched: Vouched,
}

/// Whether the replica that holds a claim stands by it: it alone may place its server elsewhere, and knows whether it has.
/// Else a host that returns after it was declared dead and its servers were placed anew starts its old copies from the wish
/// of a replica that has not heard of it. What runs already needs no word, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Vouched {
    /// It does, and has said so since the agent connected.
    Yes,
    /// It is being asked.
    Asked,
    /// It cannot be asked, or does not: it is asked again.
    No,
}

/// What is wanted of a server on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Wanted {
    /// It shall exist as its record says: disk, config-drive, power, reboots.
    Present {
        /// The record. Its `flavor`, `image`, keys, user data and metadata make the machine; `power`, `soft_reboots`
        /// and `hard_reboots` drive it.
        server: Arc<Server>,
        /// Name of the project, for the guest's metadata.
        project_name: String,
    },
    /// It shall be gone, with its disk, and never be started for this claim: the agent answers with a [`Statement`].
    Absent,
}

/// What an agent sees of a server. The newest by `order()` wins, whichever replica wrote it down (S4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The host.
    pub host: HostId,
    /// The server.
    pub server: Uuid,
    /// The claim it was ordered under.
    pub claim: ClaimId,
    /// Placement epoch of the order that the agent last obeyed.
    pub epoch: u64,
    /// The agent's incarnation.
    pub incarnation: u64,
    /// Counts the agent's observations of this server up; kept on its disk.
    pub counter: u64,
    /// When, by the agent's clock. For people.
    pub at: Millis,
    /// What it is now.
    pub state: DomainState,
    /// What the agent is doing towards the wish, if anything.
    pub task: Option<Task>,
    /// How many soft reboots it has done or superseded.
    pub soft_reboots: u64,
    /// How many hard reboots it has done or superseded.
    pub hard_reboots: u64,
    /// The `power_changes` of the last wish for power that it has brought about: from then on the machine is its
    /// guest's, and one that powered itself off stays off.
    pub power_changes: u64,
    /// When the domain first ran, Unix milliseconds.
    pub launched_at: Option<Millis>,
    /// Why the wish cannot be met, for the user; none while it is met or under way.
    pub fault: Option<Fault>,
}

impl Observation {
    /// The order of observations of one server (S4).
    #[must_use]
    pub fn order(&self) -> (u64, u64, u64) {
        (self.epoch, self.incarnation, self.counter)
    }
}

/// What libvirt says of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DomainState {
    /// Not defined here yet.
    Missing,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Shut off, disk kept.
    Shutoff,
    /// Memory saved to disk.
    Saved,
    /// Crashed, or ended without being asked.
    Crashed,
}

/// What an agent is doing to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Waiting for the image's data. `done` and `size` in bytes are in [`Heartbeat::transfers`].
    FetchingImage,
    /// Making disk, config-drive and domain.
    Spawning,
    /// Starting, stopping, pausing, resuming, saving, restoring.
    Powering,
    /// Rebooting.
    Rebooting,
    /// Removing domain and disk.
    Deleting,
}

/// Why a wish cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// For the user.
    pub message: String,
    /// Whether the agent goes on trying (the image's site is out of reach), or has given up until the wish changes.
    pub retrying: bool,
}

/// Soft state of a host.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Agent's clock, Unix milliseconds.
    pub at: Millis,
    /// Domains of this cloud that run.
    pub running: u64,
    /// Load average over a minute, in hundredths.
    pub load_hundredths: u64,
    /// Memory free, MiB.
    pub memory_free_mib: u64,
    /// Disk free where servers live, GiB.
    pub disk_free_gib: u64,
    /// Whether libvirt answers.
    pub hypervisor_up: bool,
    /// Domains with this cloud's metadata that no order names: reported, never touched.
    pub orphans: Vec<Orphan>,
    /// Image transfers under way: blob, bytes done, bytes in all.
    pub transfers: Vec<(String, u64, u64)>,
}

/// What an agent has of a server that no order names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// The server.
    pub server: Uuid,
    /// The claim that it was last ordered under.
    pub claim: ClaimId,
    /// Placement epoch of that order.
    pub epoch: u64,
}

/// An agent's promise, kept on its disk before it is given: the domain of `server` is gone from this host and will
/// never be started for `claim` (A3). It is the evidence with which the claim's holder releases it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The host.
    pub host: HostId,
    /// The server.
    pub server: Uuid,
    /// The claim that nothing will ever be started for.
    pub claim: ClaimId,
    /// The agent's incarnation.
    pub incarnation: u64,
    /// Ed25519 signature by the agent's key over what it says, with the cloud.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl Statement {
    /// Makes and signs a statement. Call only after the refusal is on the agent's disk.
    #[must_use]
    pub fn sign(
        cloud: CloudId,
        host: HostId,
        server: Uuid,
        claim: ClaimId,
        incarnation: u64,
        key: &SigningKey,
    ) -> Self {
        let mut statement = Self { host, server, claim, incarnation, signature: Vec::new() };
        statement.signature = key.sign(&statement.signed_bytes(cloud)).to_bytes().to_vec();
        statement
    }

    /// Whether `agent_key` signed this for `cloud`.
    #[must_use]
    pub fn verify(&self, cloud: CloudId, agent_key: &[u8; 32]) -> bool {
        is_signed(agent_key, &self.signed_bytes(cloud), &self.signature)
    }

    /// What is signed: a domain-separating prefix, then every field at a fixed width.
    fn signed_bytes(&self, cloud: CloudId) -> Vec<u8> {
        let mut bytes = b"luc/statement/1\0".to_vec();
        bytes.extend(cloud.0.as_bytes());
        bytes.extend(self.host.0.as_bytes());
        bytes.extend(self.server.as_bytes());
        bytes.extend(self.claim.entry.author.0.as_bytes());
        bytes.extend(self.claim.entry.number.to_be_bytes());
        bytes.extend(self.claim.index.to_be_bytes());
        bytes.extend(self.incarnation.to_be_bytes());
        bytes
    }
}

/// A replica's signed word that its own log goes as far as this entry. Kept by a witness, it proves to that replica that
/// its store is an old copy (M4); nobody else can make one, so nobody else can silence it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTip {
    /// The replica; follows from the key.
    pub replica: ReplicaId,
    /// Its public key.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
    /// Its last entry.
    pub tip: Tip,
    /// Ed25519 signature by that key over cloud, number and hash.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl SignedTip {
    /// Makes and signs one. Call only with an entry that is flushed (E2).
    #[must_use]
    pub fn sign(cloud: CloudId, tip: Tip, key: &SigningKey) -> Self {
        let public_key = key.verifying_key().to_bytes();
        let signature = key.sign(&tip_bytes(cloud, tip)).to_bytes().to_vec();
        Self { replica: ReplicaId::of_key(&public_key), public_key, tip, signature }
    }

    /// Whether its replica signed this for `cloud`.
    #[must_use]
    pub fn verify(&self, cloud: CloudId) -> bool {
        let is_own_key = ReplicaId::of_key(&self.public_key) == self.replica;
        is_own_key && is_signed(&self.public_key, &tip_bytes(cloud, self.tip), &self.signature)
    }
}

fn tip_bytes(cloud: CloudId, tip: Tip) -> Vec<u8> {
    let (number, hash) = (tip.number.to_be_bytes(), tip.hash.to_be_bytes());
    [b"luc/tip/1\0".as_slice(), cloud.0.as_bytes(), &number, &hash].concat()
}
