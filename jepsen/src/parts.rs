//! A member, a host, a server, as the benchmarks make them: they measure one replica, or few, without network or machines.

use ed25519_dalek::SigningKey;
use luc_engine::entry::{HostIdentity, Member, Subject};
use luc_engine::id::{CloudId, PoolId, ReplicaId, SiteName};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Host, ImageData, Server, ServerFlavor, ServerImage};
use luc_engine::tx::{Refusal, Tx};
use uuid::Uuid;

/// What stops a benchmark.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The key of the `n`th member, or agent: for ever the same.
#[must_use]
pub fn key(n: u32) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(&n.to_be_bytes()).as_bytes())
}

/// The key of the agent of host `n`.
#[must_use]
pub fn agent_key(n: u32) -> SigningKey {
    key((1 << 16) + n)
}

/// The `n`th member, at a site of its own.
///
/// # Errors
/// A number that makes no name of a site.
pub fn member(n: u32) -> Fallible<Member> {
    let public_key = key(n).verifying_key().to_bytes();
    Ok(Member {
        replica: ReplicaId::of_key(&public_key),
        public_key,
        site: SiteName::new(&format!("site-{n}"))?,
        addresses: vec![format!("replica-{n}.example:4786")],
        identity_authority: true,
        sponsor: true,
        index: n,
    })
}

/// An id as random as those of servers are: rows of one table are not written in order.
#[must_use]
pub fn scattered(n: u128) -> Uuid {
    let hash = blake3::hash(&n.to_be_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    Uuid::from_bytes(id)
}

/// What `n` servers use of a project's quota.
#[must_use]
pub fn quota(n: u64) -> Amount {
    let of = [(Dimension::Instances, n), (Dimension::Vcpus, n), (Dimension::MemoryMib, 2_048 * n)];
    of.into_iter().collect()
}

/// What `n` servers use of a host.
#[must_use]
pub fn room(n: u64) -> Amount {
    [(Dimension::Vcpus, n), (Dimension::MemoryMib, 2_048 * n), (Dimension::DiskGib, 20 * n)].into_iter().collect()
}

/// Makes host `n` of a site, with room for a million servers.
///
/// # Errors
/// [`Refusal`] if the transaction is not of that site.
pub fn make_host(tx: &mut Tx<'_>, cloud: CloudId, site: &SiteName, n: u32) -> Result<PoolId, Refusal> {
    let identity = HostIdentity::sign(cloud, site, &agent_key(n));
    let host = identity.host;
    let pool = tx.mint(Subject::Host(identity), room(1_000_000))?;
    let record = Host {
        name: format!("host-{n}"),
        site: site.to_string(),
        hypervisor_type: "KVM".into(),
        architecture: "x86_64".into(),
        pool: pool.to_string(),
        ..Host::default()
    };
    tx.create(host.0, record, &[])?;
    Ok(pool)
}

/// A server as users create them: about thirty fields, most of them small.
#[must_use]
pub fn server(project: Uuid) -> Server {
    let flavor = ServerFlavor {
        record: Uuid::from_u128(2),
        flavor_id: "1".into(),
        name: "m1.small".into(),
        vcpus: 1,
        ram_mib: 2_048,
        disk_gib: 20,
        ..ServerFlavor::default()
    };
    let data = ImageData {
        blob: "0".repeat(64),
        size: 1 << 28,
        virtual_size: 1 << 31,
        md5: "0".repeat(32),
        sha512: "0".repeat(128),
        site: "site-1".into(),
    };
    Server {
        project,
        user: Uuid::from_u128(3),
        name: "web-1".into(),
        description: "web-1".into(),
        hostname: "web-1".into(),
        flavor,
        image: Some(ServerImage { record: Uuid::from_u128(4), disk_format: "qcow2".into(), data }),
        key_name: Some("mine".into()),
        public_key: Some("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHxAgI0mdSMAzyDAs7dhqKBUx0ZQ mine".into()),
        admin_pass: "abcdefghijkl".into(),
        reservation_id: "r-01234567".into(),
        created_at: 1_700_000_000_000,
        updated_at: 1_700_000_000_000,
        ..Server::default()
    }
}
