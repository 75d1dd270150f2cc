//! What one replica holds of one pool, and the pool itself (`PROTOCOL.md`, A1 and A5).
//!
//! In a pool that is **confirmed**, a grant counts only where the pool's root, or its heir, has countersigned it: a holder that
//! lies can sign two chains, and grant one right in each half of a split cloud; but the root's chain is one, and names one
//! of the two. What the root itself grants needs no second word. The price: a right that comes from another holder is
//! spent only once the root has been heard.
//!
//! Who **forks** can spend its rights once in each branch (M3). Every branch was judged where it was written, by those who
//! knew no other; together they leave a **debt**, which its account owes, and then its heir's: no right of an account is free
//! before that is paid. What cannot be paid is the pool's overdraft. A branch that only another liar shows was judged by nobody:
//! so what each branch spends is bounded by all that the account had when the fork became known, and what was granted to it since.
//! A branch that was judged where it was written is always within that bound, since what it spent it had at the fork, or
//! got from others; one beyond it is not taken, and waits, with whatever rests on it.

use std::collections::BTreeSet;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::branch::{Rename as _, Renaming};
use crate::entry::{Frontier, Subject};
use crate::hosts::Death;
use crate::id::{EntryId, PoolId, ReplicaId};
use crate::interval::Intervals;
use crate::ledger::{BadLedgerOp, MAX_FREE_INTERVALS};
use crate::mutant::{Mutant, on};
use crate::retire::Retired;
use crate::site_mutant::{self, SiteMutant};

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
    /// Somebody who forked has spent of it.
    pub is_forked: bool,
    /// It was minted by somebody who had seen the deletion of what it is for. As whoever has forgotten that cannot tell, such
    /// a pool is one like others, and stays.
    #[serde(default)]
    pub(crate) late: bool,
    accounts: OrdMap<ReplicaId, Account>,
    /// Declarations that the host is dead (S5), in order of their entries; more than one only if two were made apart.
    #[serde(default)]
    pub dead: Vec<Death>,
    /// What is claimed more than once.
    #[serde(default)]
    claimed_again: Again,
}

/// What one replica holds of one pool.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Account {
    /// Free rights as of the owner's last entry that used this pool.
    free: Amount,
    /// What was spent twice, less what was paid of it.
    debt: Amount,
    /// Grants to the owner that this `free` does not contain yet.
    incoming: Vec<Incoming>,
    /// The owner has forked.
    #[serde(default)]
    forked: Option<Box<Forked>>,
    /// What is owed more than once.
    #[serde(default)]
    owed_again: Again,
    /// What has been taken of it in parts, and by whom: votes of an owner who is retired.
    #[serde(default)]
    taken: Vec<(ReplicaId, Amount)>,
    /// Of votes: what has moved lately.
    #[serde(default)]
    moves: Vec<Move>,
}

/// What has moved into or out of an account of votes. A seal counts the votes of its author in its own past (E3), and a member that has
/// forked gives and gets in each branch what in the other's past it has not: so what moved is kept until nobody can write with
/// a past that lacks it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Move {
    /// The owner gave so much away in this entry.
    Gave(EntryId, Amount),
    /// What was granted to the owner, and its entry that has seen it.
    Got(Incoming, EntryId),
    /// The owner took so much in this entry, as its part of what a retired one had.
    Took(EntryId, ReplicaId, Amount),
}

impl Move {
    /// Once everybody has this one, nobody writes with a past that lacks the move.
    fn last(&self) -> EntryId {
        match self {
            Self::Gave(entry, _) | Self::Got(_, entry) | Self::Took(entry, ..) => *entry,
        }
    }

    fn rename(&mut self, by: &Renaming) {
        match self {
            Self::Gave(entry, _) | Self::Took(entry, ..) => entry.rename(by),
            Self::Got(grant, entry) => {
                grant.rename(by);
                entry.rename(by);
            }
        }
    }
}

/// What an account owes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Debt {
    sum: Amount,
    again: Again,
}

impl Debt {
    pub(crate) fn is_zero(&self) -> bool {
        self.sum.is_zero()
    }
}

/// The addresses that a sum has at least twice, at least three times, and so on: branches of a fork spend one address each for
/// itself. A set cannot count, and what it says would depend on whether one branch takes back what it has spent before or
/// after another's spending is known here.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Again(Vec<Intervals>);

impl Again {
    fn add(&mut self, sum: &mut Amount, more: &Amount) {
        let mut again = sum.addresses().intersection(more.addresses());
        *sum = sum.saturating_add(more);
        for set in &mut self.0 {
            let higher = set.intersection(&again);
            *set = set.union(&again);
            again = higher;
        }
        if !again.is_empty() {
            self.0.push(again);
        }
    }

    fn remove(&mut self, sum: &mut Amount, less: &Amount) {
        if self.0.is_empty() {
            *sum = sum.saturating_sub(less);
            return;
        }
        let mut once = less.addresses().clone();
        for set in self.0.iter_mut().rev() {
            let here = set.intersection(&once);
            (*set, once) = (set.difference(&here), once.difference(&here));
        }
        self.0.retain(|set| !set.is_empty());
        let kept = less.addresses().difference(&once);
        *sum = sum.saturating_sub(&less.saturating_sub(&kept.into()));
    }
}

/// What an owner who forked may spend in each of its branches, since the fork became known here.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Forked {
    /// All that it held then, and what was granted to it since. None if that cannot be told any more.
    limit: Option<Amount>,
    /// What each branch has spent and not taken back.
    spent: Vec<(ReplicaId, Amount)>,
}

impl Forked {
    fn in_branch(&mut self, log: ReplicaId) -> &mut Amount {
        let at = match self.spent.iter().position(|(of, _)| *of == log) {
            Some(at) => at,
            None => {
                self.spent.push((log, Amount::default()));
                self.spent.len() - 1
            }
        };
        &mut self.spent[at].1
    }
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

    fn rename(&mut self, by: &Renaming) {
        self.by.rename(by);
        self.confirmed.iter_mut().for_each(|entries| entries.rename(by));
    }
}

impl Account {
    /// Of an owner who has forked, every branch may spend this, too.
    fn credit(&mut self, amount: &Amount) {
        if let Some(limit) = self.forked.as_mut().and_then(|forked| forked.limit.as_mut()) {
            *limit = limit.saturating_add(amount);
        }
    }

    /// Takes up the grants that the owner's frontier covers (A1). Frontiers only grow, so it does not matter at which
    /// of the owner's entries this is done. All there is was minted, with a check: no sum overflows, and sets are disjoint.
    /// Where a fork has granted one right twice, its receiver holds it once. `by`: the entry with that past, if it is to be kept.
    fn settle(&mut self, past: &Frontier, by: Option<EntryId>) {
        let (seen, unseen) =
            std::mem::take(&mut self.incoming).into_iter().partition::<Vec<_>, _>(|grant| grant.counts_at(past));
        self.incoming = unseen;
        self.free = sum(std::mem::take(&mut self.free), seen.iter());
        if let Some(by) = by {
            self.moves.extend(seen.into_iter().map(|grant| Move::Got(grant, by)));
        }
        self.pay();
    }

    /// Pays what can be paid.
    fn pay(&mut self) {
        let paid = self.free.min(&self.debt);
        self.free = self.free.saturating_sub(&paid);
        self.owed_again.remove(&mut self.debt, &paid);
    }

    /// All that is here, were nothing owed.
    fn gross(&self) -> Amount {
        sum(self.free.clone(), self.incoming.iter()).saturating_sub(&self.parted())
    }

    /// All that was taken in parts.
    fn parted(&self) -> Amount {
        self.taken.iter().fold(Amount::default(), |sum, (_, part)| sum.saturating_add(part))
    }

    /// What one has taken of it.
    fn taken(&self, by: ReplicaId) -> Amount {
        self.taken.iter().find(|(who, _)| *who == by).map(|(_, part)| part.clone()).unwrap_or_default()
    }

    /// What its owner has at `past`, or had before any of it was taken in parts.
    fn held(&self, past: &Frontier) -> Amount {
        let mut held = sum(self.free.clone(), self.incoming.iter().filter(|grant| grant.counts_at(past)));
        let mut less = self.debt.clone();
        for one in &self.moves {
            match one {
                Move::Gave(entry, amount) if !past.holds(*entry) => held = held.saturating_add(amount),
                Move::Got(grant, _) if !grant.counts_at(past) => less = less.saturating_add(&grant.amount),
                Move::Took(entry, _, amount) if !past.holds(*entry) => less = less.saturating_add(amount),
                Move::Gave(..) | Move::Got(..) | Move::Took(..) => {}
            }
        }
        held.saturating_sub(&less)
    }

    /// What its owner has taken of what a retired one had, but not at `past`.
    fn took_later(&self, from: ReplicaId, past: &Frontier) -> Amount {
        let later = self.moves.iter().filter_map(|one| match one {
            Move::Took(entry, of, amount) if *of == from && !past.holds(*entry) => Some(amount),
            Move::Gave(..) | Move::Got(..) | Move::Took(..) => None,
        });
        later.fold(Amount::default(), |sum, amount| sum.saturating_add(amount))
    }

    /// In how many pieces its free addresses are.
    fn pieces(&self) -> usize {
        self.free.addresses().pieces()
    }

    fn rights(&self) -> Rights {
        let gross = self.gross();
        let (total, owed) = (gross.saturating_sub(&self.debt), self.debt.saturating_sub(&gross));
        Rights { total, waiting: self.waiting(), owed }
    }

    fn waiting(&self) -> Amount {
        sum(Amount::default(), self.incoming.iter().filter(|grant| grant.is_waiting()))
    }

    fn spendable(&self) -> Amount {
        let counts = self.incoming.iter().filter(|grant| !grant.is_waiting());
        sum(self.free.clone(), counts).saturating_sub(&self.debt).saturating_sub(&self.parted())
    }
}

/// Whether an operation leaves its author's free addresses in too many pieces: none that leaves no more than before.
fn check_pieces(pool: PoolId, before: usize, after: usize) -> Result<(), BadLedgerOp> {
    if after > MAX_FREE_INTERVALS && after > before { Err(BadLedgerOp::Fragmented(pool)) } else { Ok(()) }
}

fn equal_part(account: &Account, stayed: &BTreeSet<ReplicaId>, past: &Frontier) -> Amount {
    account.held(past).divided_by(u64::try_from(stayed.len()).unwrap_or(u64::MAX))
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
    /// What is owed beyond that.
    pub(crate) owed: Amount,
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
        self.accounts.get(&replica).map(|account| account.held(past)).unwrap_or_default()
    }

    /// Of the rights of a retired replica, in a pool that falls to all who stayed in equal parts, the part of one of them that it has
    /// not taken at `past`. What was taken changes no part: so it does not matter whose taking is held here.
    pub(crate) fn part(&self, of: ReplicaId, from: ReplicaId, retired: &Retired, past: &Frontier) -> Amount {
        let stayed = retired.stayed(from).filter(|stayed| stayed.contains(&of));
        let (Some(account), Some(stayed)) = (self.accounts.get(&from), stayed) else { return Amount::default() };
        equal_part(account, stayed, past).saturating_sub(&self.taken(of, from, past))
    }

    /// What one has taken of what a retired replica had, at `past`.
    fn taken(&self, of: ReplicaId, from: ReplicaId, past: &Frontier) -> Amount {
        let all = self.accounts.get(&from).map(|account| account.taken(of)).unwrap_or_default();
        let later = self.accounts.get(&of).map(|account| account.took_later(from, past)).unwrap_or_default();
        all.saturating_sub(&later)
    }

    /// What is nobody's of the rights of a retired replica at `past`: all but what was taken, and the parts of those who live.
    pub(crate) fn left(&self, from: ReplicaId, retired: &Retired, past: &Frontier) -> Amount {
        let (Some(account), Some(stayed)) = (self.accounts.get(&from), retired.stayed(from)) else {
            return Amount::default();
        };
        let part = equal_part(account, stayed, past);
        let theirs = stayed.iter();
        let theirs = theirs.map(|of| if retired.contains(*of) { self.taken(*of, from, past) } else { part.clone() });
        theirs.fold(account.held(past), |left, theirs| left.saturating_sub(&theirs))
    }

    /// Takes one's part of the rights of a retired replica out of its account, in this entry, and says how much that is: nothing if
    /// another branch has taken it.
    pub(crate) fn take_part(
        &mut self,
        by: ReplicaId,
        from: ReplicaId,
        retired: &Retired,
        past: &Frontier,
        entry: EntryId,
    ) -> Amount {
        let elsewhere = self.accounts.get(&by).map(|account| account.took_later(from, past)).unwrap_or_default();
        let part = self.part(by, from, retired, past).saturating_sub(&elsewhere);
        if let Some(account) = self.accounts.get_mut(&from).filter(|_| !part.is_zero()) {
            let all = account.taken(by).saturating_add(&part);
            account.taken.retain(|(who, _)| *who != by);
            account.taken.push((by, all));
            account.taken.sort_unstable_by_key(|(who, _)| *who);
            self.accounts.entry(by).or_default().moves.push(Move::Took(entry, from, part.clone()));
        }
        part
    }

    /// What was spent twice by replicas that forked, and is not paid yet (M3).
    #[must_use]
    pub fn overdraft(&self) -> Amount {
        self.accounts.values().fold(Amount::default(), |sum, account| sum.saturating_add(&account.rights().owed))
    }

    /// Whether there is anything in a replica's account that an heir could take: rights, or debts.
    pub(crate) fn is_left(&self, replica: ReplicaId) -> bool {
        let left = |account: &Account| !account.spendable().is_zero() || !account.debt.is_zero();
        self.accounts.get(&replica).is_some_and(left)
    }

    /// Whether rights and claims add up: minted + debts = free + claimed + burnt. Of an address that a fork has granted
    /// twice, one is as good as two.
    pub(crate) fn is_conserved(&self) -> bool {
        let used = [self.claimed.clone(), self.burnt.clone()];
        let mut parts = self.accounts.values().map(Account::gross).chain(used);
        if !self.is_forked {
            let sum = parts.try_fold(Amount::default(), |sum, part| sum.checked_add(&part));
            return sum.is_some_and(|sum| sum == self.minted);
        }
        let sum = parts.fold(Amount::default(), |sum, part| sum.saturating_add(&part));
        let due = self.accounts.values().fold(self.minted.clone(), |sum, account| sum.saturating_add(&account.debt));
        sum.iter().eq(due.iter()) && self.minted.addresses().covers(sum.addresses())
    }

    /// What was one log's is another's.
    pub(crate) fn rename(&mut self, by: &Renaming) {
        let renamed = self.accounts.iter().map(|(replica, account)| {
            let mut account = account.clone();
            for (log, _) in account.forked.iter_mut().flat_map(|forked| &mut forked.spent) {
                if *log == by.log {
                    *log = by.to;
                }
            }
            account.incoming.iter_mut().for_each(|grant| grant.rename(by));
            account.moves.iter_mut().for_each(|one| one.rename(by));
            (*replica, account)
        });
        self.accounts = renamed.collect();
        self.dead.iter_mut().for_each(|death| death.entry.rename(by));
        self.dead.sort_unstable();
    }

    /// The pool that a mint makes: its root holds all of it.
    pub(crate) fn mint(root: ReplicaId, subject: Subject, amount: Amount, confirmed: bool) -> Self {
        let account = Account { free: amount.clone(), ..Account::default() };
        let accounts = OrdMap::unit(root, account);
        let (burnt, claimed) = (Amount::default(), Amount::default());
        let (is_forked, late, dead, claimed_again) = (false, false, Vec::new(), Again::default());
        Self { subject, minted: amount, burnt, claimed, confirmed, is_forked, late, accounts, dead, claimed_again }
    }

    /// Notes a claim, that has been paid for.
    pub(crate) fn claim(&mut self, amount: &Amount) {
        self.claimed_again.add(&mut self.claimed, amount);
    }

    /// Notes that a claim is gone. What it was for goes to whoever released it ([`Pool::add`]).
    pub(crate) fn unclaim(&mut self, amount: &Amount) {
        self.claimed_again.remove(&mut self.claimed, amount);
    }

    /// Mints more.
    pub(crate) fn grow(&mut self, owner: ReplicaId, id: PoolId, amount: &Amount) -> Result<(), BadLedgerOp> {
        self.minted = self.minted.checked_add(amount).ok_or(BadLedgerOp::Overflow(id))?;
        self.credit(owner, amount);
        let pieces = |pool: &Self| pool.accounts.get(&owner).map_or(0, Account::pieces);
        let before = pieces(self);
        self.add(owner, id, amount)?;
        check_pieces(id, before, pieces(self))
    }

    /// Puts rights into an account: new ones, or such as come back, in however many pieces, since somebody must hold
    /// them. They pay what it owes.
    pub(crate) fn add(&mut self, owner: ReplicaId, id: PoolId, amount: &Amount) -> Result<(), BadLedgerOp> {
        let account = self.accounts.entry(owner).or_default();
        let sum = account.free.checked_add(amount);
        // Where a fork has granted one address twice, it is one when both come together.
        let sum = sum.or_else(|| self.is_forked.then(|| account.free.saturating_add(amount)));
        account.free = sum.ok_or(BadLedgerOp::Overflow(id))?;
        account.pay();
        Ok(())
    }

    /// Takes rights out of the account of an owner who has forked, or makes it owe them: what one branch spends, up to what
    /// the owner had.
    pub(crate) fn overdraw(
        &mut self,
        owner: ReplicaId,
        branch: ReplicaId,
        id: PoolId,
        amount: &Amount,
    ) -> Result<(), BadLedgerOp> {
        self.is_forked = true;
        let account = self.accounts.entry(owner).or_default();
        let gross = account.gross();
        let forked = account.forked.get_or_insert_with(|| Box::new(Forked { limit: Some(gross), spent: Vec::new() }));
        let limit = forked.limit.clone();
        let spent = forked.in_branch(branch);
        *spent = spent.saturating_add(amount);
        if limit.is_some_and(|limit| !limit.covers(spent)) {
            return Err(BadLedgerOp::Overspent(id));
        }
        if !on(Mutant::DebtForgiven) {
            account.owed_again.add(&mut account.debt, amount);
        }
        account.pay();
        Ok(())
    }

    /// A branch of an owner who has forked has taken back what it had spent.
    pub(crate) fn unspend(&mut self, owner: ReplicaId, branch: ReplicaId, amount: &Amount) {
        if let Some(forked) = self.accounts.get_mut(&owner).and_then(|account| account.forked.as_mut()) {
            let spent = forked.in_branch(branch);
            *spent = spent.saturating_sub(amount);
        }
    }

    /// What an owner gets that is new to it.
    pub(crate) fn credit(&mut self, owner: ReplicaId, amount: &Amount) {
        if let Some(account) = self.accounts.get_mut(&owner).filter(|account| account.forked.is_some()) {
            account.credit(amount);
        }
    }

    /// An owner turns out to have forked, or to have forked earlier than was known. It had what is in its account, what is
    /// `claimed`, and what the branch that is held here has `given` away since the fork, or between it and that which was the
    /// earliest; none if that cannot be told.
    pub(crate) fn fork(&mut self, owner: ReplicaId, claimed: &Amount, given: Option<&Amount>) {
        let Some(account) = self.accounts.get_mut(&owner) else { return };
        let gross = account.gross();
        let forked = account.forked.get_or_insert_with(|| {
            let limit = Some(gross.saturating_add(claimed));
            Box::new(Forked { limit, spent: Vec::new() })
        });
        forked.limit = forked.limit.as_ref().zip(given).map(|(limit, given)| limit.saturating_add(given));
    }

    /// Makes an account owe what another did.
    pub(crate) fn owe(&mut self, owner: ReplicaId, debt: Debt) {
        if !debt.is_zero() {
            let account = self.accounts.entry(owner).or_default();
            let again: Vec<Amount> = debt.again.0.into_iter().map(Amount::from).collect();
            for part in std::iter::once(debt.sum).chain(again) {
                account.owed_again.add(&mut account.debt, &part);
            }
            account.pay();
        }
    }

    /// Takes up the grants to the author of an entry that count in its past: before it spends anything.
    pub(crate) fn settle(&mut self, owner: ReplicaId, entry: EntryId, past: &Frontier) {
        let keeps = self.keeps(entry);
        self.accounts.entry(owner).or_default().settle(past, keeps);
    }

    /// Notes what was spent in an entry, where that is to be kept.
    pub(crate) fn note_spent(&mut self, owner: ReplicaId, entry: EntryId, amount: &Amount) {
        if let Some(entry) = self.keeps(entry) {
            self.accounts.entry(owner).or_default().moves.push(Move::Gave(entry, amount.clone()));
        }
    }

    /// Takes free rights out of an account.
    pub(crate) fn take(&mut self, owner: ReplicaId, id: PoolId, amount: &Amount) -> Result<(), BadLedgerOp> {
        let account = self.accounts.entry(owner).or_default();
        let unchecked = on(Mutant::RightsUnchecked).then(|| account.free.saturating_sub(amount));
        let rest = account.free.checked_sub(amount).filter(|_| account.debt.is_zero());
        let Some(rest) = rest.or(unchecked) else {
            return Err(BadLedgerOp::NotHeld { pool: id, held: account.free.clone(), wanted: amount.clone() });
        };
        if site_mutant::on(SiteMutant::AddressTwice) && !amount.addresses().is_empty() {
            return Ok(());
        }
        let before = account.pieces();
        account.free = rest;
        check_pieces(id, before, account.pieces())
    }

    /// What is to be kept of a move in this entry.
    fn keeps(&self, entry: EntryId) -> Option<EntryId> {
        matches!(self.subject, Subject::Votes).then_some(entry)
    }

    /// The pool with the grants taken up that their receivers have said to have seen, and without moves that all have; none if
    /// there are none. Nothing shows of it: each account is what it was at every past that its owner may still name.
    pub(crate) fn folded<'a>(
        &self,
        said: &dyn Fn(ReplicaId) -> Option<&'a Frontier>,
        all_have: &dyn Fn(EntryId) -> bool,
    ) -> Option<Self> {
        let counts = |owner: &ReplicaId, account: &Account| {
            let past = said(*owner)?;
            account.incoming.iter().any(|grant| grant.counts_at(past)).then_some((*owner, past))
        };
        let owners: Vec<_> = self.accounts.iter().filter_map(|(owner, account)| counts(owner, account)).collect();
        let is_over = |one: &Move| all_have(one.last());
        let moved =
            self.accounts.iter().filter(|(_, account)| account.moves.iter().any(is_over)).map(|(owner, _)| *owner);
        let moved: Vec<_> = moved.collect();
        let mut folded = if owners.is_empty() && moved.is_empty() { return None } else { self.clone() };
        for (owner, past) in &owners {
            let keeps = self.keeps(EntryId { author: *owner, number: past.number(*owner) });
            if let Some(account) = folded.accounts.get_mut(owner) {
                account.settle(past, keeps);
            }
        }
        for owner in moved {
            if let Some(account) = folded.accounts.get_mut(&owner) {
                account.moves.retain(|one| !is_over(one));
            }
        }
        Some(folded)
    }

    /// Empties the account of somebody who is gone, as of `past`: what was free, and what was owed.
    pub(crate) fn take_all(&mut self, owner: ReplicaId, past: &Frontier) -> (Amount, Debt) {
        let Some(account) = self.accounts.get_mut(&owner) else { return Default::default() };
        account.settle(past, None);
        let debt = Debt { sum: std::mem::take(&mut account.debt), again: std::mem::take(&mut account.owed_again) };
        (std::mem::take(&mut account.free), debt)
    }

    /// Notes a grant. `by_root`: the giver is the root, or its heir, whose word needs no other.
    pub(crate) fn grant(&mut self, to: ReplicaId, by: EntryId, index: u32, amount: Amount, by_root: bool) {
        let confirmed = (self.confirmed && !by_root).then(Vec::new);
        let account = self.accounts.entry(to).or_default();
        account.credit(&amount);
        account.incoming.push(Incoming { by, index, amount, confirmed });
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
