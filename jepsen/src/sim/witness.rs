//! What agents remember of the logs of their site's replicas (`PROTOCOL.md`, M4): it lies on another disk, so it gives away one
//! that was put back as it had been, be it that no other replica has heard of what is missing.

use luc_engine::agent::{FromAgent, SignedTip};
use luc_engine::entry::Tip;
use luc_engine::id::ReplicaId;

use super::agent::{RETRY, Talk};
use super::node::{Job, Node};
use super::world::{Event, World};

/// Who can tell that a disk is an old one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Old {
    /// Other replicas.
    pub(super) others: bool,
    /// An agent.
    pub(super) agent: bool,
}

impl World {
    /// The agents that are attached to a node are told how far its log goes, before any order that rests on it.
    pub(super) fn tell_tip(&mut self, at: usize) {
        let Some(node) = self.nodes.get(at) else { return };
        let Some(process) = &node.process else { return };
        let Some(tip) = process.view.frontier().0.get(&node.replica).copied() else { return };
        let is_behind = |(agent, _): &(usize, u64)| self.agents.get(*agent).is_some_and(|of| of.told < tip.number);
        let behind: Vec<(usize, u64)> = process.attached.values().copied().filter(is_behind).collect();
        if behind.is_empty() {
            return;
        }
        let replica = node.replica;
        for (agent, session) in behind {
            if let Some(of) = self.agents.get_mut(agent) {
                of.told = tip.number;
            }
            self.tell_agent(agent, session, Talk::Witness(replica, tip));
        }
    }

    /// What a replica has signed. Agents forge nothing: it is signed when somebody looks at it, which is rarely.
    fn signed(&self, replica: ReplicaId, tip: Tip) -> Option<SignedTip> {
        let identity = &self.nodes.get(*self.by_replica.get(&replica)?)?.identity;
        Some(SignedTip::sign(identity.cloud, tip, &identity.key))
    }

    /// What an agent was told comes before its introduction.
    pub(super) fn say_words(&mut self, agent: usize, node: usize, session: u64) {
        let Some(of) = self.agents.get(agent).filter(|of| !of.tips.is_empty()) else { return };
        let words: Vec<SignedTip> = of.tips.iter().filter_map(|(replica, tip)| self.signed(*replica, *tip)).collect();
        let talk = Talk::From(Box::new(FromAgent::Witnessed(words)));
        self.at(super::agent::NEAR, Event::ToReplica { node, agent, session, talk });
    }

    /// Whether an agent of its site has been told of everything that a node has written.
    pub(super) fn is_witnessed(&self, at: usize) -> bool {
        let Some(node) = self.nodes.get(at) else { return false };
        let written = self.rules.written(at);
        let knows = |agent: &super::agent::Agent| {
            let stays = agent.site == node.site && agent.on && !agent.condemned;
            stays && agent.tips.get(&node.replica).is_some_and(|tip| tip.number >= written)
        };
        self.agents.iter().any(knows)
    }

    /// Whether a replica of a site is on an old disk, and nobody but its site's agent can tell it so. It writes nothing before it has
    /// heard: it declares no host dead and takes nothing back, and seals nobody, so that no retirement takes effect meanwhile.
    pub(super) fn awaits_agent(&self, site: usize) -> bool {
        let is_told_by_it = |old: Old| old.agent && !old.others;
        let waits =
            |node: &Node| node.site == site && !node.gone && !node.stopped && node.old.is_some_and(is_told_by_it);
        self.nodes.iter().any(waits)
    }

    /// A node on an old disk waits until it has heard those who can tell.
    pub(super) fn witnesses(&mut self, at: usize, life: u64) {
        let waits = |node: &&Node| node.life == life && node.process.as_ref().is_some_and(|process| !process.met);
        let Some(node) = self.nodes.get(at).filter(waits) else { return };
        let of_site = self.agents.iter().filter(|agent| agent.site == node.site && agent.is_up());
        let tips = of_site.filter_map(|agent| agent.tips.get(&node.replica));
        let words: Vec<SignedTip> = tips.filter_map(|tip| self.signed(node.replica, *tip)).collect();
        if !words.is_empty() {
            self.job(at, Job::Witnessed(words));
            self.at(5_000, Event::Met { node: at, life });
        }
        self.at(RETRY, Event::Witnesses { node: at, life });
    }
}
