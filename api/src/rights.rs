//! What people are told about rights: who holds them, whether the holder can be reached, and how old that knowledge is.
//!
//! A refusal must tell "all is in use" from "the rest is out of reach": the first ends when something is deleted, the
//! second when a link heals. What a holder is said to have is what this replica last heard of it.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::time::Duration;

use luc_engine::id::ReplicaId;
use luc_engine::ledger::Amount;
use luc_engine::record::RecordId;
use luc_engine::tx::{Refusal, Shortage, Tx};
use luc_engine::view::View;
use luc_sync::net::Reach;
use luc_sync::rpc::Asked;

use crate::app::App;
use crate::http::Fault;

/// How often holders are asked before what is missing is told.
const TRIES: u32 = 3;

/// How the holders of rights are reached, as seen from here at one moment.
pub(crate) struct Holders {
    me: ReplicaId,
    view: std::sync::Arc<View>,
    reach: BTreeMap<ReplicaId, Reach>,
    retiring: std::collections::BTreeSet<ReplicaId>,
}

impl Holders {
    pub(crate) fn of(app: &App) -> Self {
        let view = app.view();
        let reach = app.net().reach().into_iter().map(|reach| (reach.replica, reach)).collect();
        let retiring = view.retirements().named(view.frontier()).into_iter().collect();
        Self { me: app.node().me(), view, reach, retiring }
    }

    /// The site of a holder.
    pub(crate) fn site(&self, replica: ReplicaId) -> String {
        self.view.member(replica).map_or_else(|| "an unknown replica".to_owned(), |m| m.member.site.to_string())
    }

    /// Whether a holder is this replica, or can be asked.
    pub(crate) fn is_reachable(&self, replica: ReplicaId) -> bool {
        replica == self.me || self.reach.get(&replica).is_some_and(|reach| reach.reachable)
    }

    /// How long ago a holder was last heard; zero for this replica, none if it never was.
    pub(crate) fn heard(&self, replica: ReplicaId) -> Option<Duration> {
        if replica == self.me { Some(Duration::ZERO) } else { self.reach.get(&replica)?.heard }
    }

    /// Whether a holder is retired, or its retirement waits for the others' word: nobody spends its rights until the heir does.
    pub(crate) fn is_retiring(&self, replica: ReplicaId) -> bool {
        self.retiring.contains(&replica)
    }

    /// A holder with what keeps its rights from coming here: `lyon (out of reach, last heard 12 s ago)`.
    pub(crate) fn words(&self, replica: ReplicaId, asked: &Asked) -> String {
        let site = self.site(replica);
        if self.is_retiring(replica) {
            return format!("{site} (being retired: nobody spends its rights before its heir)");
        }
        if self.view.member(replica).is_some_and(|state| state.revoked) {
            return format!("{site} (revoked: its rights are out of use until it is retired)");
        }
        if !self.is_reachable(replica) {
            return match self.heard(replica) {
                Some(ago) => format!("{site} (out of reach, last heard {} s ago)", ago.as_secs()),
                None => format!("{site} (out of reach, not heard since this replica started)"),
            };
        }
        if asked.silent.contains(&replica) {
            return format!("{site} (asked, did not answer)");
        }
        if asked.empty.contains(&replica) {
            return format!("{site} (asked, had nothing to give)");
        }
        site
    }

    /// Who holds the free rights that are short here, the richest first, and what keeps each from coming. Empty if
    /// nobody does.
    pub(crate) fn whereabouts(&self, short: &Shortage, asked: &Asked) -> String {
        let mut holders: BTreeMap<ReplicaId, Amount> = BTreeMap::new();
        for (replica, _, free) in &short.elsewhere {
            // Rights to what is not short do not matter here.
            let free = free.towards(&short.wanted);
            let sum = holders.entry(*replica).or_default();
            *sum = sum.saturating_add(&free);
        }
        holders.retain(|_, free| !free.is_zero());
        if holders.is_empty() && short.unconfirmed.is_empty() {
            return String::new();
        }
        let verdict = self.verdict(short, &holders, asked);
        let mut holders: Vec<_> = holders.into_iter().collect();
        holders.sort_by_key(|(_, free)| std::cmp::Reverse(free.size()));
        let one = |(replica, free): &(ReplicaId, Amount)| format!("{} holds {free}", self.words(*replica, asked));
        let awaited = |(root, amount): &(ReplicaId, Amount)| {
            format!("{amount} wait to be countersigned by {}", self.words(*root, asked))
        };
        let all: Vec<String> = holders.iter().map(one).chain(short.unconfirmed.iter().map(awaited)).collect();
        format!("{verdict}: {}", all.join("; "))
    }

    /// Why the rights that others hold do not help.
    fn verdict(&self, short: &Shortage, holders: &BTreeMap<ReplicaId, Amount>, asked: &Asked) -> &'static str {
        if !short.suffices_elsewhere() {
            return "; what is free elsewhere";
        }
        let sum = |of: &dyn Fn(ReplicaId) -> bool| {
            let some = holders.iter().filter(|(id, _)| of(**id));
            some.fold(short.free_here.clone(), |sum, (_, free)| sum.saturating_add(free)).covers(&short.wanted)
        };
        let answers = |id: ReplicaId| self.is_reachable(id) && !self.is_retiring(id) && !asked.silent.contains(&id);
        if sum(&|id| answers(id) && !asked.empty.contains(&id)) {
            "; they were not handed over in time"
        } else if sum(&answers) {
            // What this replica last heard of them is older than what they said now.
            "; what was free elsewhere has just been used"
        } else {
            "; the rest is out of reach"
        }
    }
}

/// Why something could not be had.
pub(crate) enum Missing {
    /// Rights are short here.
    Short(Box<Shortage>),
    /// Something else.
    Fault(Fault),
}

impl From<Refusal> for Missing {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Shortage(short) => Self::Short(short),
            other => Self::Fault(other.into()),
        }
    }
}
impl From<Fault> for Missing {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Deletes the record, and releases what this replica holds of it. Says who else holds claims of it.
pub(crate) fn give_back(tx: &mut Tx<'_>, record: RecordId) -> Result<Vec<ReplicaId>, Refusal> {
    let claims: Vec<_> = tx.view().ledger().claims_of(record).map(|(id, _)| id).collect();
    tx.delete(record)?;
    let mut others = Vec::new();
    for claim in claims {
        if tx.view().retired().acts_for(tx.me(), claim.entry.author) {
            tx.release(claim)?;
        } else {
            others.push(claim.entry.author);
        }
    }
    Ok(others)
}

/// Runs a transaction that spends rights; where they are short here, others are asked, as long as something comes. What
/// then is still missing, and where it is, becomes a fault by `refuse`.
pub(crate) async fn with_rights<T: Send + 'static>(
    app: &App,
    f: impl FnOnce(&mut Tx<'_>) -> Result<T, Missing> + Clone + Send + 'static,
    refuse: impl Fn(String) -> Fault,
) -> Result<T, Fault> {
    // It begins when something is short: what this replica's own flush takes before that is not the others' fault.
    let until = LazyCell::new(|| app.net().rights_deadline());
    let mut left = TRIES;
    loop {
        left -= 1;
        match app.node().transact::<T, Missing, _>(f.clone()).await {
            Ok(done) => return Ok(done),
            Err(Missing::Fault(fault)) => return Err(fault),
            Err(Missing::Short(short)) => {
                let asked = if left > 0 && short.suffices_elsewhere() {
                    app.net().request_rights(std::slice::from_ref(&short), *until).await
                } else {
                    Asked::default()
                };
                if !asked.came {
                    let whereabouts = Holders::of(app).whereabouts(&short, &asked);
                    return Err(refuse(format!("{short}{whereabouts}")));
                }
            }
        }
    }
}
