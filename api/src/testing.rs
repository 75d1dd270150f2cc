//! What unit tests of this crate share.
#![allow(clippy::unwrap_used)]

use luc_engine::entry::Member;
use luc_engine::id::{ReplicaId, SiteName};
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::store::MemoryStore;

/// The first replica of a cloud, in memory.
pub(crate) fn founder() -> Replica {
    let key = luc_sync::rpc::new_key([7; 32]);
    let public_key = key.verifying_key().to_bytes();
    let member = Member {
        replica: ReplicaId::of_key(&public_key),
        public_key,
        site: SiteName::new("paris").unwrap(),
        addresses: Vec::new(),
        identity_authority: true,
        sponsor: true,
        index: 0,
    };
    let identity = Identity { cloud: founded_by(&public_key), key };
    Replica::found(identity, Box::new(MemoryStore::default()), member, 1).unwrap()
}
