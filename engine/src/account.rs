//! What one replica holds of one pool, and the pool itself (`PROTOCOL.md`, A1 and A5).
//!
//! In a pool that is **confirmed**, a grant counts only where the pool's root, or its heir, has countersigned it: a holder that
//! lies can sign two chains, and grant one right in each half of a split cloud; but the root's chain is one, and names one
//! of the two. What the root itself grants needs no second word. The price: a right that comes from another holder is
//! spent only once the root has been heard.

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::entry::{Frontier, Subject};
use crate::hosts::Death;
use crate::id::{EntryId, PoolId, ReplicaId};
use crate::ledger::{BadLedgerOp, MAX_FREE_INTERVALS};
use crate::mutant::{Mutant, on};

/// What can run out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// What it is the capacity of.
    pub subject: Subject,
    /// Everything ever minted into it.
    pub minted: Amount,
    /// Everything ever burnt. Capacity is `minted - burnt` (A2).
    pub burnt: Amount,
    /// Sum of the live claims.
    pub claimed: Amount,
    /// Whether grants of others than the root count only once the root has countersigned them (A5). Set when it was
    /// minted, for ever.
    pub confirmed: bool,
    accounts: OrdMap<ReplicaId, Account>,
    /// Declarations that the host is dead (S5), in order of their entries; more than one only if two were made apart.
    #[serde(default)]
    pub dead: Vec<Death>,
}

/// What one replica holds of one pool.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Account {
    /// Free rights as of the owner's last entry that used this pool.
    free: Amount,
    /// Grants to the owner that this `free` does not contain yet.
    incoming: Vec<Incoming>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Incoming {
    /// The entry that made it, and which of its operations.
    by: EntryId,
    index: u32,
    amount: Amount,
    /// Entries that countersign it; none if it needs no such.
    confirmed: Option<Vec<EntryId>>,
}

impl Incoming {
    fn counts_at(&self, past: &Frontier) -> bool {
        past.holds(self.by) && self.confirmed.as_ref().is_none_or(|by| by.iter().any(|entry| past.holds(*entry)))
    }

    fn is_waiting(&self) -> bool {
        self.confirmed.as_ref().is_some_and(Vec::is_empty)
    }
}

impl Account {
    /// Takes up the grants that the owner's frontier covers (A1). Frontiers only grow, so it does not matter at which
    /// of the owner's entries this is done. All there is was minted, with a check: no sum overflows, and sets are disjoint.
    /// Where a fork has granted one right twice, its receiver holds it once.
    fn settle(&mut self, past: &Frontier) {
        let (seen, unseen) =
            std::mem::take(&mut self.incoming).into_iter().partition::<Vec<_>, _>(|grant| grant.counts_at(past));
        self.incoming = unseen;
        self.free = sum(std::mem::take(&mut self.free), seen.iter());
    }

    fn check_pieces(&self, pool: PoolId) -> Result<(), BadLedgerOp> {
        let pieces = self.free.addresses().pieces();
        if pieces > MAX_FREE_INTERVALS { Err(BadLedgerOp::Fragmented(pool)) } else { Ok(()) }
    }

    fn rights(&self) -> Rights {
        let total = sum(self.free.clone(), self.incoming.iter());
        Rights { total, waiting: self.waiting() }
    }

    fn waiting(&self) -> Amount {
        sum(Amount::default(), self.incoming.iter().filter(|grant| grant.is_waiting()))
    }

    fn spendable(&self) -> Amount {
        sum(self.free.clone(), self.incoming.iter().filter(|grant| !grant.is_waiting()))
    }
}

fn sum<'a>(free: Amount, grants: impl Iterator<Item = &'a Incoming>) -> Amount {
    grants.fold(free, |sum, grant| sum.saturating_add(&grant.amount))
}

/// What an account has, as far as is known: the same however much of it is settled.
#[derive(Default)]
pub(crate) struct Rights {
    /// Free, grants included.
    pub(crate) total: Amount,
    /// Of that, what waits for the root's word.
    pub(crate) waiting: Amount,
}

/// A grant that waits for the root's word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Waiting {
    /// Of which pool.
    pub pool: PoolId,
    /// To whom.
    pub to: ReplicaId,
    /// The entry that made it.
    pub grant: EntryId,
    /// Which ledger operation of that entry.
    pub index: u32,
}

impl Pool {
    /// Whether its host was declared dead in a past.
    pub(crate) fn is_dead_at(&self, past: &Frontier) -> bool {
        self.dead.iter().any(|death| past.holds(death.entry))
    }

    /// Minted and not burnt.
    #[must_use]
    pub fn capacity(&self) -> Amount {
        self.minted.saturating_sub(&self.burnt)
    }

    /// Every replica that has an account, with its free rights: those too that wait for the root's word.
    pub fn accounts(&self) -> impl Iterator<Item = (ReplicaId, Amount)> + '_ {
        self.accounts.iter().map(|(replica, account)| (*replica, account.rights().total))
    }

    /// The accounts that a change of a pool has changed: whose, and its rights before, and now.
    pub(crate) fn changed_accounts(before: Option<&Self>, now: Option<&Self>) -> Vec<(ReplicaId, Rights, Rights)> {
        let accounts = |pool: Option<&Self>| pool.map(|pool| pool.accounts.clone()).unwrap_or_default();
        let (before, now) = (accounts(before), accounts(now));
        let changed = before.diff(&now).map(|item| match item {
            DiffItem::Add(replica, now) => (*replica, Rights::default(), now.rights()),
            DiffItem::Remove(replica, before) => (*replica, before.rights(), Rights::default()),
            DiffItem::Update { old: (replica, before), new: (_, now) } => (*replica, before.rights(), now.rights()),
        });
        changed.collect()
    }

    /// Every replica that has an account, with what it can spend.
    pub fn spendable(&self) -> impl Iterator<Item = (ReplicaId, Amount)> + '_ {
        self.accounts.iter().map(|(replica, account)| (*replica, account.spendable()))
    }

    /// What one replica can spend once it holds what we hold.
    #[must_use]
    pub fn free(&self, replica: ReplicaId) -> Amount {
        self.accounts.get(&replica).map(Account::spendable).unwrap_or_default()
    }

    /// What was granted to one replica and waits for the root's word.
    #[must_use]
    pub fn unconfirmed(&self, replica: ReplicaId) -> Amount {
        self.accounts.get(&replica).map(Account::waiting).unwrap_or_default()
    }

    /// What one replica can spend at `past`.
    pub(crate) fn held(&self, replica: ReplicaId, past: &Frontier) -> Amount {
        let Some(account) = self.accounts.get(&replica) else { return Amount::default() };
        sum(account.free.clone(), account.incoming.iter().filter(|grant| grant.counts_at(past)))
    }

    /// The pool that a mint makes: its root holds all of it.
    pub(crate) fn mint(root: ReplicaId, subject: Subject, amount: Amount, confirmed: bool) -> Self {
        let account = Account { free: amount.clone(), incoming: Vec::new() };
        let accounts = OrdMap::unit(root, account);
        let (burnt, claimed) = (Amount::default(), Amount::default());
        Self { subject, minted: amount, burnt, claimed, confirmed, accounts, dead: Vec::new() }
    }

    /// Puts rights into an account: new ones, or such as come back.
    pub(crate) fn add(&mut self, owner: ReplicaId, id: PoolId, amount: &Amount) -> Result<(), BadLedgerOp> {
        let account = self.accounts.entry(owner).or_default();
        account.free = account.free.checked_add(amount).ok_or(BadLedgerOp::Overflow(id))?;
        account.check_pieces(id)
    }

    /// Takes free rights out of an account, after the grants that count in the owner's past.
    pub(crate) fn take(
        &mut self,
        owner: ReplicaId,
        past: &Frontier,
        id: PoolId,
        amount: &Amount,
    ) -> Result<(), BadLedgerOp> {
        let account = self.accounts.entry(owner).or_default();
        account.settle(past);
        let unchecked = on(Mutant::RightsUnchecked).then(|| account.free.saturating_sub(amount));
        let Some(rest) = account.free.checked_sub(amount).or(unchecked) else {
            return Err(BadLedgerOp::NotHeld { pool: id, held: account.free.clone(), wanted: amount.clone() });
        };
        account.free = rest;
        account.check_pieces(id)
    }

    /// Empties the account of somebody who is gone, as of `past`.
    pub(crate) fn take_all(&mut self, owner: ReplicaId, past: &Frontier) -> Amount {
        let Some(account) = self.accounts.get_mut(&owner) else { return Amount::default() };
        account.settle(past);
        std::mem::take(&mut account.free)
    }

    /// Notes a grant. `by_root`: the giver is the root, or its heir, whose word needs no other.
    pub(crate) fn grant(&mut self, to: ReplicaId, by: EntryId, index: u32, amount: Amount, by_root: bool) {
        let confirmed = (self.confirmed && !by_root).then(Vec::new);
        self.accounts.entry(to).or_default().incoming.push(Incoming { by, index, amount, confirmed });
    }

    /// Notes that `by`, an entry with `past`, countersigns a grant. Nothing if that is settled, is not there, or was
    /// countersigned in that past: which of them it is depends on what is held here.
    pub(crate) fn confirm(&mut self, grant: Waiting, by: EntryId, past: &Frontier) {
        let Some(account) = self.accounts.get_mut(&grant.to) else { return };
        let is_it = |one: &&mut Incoming| (one.by, one.index) == (grant.grant, grant.index);
        let Some(entries) = account.incoming.iter_mut().find(is_it).and_then(|one| one.confirmed.as_mut()) else {
            return;
        };
        if !entries.iter().any(|entry| past.holds(*entry)) {
            entries.push(by);
            entries.sort_unstable();
        }
    }

    /// The grants that wait for the root's word.
    pub(crate) fn waiting(&self, pool: PoolId) -> impl Iterator<Item = Waiting> + '_ {
        let of = move |(to, account): (&ReplicaId, &Account)| {
            let waiting = account.incoming.iter().filter(|grant| grant.is_waiting());
            let named = |one: &Incoming| Waiting { pool, to: *to, grant: one.by, index: one.index };
            waiting.map(named).collect::<Vec<_>>()
        };
        self.accounts.iter().flat_map(of)
    }
}
