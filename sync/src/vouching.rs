//! Who stands by the claims that an agent is ordered under (`PROTOCOL.md`, S1).
//!
//! A server is placed elsewhere by the holder of its claim alone, and only once its host was declared dead. A replica of the
//! host's site that lags knows of neither, and its agent may just have come back with its machine. So an agent starts
//! something only if the claim's holder has said, since that agent connected, that it stands by the claim: at once if that is
//! the replica which gives the order, else it is asked, and asked again. What is running already is not touched by any of this.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use luc_engine::agent::{Order, Vouched, Wanted};
use luc_engine::hosts::{holder, stands_by};
use luc_engine::id::{ClaimId, ReplicaId};
use luc_engine::view::View;
use tokio::sync::oneshot;

use crate::agents::order;
use crate::node::Node;

/// Between two questions to a holder that did not stand by a claim, or was not reached.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Most claims in one question.
const CLAIMS: usize = 1_024;

/// A question to the holder of claims. The answer is dropped if it cannot be reached.
#[derive(Debug)]
pub(crate) struct Vouch {
    pub(crate) holder: ReplicaId,
    pub(crate) claims: Vec<ClaimId>,
    pub(crate) reply: oneshot::Sender<Vec<ClaimId>>,
}

type Answer = (Vec<ClaimId>, Option<Vec<ClaimId>>);

/// What is known, on one connection of an agent.
#[derive(Default)]
pub(crate) struct Vouching {
    stood: BTreeSet<ClaimId>,
    /// Nobody has stood by them yet. Whether the holder is being asked, and whether the agent knows that it does not.
    waiting: BTreeMap<ClaimId, Waiting>,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
}

#[derive(Clone, Copy, Default)]
struct Waiting {
    asking: bool,
    told: bool,
}

impl Vouching {
    /// Says in an order what is known; what is not is to be asked.
    pub(crate) fn mark(&mut self, view: &View, me: ReplicaId, order: &mut Order) {
        if order.wanted == Wanted::Absent {
            self.forget(order.claim);
            return;
        }
        let stands = stands_by(view, me, order.claim) || self.stood.contains(&order.claim);
        order.vouched = match stands {
            true => Vouched::Yes,
            false if self.waiting.entry(order.claim).or_default().told => Vouched::No,
            false => Vouched::Asked,
        };
    }

    fn forget(&mut self, claim: ClaimId) {
        self.stood.remove(&claim);
        self.waiting.remove(&claim);
    }

    /// Whether anybody is to be asked.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.values().any(|waiting| !waiting.asking)
    }

    /// Asks those who are to be asked.
    pub(crate) fn ask(&mut self, node: &Node) {
        let view = node.view();
        self.waiting.retain(|claim, _| view.ledger().claim(*claim).is_some());
        let mut questions: BTreeMap<ReplicaId, Vec<ClaimId>> = BTreeMap::new();
        for (claim, waiting) in self.waiting.iter_mut().filter(|(_, waiting)| !waiting.asking) {
            waiting.asking = true;
            questions.entry(holder(&view, *claim)).or_default().push(*claim);
        }
        for (holder, claims) in questions {
            for claims in claims.chunks(CLAIMS).map(<[ClaimId]>::to_vec) {
                self.answers.push(question(node, holder, claims));
            }
        }
    }

    /// The next answer; none ever while nobody is asked.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        match self.answers.next().await {
            None => std::future::pending().await,
            answer => answer,
        }
    }

    /// Takes up what a holder has said: the orders that the agent is to be given anew.
    pub(crate) fn answered(&mut self, view: &View, claims: Vec<ClaimId>, stood: Option<&[ClaimId]>) -> Vec<Order> {
        let mut orders = Vec::new();
        for claim in claims {
            let Some(waiting) = self.waiting.get_mut(&claim) else { continue };
            let vouched = match stood.is_some_and(|stood| stood.contains(&claim)) {
                true => Vouched::Yes,
                false => Vouched::No,
            };
            waiting.asking = false;
            let is_news = vouched == Vouched::Yes || !std::mem::replace(&mut waiting.told, true);
            if vouched == Vouched::Yes {
                self.waiting.remove(&claim);
                self.stood.insert(claim);
            }
            let order = view.ledger().claim(claim).filter(|_| is_news).and_then(|row| order(view, claim, row));
            orders.extend(order.map(|order| Order { vouched, ..order }));
        }
        orders
    }
}

fn question(node: &Node, holder: ReplicaId, claims: Vec<ClaimId>) -> BoxFuture<'static, Answer> {
    let (reply, answer) = oneshot::channel();
    let asker = node.agents().asker().cloned();
    let asked = Vouch { holder, claims: claims.clone(), reply };
    async move {
        let sent = match asker {
            Some(asker) => asker.send(asked).await.is_ok(),
            None => false,
        };
        let stood = if sent { answer.await.ok() } else { None };
        (claims, stood)
    }
    .boxed()
}
