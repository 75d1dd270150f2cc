//! Who stands by the claims that agents are ordered under (`PROTOCOL.md`, S1), as `sync/src/vouching.rs` does it: the replica
//! that gives the order, if it holds the claim, or else its holder, which is asked, and asked again.

use std::collections::BTreeSet;

use luc_engine::agent::{Order, Vouched, Wanted};
use luc_engine::hosts::{holder, stands_by};
use luc_engine::id::ClaimId;
use luc_sync::agents;

use super::agent::Talk;
use super::net::Micros;
use super::node::Node;
use super::sometimes::State;
use super::world::{Event, World};

/// Between two questions to a holder that did not stand by a claim, or was not reached.
const ASK_AGAIN: Micros = 1_000_000;

/// What is known of who stands by claims, on one connection of an agent.
#[derive(Debug, Default)]
pub(super) struct Known {
    stood: BTreeSet<ClaimId>,
    asked: BTreeSet<ClaimId>,
}

/// For which claim of which connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    node: usize,
    agent: usize,
    session: u64,
    claim: ClaimId,
}

/// A question to the holder of a claim.
#[derive(Clone, Copy, Debug)]
pub(super) enum Vouching {
    /// It is due.
    Ask(About),
    /// It has come to the holder.
    Asked(About, usize),
    /// The holder stands by the claim.
    Stood(About),
}

impl World {
    /// Says in an order what is known; what is not is asked.
    pub(super) fn marked(&mut self, node: usize, agent: usize, session: u64, order: Order) -> Order {
        let is_current = self.agents.get(agent).is_some_and(|agent| agent.is_attached(node, session));
        if order.wanted == Wanted::Absent || !is_current {
            return order;
        }
        let Some(me) = self.nodes.get(node).map(|node| node.replica) else { return order };
        let stands = self.process(node).is_some_and(|process| stands_by(&process.view, me, order.claim));
        let Some(known) = self.agents.get_mut(agent).map(|agent| &mut agent.vouched) else { return order };
        if stands || known.stood.contains(&order.claim) {
            return Order { vouched: Vouched::Yes, ..order };
        }
        if known.asked.insert(order.claim) {
            self.vouching(Vouching::Ask(About { node, agent, session, claim: order.claim }));
        }
        order
    }

    pub(super) fn vouching(&mut self, vouching: Vouching) {
        match vouching {
            Vouching::Ask(about) => self.ask_holder(about),
            Vouching::Asked(about, holder) => {
                let stands = self.nodes.get(holder).filter(|node| Node::serves(node)).is_some_and(|node| {
                    node.process.as_ref().is_some_and(|process| stands_by(&process.view, node.replica, about.claim))
                });
                if stands && self.net.is_cut(about.node, holder).is_none() {
                    let delay = self.net.delay(holder, about.node);
                    self.at(delay, Event::Vouching(Vouching::Stood(about)));
                }
            }
            Vouching::Stood(about) => self.stood(about),
        }
    }

    fn is_current(&self, about: About) -> bool {
        self.agents.get(about.agent).is_some_and(|agent| agent.is_attached(about.node, about.session))
    }

    /// Asks once more, until the holder has stood by the claim or it is settled.
    fn ask_holder(&mut self, about: About) {
        if !self.is_current(about) {
            return;
        }
        let Some(view) = self.process(about.node).map(|process| process.view.clone()) else { return };
        let stood = self.agents.get(about.agent).is_some_and(|agent| agent.vouched.stood.contains(&about.claim));
        if stood || view.ledger().claim(about.claim).is_none() {
            return;
        }
        self.sometimes.saw(State::Unvouched);
        let holder = self.node_of(about.node, holder(&view, about.claim));
        if let Some(holder) = holder.filter(|holder| self.net.connection(about.node, *holder).is_some()) {
            let delay = self.net.delay(about.node, holder);
            self.at(delay, Event::Vouching(Vouching::Asked(about, holder)));
        }
        self.at(ASK_AGAIN, Event::Vouching(Vouching::Ask(about)));
    }

    fn stood(&mut self, about: About) {
        if !self.is_current(about) {
            return;
        }
        let Some(view) = self.process(about.node).map(|process| process.view.clone()) else { return };
        if let Some(agent) = self.agents.get_mut(about.agent) {
            agent.vouched.stood.insert(about.claim);
        }
        let order = view.ledger().claim(about.claim).and_then(|row| agents::order(&view, about.claim, row));
        let Some(order) = order.filter(|order| order.wanted != Wanted::Absent) else { return };
        self.sometimes.saw(State::Vouched);
        let order = Box::new(Order { vouched: Vouched::Yes, ..order });
        self.tell_agent(about.agent, about.session, Talk::Order(order));
    }
}
