//! Which pool of a host counts (`PROTOCOL.md`, S3).
//!
//! A host's pool is minted by whichever replica of its site meets its agent first, and two that are cut off from each
//! other may both do so. Its **agent** decides: it is told one pool, keeps it on its disk, and names it from then on.
//! Rights to a host are shared and spent only once a replica has written down what the agent said
//! ([`crate::record::Host::pool`]), so a pool that the agent never took is never spent by anybody. It is **surplus**: who
//! holds free rights of it burns them. Were every pool counted that was minted, a host that two replicas met apart
//! would promise itself twice, and half of the promises would end in refusals.

use crate::entry::Subject;
use crate::id::{HostId, PoolId, ReplicaId};
use crate::ledger::{Amount, Pool};
use crate::record::Host;
use crate::view::View;

impl View {
    /// The pool of a host that its agent serves: the only one whose rights are spent.
    #[must_use]
    pub fn host_pool(&self, host: HostId) -> Option<(PoolId, &Pool)> {
        let served = self.get::<Host>(host.0)?.served_pool()?;
        self.ledger().host_pools(host).find(|(id, _)| *id == served)
    }

    /// Whether the agent of a pool's host is known to serve another: what is free of it is to be burnt.
    #[must_use]
    pub fn is_surplus(&self, id: PoolId) -> bool {
        let Some(Subject::Host(host)) = self.ledger().pool(id).map(|pool| &pool.subject) else { return false };
        let served = self.get::<Host>(host.host.0).and_then(Host::served_pool);
        served.is_some_and(|served| served != id)
    }

    /// What of a host's surplus pools is still to be burnt: claims that were made on them, and rights that others hold.
    #[must_use]
    pub fn surplus(&self, host: HostId) -> Amount {
        let surplus = self.ledger().host_pools(host).filter(|(id, _)| self.is_surplus(*id));
        surplus.fold(Amount::default(), |sum, (_, pool)| sum.saturating_add(&pool.capacity()))
    }

    /// Whether a pool can never come to be: its author was retired before the entry that would have minted it.
    #[must_use]
    pub fn is_void(&self, id: PoolId) -> bool {
        self.retired().cut(id.entry.author).is_some_and(|cut| id.entry.number > cut)
    }
}

/// The free rights of surplus pools that `replica` holds, of the hosts named.
pub(crate) fn to_burn(view: &View, replica: ReplicaId, hosts: impl Iterator<Item = HostId>) -> Vec<(PoolId, Amount)> {
    let pools = hosts.flat_map(|host| view.ledger().host_pools(host));
    let surplus = pools.filter(|(id, _)| view.is_surplus(*id));
    let free = surplus.map(|(id, pool)| (id, pool.free(replica)));
    free.filter(|(_, free)| !free.is_zero()).collect()
}
