//! Snapshots that take the place of a state (`PROTOCOL.md`, E4, M5): logs are kept short, and whoever was away for too
//! long is told by the protocol core that what it lacks was dropped. What the snapshot lacks is replayed on it.

use luc_engine::id::ReplicaId;
use luc_engine::store::Store;

use super::disk::{Disk, Image};
use super::node::{Job, Node, Process};
use super::rules::Tracker;
use super::sometimes::State;
use super::world::{Event, World};

/// A state that travels, with what the oracle knows of it.
#[derive(Debug)]
pub(super) struct Given {
    giver: ReplicaId,
    pub(super) image: Image,
    pub(super) of: Tracker,
}

impl World {
    /// From now on logs are dropped beyond so many bytes, at all replicas.
    pub(super) fn limit_logs(&mut self, bytes: u64) {
        self.log_bytes = Some(bytes);
        let processes = self.nodes.iter_mut().filter_map(|node| node.process.as_mut());
        processes.for_each(|process| process.replica.limit_log(bytes));
    }

    /// A replica asks a peer for its state; unless it is asking already.
    pub(super) fn ask_for_state(&mut self, at: usize, peer: usize) {
        let asks = |process: &mut Process| !std::mem::replace(&mut process.replacing, true);
        if !self.process(at).is_some_and(asks) {
            return;
        }
        let Some(life) = self.nodes.get(at).map(|node| node.life) else { return };
        let delay = self.net.delay(at, peer);
        self.at(delay, Event::StateAsked { from: peer, to: at, life });
        // Whoever does not get it asks again.
        self.at(3_000_000, Event::StateLate { node: at, life });
    }

    /// The peer sends what its disk holds.
    pub(super) fn give_state(&mut self, from: usize, to: usize, life: u64) {
        let process = self.nodes.get(from).and_then(|node| node.process.as_ref());
        let gives = process.is_some_and(|process| process.replica.on_trust().is_none());
        if !gives || self.net.is_cut(to, from).is_some() || self.net.is_cut(from, to).is_some() {
            return;
        }
        let (node, of) = (self.nodes.get(from), self.rules.tracker(from));
        let Some((node, of)) = node.zip(of) else { return };
        let given = Box::new(Given { giver: node.replica, image: node.disk.image(), of });
        let delay = self.net.delay(from, to);
        self.at(delay, Event::StateComes { node: to, life, given });
    }

    pub(super) fn state_comes(&mut self, at: usize, life: u64, given: Box<Given>) {
        if self.nodes.get(at).is_some_and(|node| node.life == life) {
            self.job(at, Job::Replace(given));
        }
    }

    /// It did not come.
    pub(super) fn state_late(&mut self, at: usize, life: u64) {
        let node = self.nodes.get_mut(at).filter(|node: &&mut Node| node.life == life);
        if let Some(process) = node.and_then(|node| node.process.as_mut()) {
            process.replacing = false;
        }
    }

    /// The state takes the place of the replica's own. Nothing else is pending.
    pub(super) fn replace_state(&mut self, at: usize, given: &Given) {
        let disk = Disk::from_image(&given.image);
        let Some(process) = self.process(at) else { return };
        process.replacing = false;
        let before = process.replica.view().frontier().clone();
        let Ok(reader) = disk.reader() else { return };
        let replaced = process.replica.replace(&*reader, given.giver);
        let (view, fenced) = (process.replica.view().clone(), process.replica.fence().is_some());
        match replaced {
            Ok(()) => {
                process.wrote = true;
                self.sometimes.saw(State::Replaced);
                if given.of.lacks(&before) {
                    self.sometimes.saw(State::Replayed);
                }
                self.trace
                    .note(self.now, [20, at as u64, 0], || format!("{at} takes a snapshot in place of its state"));
                // Whoever gives it is honest: what the liar has made up is gone.
                self.undeceive(at);
                let checked = self.rules.replaced(at, &given.of, &before, &view, fenced);
                self.check(checked);
            }
            // The disk failed while this was put on it. The next flush fails, too, and ends the process.
            Err(luc_engine::replica::ReplaceError::Store(error)) => {
                process.wrote = true;
                self.trace.note(self.now, [24, at as u64, 0], || format!("{at} fails under a snapshot: {error}"));
            }
            Err(error) => self.trace.note(self.now, [21, at as u64, 0], || format!("{at} takes no snapshot: {error}")),
        }
    }
}
