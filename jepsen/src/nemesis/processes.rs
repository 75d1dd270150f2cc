//! Faults of processes, and what is planned for each.

use anyhow::{Context, Result};

use super::disks::Copy;
use super::{Act, Name, Nemesis, Planned, Undo};
use crate::cluster::node::Role;
use crate::run::Fault;

impl Nemesis<'_> {
    /// Whom a fault hits and how, by chance; none if there is no room for it beside the others.
    pub(super) fn plan(&mut self, name: Name) -> Result<Option<Planned>> {
        let some = |planned: Option<(Fault, Vec<usize>)>, act: fn(Vec<usize>) -> Act| {
            planned.map(|(fault, nodes)| Planned { fault, act: act(nodes) })
        };
        Ok(match name {
            Name::Partition => self.partition()?,
            Name::Slow => self.slow()?,
            Name::Kill => some(self.some_nodes("killed (kill -9)"), Act::Kill),
            Name::Pause => some(self.some_nodes("stopped (SIGSTOP)"), Act::Pause),
            Name::Libvirt => some(self.some_nodes("libvirt killed"), Act::Libvirt),
            Name::Roll => {
                let detail = "all replicas restarted, one after the other".to_owned();
                let sites = self.cluster()?.spec().sites.clone();
                Some(Planned { fault: Fault { sites, detail, ..Fault::default() }, act: Act::Roll })
            }
            Name::Clock => {
                let by = match self.rng.below(4) {
                    0 => format!("+{}", self.rng.between(1, 600)),
                    1 => format!("-{}", self.rng.between(1, 600)),
                    2 => format!("{}{}d", if self.rng.chance(500) { "+" } else { "-" }, self.rng.between(1, 30)),
                    _ => format!("+0 x{}.{}", self.rng.below(2), self.rng.between(5, 9)),
                };
                let planned = self.some_nodes(&format!("clock set to {by:?} (libfaketime)"));
                planned.map(|(fault, nodes)| Planned { fault, act: Act::Clock(nodes, by) })
            }
            Name::Wipe => self.one_to_lose("disk lost", Act::Wipe),
            Name::Rollback => self.one_to_lose("disk rolled back", Act::Rollback),
            Name::Full => self.one_replica("disk full; M4 says nothing of it: nothing is lost", Act::Fill),
            Name::Clone if self.rng.chance(500) => {
                let what = "a copy of the disk in its place; M4: it is a copy, and writes nothing; nothing is lost";
                self.one_replica(what, |at| Act::Copied(at, Copy::InPlace))
            }
            Name::Clone => {
                let what =
                    "a second process on a copy of the disk; M4: it is a copy, and writes nothing; nothing is lost";
                self.one_replica(what, |at| Act::Copied(at, Copy::Beside))
            }
            Name::Members => {
                let sites = self.cluster()?.spec().sites.clone();
                let at = usize::try_from(self.rng.below(u64::try_from(sites.len())?))?;
                let site = sites.get(at).context("no such site")?.clone();
                let detail = format!("a further replica joins at {site}");
                Some(Planned { fault: Fault { sites: vec![site], detail, ..Fault::default() }, act: Act::Newcomer(at) })
            }
            Name::Revoke => self.revocation()?,
            Name::Resize => {
                let permille = self.rng.between(300, 900);
                self.one_replica(&format!("host has {permille} ‰ of its memory"), |at| Act::Resize(at, permille))
            }
        })
    }

    /// A replica whose disk may be lost: with those that are about to leave, it leaves the others a majority.
    fn one_to_lose(&mut self, what: &str, act: impl Fn(usize) -> Act) -> Option<Planned> {
        let at = self.a_replica()?;
        let cluster = self.around.cluster.as_deref()?;
        let leaves = |open: &&super::Open| open.undo.needs_others();
        let leaving = self.open.iter().filter(leaves).flat_map(|open| open.nodes.iter().copied());
        let revoked = (0..cluster.nodes.len()).filter(|at| self.is_revoked(*at));
        let gone: Vec<usize> = leaving.chain(revoked).chain([at]).collect();
        cluster.can_lose(&gone).then(|| Planned { fault: self.hitting(&[at], what), act: act(at) })
    }

    fn one_replica(&mut self, what: &str, act: impl Fn(usize) -> Act) -> Option<Planned> {
        let at = self.a_replica()?;
        Some(Planned { fault: self.hitting(&[at], what), act: act(at) })
    }

    /// Restarts all replicas that no other fault has, one after the other, with the other binary.
    pub(super) fn roll(&mut self) -> Result<Undo> {
        let free = self.free_nodes();
        let cluster = self.cluster()?;
        let (luc, other) = (cluster.spec().luc.clone(), cluster.spec().other.clone());
        for at in free {
            let Some(node) = cluster.nodes.get_mut(at).filter(|node| node.role == Role::Replica) else { continue };
            node.stop();
            node.luc = if node.luc == luc { other.clone().unwrap_or_else(|| luc.clone()) } else { luc.clone() };
            node.start()?;
            node.ready()?;
        }
        Ok(Undo::Over)
    }

    /// Gives a host so much of its memory, and restarts its agent with it.
    pub(super) fn resize(&mut self, at: usize, permille: u64) -> Result<Undo> {
        self.each(&[at], |node| {
            node.resize(permille)?;
            node.stop();
            Ok(())
        })?;
        self.start(&[at])?;
        Ok(Undo::Resize)
    }

    /// Mostly one, sometimes up to half of the nodes that no other fault has, by chance; none if there are none.
    pub(super) fn some_nodes(&mut self, what: &str) -> Option<(Fault, Vec<usize>)> {
        let mut free = self.free_nodes();
        let most = u64::try_from(free.len().div_ceil(2)).ok()?;
        let count = if self.rng.chance(700) { 1 } else { self.rng.between(1, most.max(1)) };
        let mut nodes = Vec::new();
        for _ in 0..count.min(most) {
            let at = usize::try_from(self.rng.below(u64::try_from(free.len()).ok()?)).ok()?;
            nodes.push(free.swap_remove(at));
        }
        (!nodes.is_empty()).then(|| (self.hitting(&nodes, what), nodes))
    }

    /// A fault of these nodes.
    pub(super) fn hitting(&self, nodes: &[usize], what: &str) -> Fault {
        let all = self.around.cluster.as_deref().map(|cluster| cluster.nodes.as_slice()).unwrap_or_default();
        let hit = || nodes.iter().filter_map(|at| all.get(*at));
        let names: Vec<&str> = hit().map(|node| node.name.as_str()).collect();
        let sites: std::collections::BTreeSet<String> = hit().map(|node| node.site.clone()).collect();
        let detail = format!("{what}: {}", names.join(", "));
        Fault { sites: sites.into_iter().collect(), detail, ..Fault::default() }
    }

    /// Nodes that no fault has now.
    pub(super) fn free_nodes(&self) -> Vec<usize> {
        let all = self.around.cluster.as_deref().map(|cluster| cluster.nodes.as_slice()).unwrap_or_default();
        let here = all.iter().enumerate().filter(|(_, node)| !node.left).map(|(at, _)| at);
        let taken = |at: &usize| self.is_revoked(*at) || self.open.iter().any(|open| open.nodes.contains(at));
        here.filter(|at| !taken(at)).collect()
    }
}
