//! Faults of disks. Each is a case of `PROTOCOL.md`, M4, and says which acknowledged writes it may lose: those that only that
//! disk held. Survivors are asked which of its replica's entries they hold, when it can send no more.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Nemesis, Undo};
use crate::cluster::node::Role;
use crate::run::{Excuse, Fault};
use crate::runner::sampler::Seen;

/// What was sent before the end may still arrive.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// A copy of a disk, and what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// It takes the place of the disk.
    InPlace,
    /// A second process runs on it.
    Beside,
}

impl Nemesis<'_> {
    /// A replica that no other fault has, by chance. None if so few would be left that nothing can be agreed.
    pub(super) fn a_replica(&mut self) -> Option<usize> {
        let cluster = self.around.cluster.as_deref()?;
        let up = |at: &usize| {
            cluster
                .nodes
                .get(*at)
                .is_some_and(|node| node.role == Role::Replica && node.replica.is_some() && node.is_up())
        };
        let free: Vec<usize> = self.free_nodes().into_iter().filter(up).collect();
        let all = cluster.nodes.iter().filter(|node| node.role == Role::Replica && !node.left).count();
        if free.len() * 2 <= all || free.len() < 3 {
            return None;
        }
        free.get(usize::try_from(self.rng.below(u64::try_from(free.len()).ok()?)).ok()?).copied()
    }

    /// The disk is lost with all that was on it.
    pub(super) fn wipe(&mut self, at: usize, fault: &mut Fault) -> Result<Undo> {
        let replica = self.stop_for_good(at)?;
        self.excuse(at, &replica, "M4: the disk was lost; its replica is retired, another joins", false, fault)?;
        self.cluster()?.wipe(at)?;
        Ok(Undo::Wiped(replica))
    }

    /// The disk goes back to what it was some seconds ago, in its place: its replica finds out from others that they hold later
    /// entries of its own, and writes no more.
    pub(super) fn roll_back(&mut self, at: usize, fault: &mut Fault) -> Result<Undo> {
        let wait = Duration::from_millis(self.rng.between(1_000, 4_000));
        let cluster = self.cluster()?;
        let copy = cluster.dir().join("old.redb");
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        node.kill();
        std::fs::copy(node.data().join("store.redb"), &copy)?;
        node.start()?;
        node.ready()?;
        std::thread::sleep(wait);
        let replica = self.stop_for_good(at)?;
        self.excuse(
            at,
            &replica,
            "M4: the disk was rolled back in its place; its replica is retired, another joins",
            true,
            fault,
        )?;
        let cluster = self.cluster()?;
        cluster.roll_back(at, &copy)?;
        std::fs::remove_file(&copy)?;
        self.start(&[at])?;
        Ok(Undo::RolledBack(replica))
    }

    /// A copy of the disk is put in its place, or started beside it. It knows that it is none of a place's, and writes nothing.
    pub(super) fn copied(&mut self, at: usize, how: Copy) -> Result<(Vec<usize>, Undo)> {
        let cluster = self.cluster()?;
        cluster.nodes.get_mut(at).context("no such node")?.kill();
        if how == Copy::InPlace {
            cluster.put_copy(at)?;
            self.start(&[at])?;
            return Ok((vec![at], Undo::Moved));
        }
        let other = cluster.clone_of(at)?;
        self.start(&[at, other])?;
        Ok((vec![at, other], Undo::Cloned(other)))
    }

    /// No room is left, or almost none.
    pub(super) fn fill(&mut self, at: usize) -> Result<Undo> {
        let kib = self.rng.below(128);
        let cluster = self.cluster()?;
        cluster.nodes.get(at).context("no such node")?.disk.fill(kib)?;
        Ok(Undo::Filled)
    }

    /// After a lost disk: the operator retires the replica, and lets another join.
    pub(super) fn after_wipe(&mut self, at: usize, replica: &str) -> Result<()> {
        let cluster = self.cluster()?;
        if !cluster.retiring.iter().any(|other| other == replica) {
            cluster.retire(at, replica)?;
        }
        cluster.rejoin(at)
    }

    /// After a disk that was rolled back: the same, and what is the machine's stays.
    pub(super) fn after_roll_back(&mut self, at: usize, replica: &str) -> Result<()> {
        let cluster = self.cluster()?;
        cluster.nodes.get_mut(at).context("no such node")?.kill();
        if !cluster.retiring.iter().any(|other| other == replica) {
            cluster.retire(at, replica)?;
        }
        cluster.replace(at)
    }

    /// After a copy was put in a disk's place, with nothing written there since: the operator says so.
    pub(super) fn after_move(&mut self, at: usize) -> Result<()> {
        let cluster = self.cluster()?;
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        node.kill();
        node.luc(&["replica", "moved"])?;
        self.start(&[at])
    }

    /// Kills a node whose replica does not come back, and gives the replica's id.
    fn stop_for_good(&mut self, at: usize) -> Result<String> {
        let node = self.cluster()?.nodes.get_mut(at).context("no such node")?;
        node.kill();
        node.replica.take().context("it has no replica")
    }

    /// Excuses what survivors do not hold of a stopped node's replica.
    fn excuse(&mut self, at: usize, replica: &str, case: &str, stale: bool, fault: &mut Fault) -> Result<()> {
        let until = self.around.recorder.now();
        std::thread::sleep(UNDER_WAY);
        let cluster = self.cluster()?;
        let held = cluster.held_by_others(at, replica)?;
        let node = cluster.nodes.get(at).context("no such node")?;
        // Endpoints are the replicas of the beginning, in the order of nodes.
        let endpoint = cluster.nodes.iter().take(at).filter(|node| node.role == Role::Replica).count();
        let (site, base) = (node.site.clone(), node.base());
        let processes = crate::runner::processes(self.around.processes, endpoint);
        let lost = Excuse { site, base, processes, after: 0, until, case: case.into(), stale };
        excused(self.around.seen, (endpoint, replica), held, lost, fault);
        Ok(())
    }
}

/// Excuses what a lost disk had acknowledged and nobody else holds: only what came after the last time that its replica was
/// itself seen with no more than what others hold.
fn excused(seen: &Seen, (endpoint, replica): (usize, &str), held: u64, lost: Excuse, fault: &mut Fault) {
    let after = seen.last_within(endpoint, replica, held);
    fault.may_lose = true;
    fault.detail = format!("{}; {}; survivors hold its entries up to {held}", fault.detail, lost.case);
    fault.excused.push(Excuse { after, ..lost });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Sample, Tip};

    /// What an endpoint was seen to hold of replica `x`, by time.
    fn seen(samples: &[(usize, u64, u64)]) -> Seen {
        let seen = Seen::default();
        for (endpoint, time, number) in samples {
            let frontier = [("x".to_owned(), Tip { number: *number, hash: String::new() })].into();
            let digest = Some(String::new());
            seen.add(*endpoint, Sample { time: *time, frontier, digest, ..Sample::default() });
        }
        seen
    }

    fn excuse(seen: &Seen, held: u64) -> Fault {
        let lost = Excuse { site: "lyon".into(), until: 90, case: "M4: the disk was lost".into(), ..Excuse::default() };
        let mut fault = Fault { detail: "disk lost".into(), ..Fault::default() };
        excused(seen, (1, "x"), held, lost, &mut fault);
        fault
    }

    #[test]
    fn only_what_no_survivor_holds_is_excused() {
        let seen = seen(&[(1, 10, 5), (1, 20, 6), (0, 25, 6), (1, 30, 7), (1, 40, 9)]);
        let fault = excuse(&seen, 6);
        assert!(fault.may_lose);
        assert_eq!((fault.excused[0].after, fault.excused[0].until), (20, 90), "what it held at 20, others hold");
        assert!(fault.excused[0].covers("lyon", 21) && !fault.excused[0].covers("lyon", 20));
        assert!(fault.detail.contains("M4") && fault.detail.contains("up to 6"), "{}", fault.detail);
        assert_eq!(excuse(&seen, 9).excused[0].after, 40, "survivors held all that was ever seen of it");
    }

    #[test]
    fn of_whose_log_nobody_holds_anything_all_is_excused() {
        assert_eq!(excuse(&seen(&[(1, 10, 5)]), 0).excused[0].after, 0);
    }

    #[test]
    fn another_endpoint_with_no_more_says_nothing() {
        assert_eq!(excuse(&seen(&[(0, 50, 3), (1, 60, 9)]), 6).excused[0].after, 0);
    }
}
