//! Who can be reached, and what is known of those who cannot: soft state, with its age. Nothing here enters the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use luc_engine::entry::Frontier;
use luc_engine::id::{HostId, ReplicaId, SiteName};

use crate::net::Net;
use crate::wire::{self, Status};

/// A peer that was not heard for so long, besides the time that it takes to tell all, is out of reach.
const SILENT: Duration = Duration::from_millis(2_500);

/// How another replica is reached, as seen from here.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Which.
    pub replica: ReplicaId,
    /// Heard within the last seconds.
    pub reachable: bool,
    /// Since when it is reachable or not; none if it never was since this replica started.
    pub since: Option<Duration>,
    /// How long ago it was last heard; none if it never was since this replica started. What is known of it is as old.
    pub heard: Option<Duration>,
    /// Round trip time.
    pub rtt: Option<Duration>,
    /// Entries that it holds and this replica lacks.
    pub behind: u64,
    /// Entries that this replica holds and it lacks, as it last said.
    pub ahead: u64,
    /// Whether it had the state that is here when it last had the entries that are here; none if it never had since this replica
    /// started.
    pub same_state: Option<bool>,
    /// What it said of itself last.
    pub status: Status,
}

/// How long a replica that starts waits to hear what the others hold of its own entries.
const MEET: Duration = Duration::from_millis(1_500);
/// And how long for the agents of its site's hosts, who dial: each has to notice first that the last connection is gone.
const AGENTS: Duration = Duration::from_secs(5);

impl Net {
    /// How all other members are reached.
    #[must_use]
    pub fn reach(&self) -> Vec<Reach> {
        let view = self.inner.node.view();
        let peers = self.inner.peers.lock().clone();
        let seen = self.inner.reach.lock().clone();
        let silent = SILENT + Duration::from_millis(crate::proto::turn(peers.len()));
        let others = view.members().filter(|(id, _)| **id != self.inner.node.me());
        let reach = others.map(|(id, _)| {
            let known = seen.get(id).cloned().unwrap_or_default();
            let peer = peers.get(id);
            let reachable = peer.is_some() && known.heard.is_some_and(|heard| heard.elapsed() < silent);
            let since = if reachable { peer.map(|peer| peer.since) } else { known.lost.or(known.heard) };
            Reach {
                replica: *id,
                reachable,
                since: since.map(|since| since.elapsed()),
                heard: known.heard.map(|heard| heard.elapsed()),
                rtt: peer.filter(|_| reachable).map(|peer| peer.connection.rtt()),
                behind: view.frontier().missing(&known.reported),
                ahead: known.reported.missing(view.frontier()),
                same_state: known.same_state,
                status: known.status,
            }
        });
        reach.collect()
    }

    /// What every member that takes part is known to hold. Nothing until each has told.
    #[must_use]
    pub fn stable(&self) -> Arc<Frontier> {
        self.inner.stable.load_full()
    }

    /// Whether a replica can be reached now.
    #[must_use]
    pub fn is_reachable(&self, replica: ReplicaId) -> bool {
        let heard = self.inner.reach.lock().get(&replica).and_then(|seen| seen.heard);
        replica == self.inner.node.me()
            || (heard.is_some_and(|heard| heard.elapsed() < SILENT) && self.inner.peers.lock().contains_key(&replica))
    }

    /// Meets the others, and then lets this replica write.
    pub(crate) async fn begin(self) {
        self.meet(MEET, AGENTS).await;
        let node = &self.inner.node;
        let is_seen =
            node.agents().witnesses() > 0 || self.inner.reach.lock().values().any(|seen| seen.heard.is_some());
        if !is_seen {
            tracing::warn!(
                "no witness: neither another replica nor an agent on another machine is here to tell whether this disk is \
                 an old copy"
            );
        }
        node.begin().await;
    }

    /// Waits until every other member that takes part has told what it holds, and the agents of this site's hosts what
    /// they were told, or until these limits: a replica that starts from an old copy of its store learns it here, before it
    /// writes (`PROTOCOL.md`, M4), and one whose state was given to it, whether the others have the same (R14). A site that is
    /// cut off goes on all the same.
    pub async fn meet(&self, members: Duration, agents: Duration) {
        let node = &self.inner.node;
        let started = Instant::now();
        let view = node.view();
        let others = crate::agents::others(&view, node.me());
        let hosts = crate::agents::hosts_of(&view, node.site());
        let met = |id: &ReplicaId| self.inner.reach.lock().get(id).is_some_and(|seen| seen.met);
        let proving = || self.inner.proving.load(Ordering::Acquire);
        let awaits_members = || proving() || node.on_trust().is_some() || !others.iter().all(met);
        let awaits_agents = || !hosts.iter().all(|host| node.agents().has_met(*host));
        let waits = |passed| (passed < members && awaits_members()) || (passed < agents && awaits_agents());
        while node.fence().is_none() && waits(started.elapsed()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The replicas of a site that can be reached now.
    #[must_use]
    pub fn reachable_in(&self, site: &SiteName) -> Vec<ReplicaId> {
        let view = self.inner.node.view();
        let there = view.members().filter(|(_, state)| state.member.site == *site && !state.revoked);
        there.map(|(id, _)| *id).filter(|id| self.is_reachable(*id)).collect()
    }

    /// What is known of a host: from its agent here, or from what its site last told; with its age in milliseconds.
    #[must_use]
    pub fn host_status(&self, host: HostId) -> Option<wire::HostStatus> {
        let here = self.inner.node.agents().status(host);
        // A replica speaks for the hosts of its own site.
        let told = || {
            let view = self.inner.node.view();
            let site = view.site_of_host(host)?;
            let reach = self.inner.reach.lock();
            let there = |id: &ReplicaId| view.member(*id).is_some_and(|state| state.member.site == site);
            let statuses = reach.iter().filter(|(id, _)| there(id)).filter_map(|(_, seen)| {
                let status = seen.status.hosts.iter().find(|status| status.host == host)?;
                let since = u64::try_from(seen.heard?.elapsed().as_millis()).ok()?;
                Some(wire::HostStatus { age: status.age.map(|age| age.saturating_add(since)), ..status.clone() })
            });
            statuses.min_by_key(|status| status.age.unwrap_or(u64::MAX))
        };
        here.or_else(told)
    }

    /// Whether a host may be given a new server: not if its site can be reached and says that it is silent.
    #[must_use]
    pub fn may_place_on(&self, host: HostId) -> bool {
        if self.inner.node.agents().is_up(host) {
            return true;
        }
        let view = self.inner.node.view();
        let Some(site) = view.site_of_host(host) else { return false };
        if site == *self.inner.node.site() && self.reachable_in(&site).iter().all(|id| *id == self.inner.node.me()) {
            return false;
        }
        match self.host_status(host) {
            Some(status) => {
                let fresh = status.age.is_some_and(|age| age < 15_000) && status.heartbeat.hypervisor_up;
                fresh || self.reachable_in(&site).is_empty()
            }
            // Nobody of its site has told how its hosts are: that is unknown, not down.
            None => {
                let reachable = self.reachable_in(&site);
                let reach = self.inner.reach.lock();
                !reachable.iter().any(|id| reach.get(id).is_some_and(|seen| seen.status.at > 0))
            }
        }
    }
}
