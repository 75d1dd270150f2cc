//! Where a server goes: filters, then weighers, over the hosts on which rights are held (`DESIGN.md`, "Scheduling").
//!
//! Home site first, locality is the point. Among the best few the choice is random: many sites look at the same
//! picture, and must not all pick the same host. The random bits come in as an argument.
//!
//! A hard policy of a server group is kept by rights, not by looking: two sites that cannot see each other's members
//! cannot both have the right that either would need ([`MemberRight`]). Soft policies only weigh.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::entry::Subject;
use crate::filters::{AggregateWish, image_fits};
use crate::id::{ClaimId, HostId, PoolId, ReplicaId};
use crate::ledger::{Amount, Dimension};
use crate::record::{GroupPolicy, Host, Kind, RecordId, ServerGroup};
use crate::site_mutant::{SiteMutant, on};
use crate::tx::{Refusal, Shortage, Tx, shortage};
use crate::view::View;

/// Among how many of the best hosts the choice is random.
const BEST: usize = 3;

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The site to be in; any if none, the own one first.
    pub zone: Option<String>,
    /// The host to be on, if the user named one.
    pub host: Option<HostId>,
    /// What the server needs: vCPU, memory, disk.
    pub amount: Amount,
    /// The flavor's extra specs: those that speak of aggregates count.
    pub extra_specs: BTreeMap<String, String>,
    /// The image's properties: those that name an architecture or hypervisor count.
    pub image: BTreeMap<String, String>,
    /// The server group to be in.
    pub group: Option<Uuid>,
    /// Servers with none of which it shall share a host.
    pub different_host: Vec<Uuid>,
    /// Servers with one of which it shall share a host; any host if empty.
    pub same_host: Vec<Uuid>,
}

/// A host that will do, and the pool whose rights are to be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The host.
    pub host: HostId,
    /// The pool.
    pub pool: PoolId,
    /// The right to place a member of the group there, where its policy needs one to be spent.
    pub member: Option<MemberRight>,
}

/// How the right to place a member of a group with anti-affinity on a host is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRight {
    /// It is held free here.
    Held(PoolId),
    /// This replica is the root of the host's pool, and the first to need it: it is to be minted.
    New {
        /// The group.
        group: Uuid,
        /// How many members the host may have.
        limit: u64,
    },
}

/// A right to place a member that only another replica can make: the root of the host's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unminted {
    /// The group.
    pub group: Uuid,
    /// The host.
    pub host: HostId,
    /// Whom to ask.
    pub root: ReplicaId,
}

/// Why no host will do. The text is Nova's, with the numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NoValidHost {
    /// Hosts in the zone that was asked for.
    pub in_zone: usize,
    /// Of them, disabled by their operator.
    pub disabled: usize,
    /// Of them, not heard of lately.
    pub down: usize,
    /// Of them, not what the image runs on.
    pub image: usize,
    /// Of them, in no aggregate that has what the flavor asks for.
    pub aggregates: usize,
    /// Of them, not where the hints `different_host` and `same_host` want it.
    pub hints: usize,
    /// Of them, ruled out by the server group's policy, whoever holds the rights.
    pub group: usize,
    /// Of them, too small or too full, whoever holds the rights.
    pub full: usize,
    /// Of them, with room whose rights others hold, the roomiest first: ask those, then try again. For a group with
    /// affinity only the right to place its members, if that is not held here.
    pub short: Vec<Shortage>,
    /// Of them, with room, where the right to place a member of the group is yet to be made: ask for it, then try again.
    pub unminted: Vec<Unminted>,
}

impl std::error::Error for NoValidHost {}
impl std::fmt::Display for NoValidHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_token = |short: &Shortage| matches!(short.subject, Some(Subject::Group { host: None, .. }));
        if self.short.first().is_some_and(is_token) {
            return f.write_str("No valid host was found: the right to place members of the server group is not here");
        }
        let Self { in_zone, disabled, down, full, .. } = self;
        write!(f, "No valid host was found. Of {in_zone} hosts in the zone, {disabled} are disabled, {down} are down")?;
        let rest = [
            (self.image, "are not what the image runs on"),
            (self.aggregates, "are in no aggregate that has what the flavor asks for"),
            (self.hints, "are ruled out by scheduler hints"),
            (self.group, "are ruled out by the server group's policy"),
        ];
        rest.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, why)| write!(f, ", {n} {why}"))?;
        write!(f, " and {full} have no room")?;
        if let Some(first) = self.short.first() {
            write!(f, "; {} have room whose rights are held elsewhere (the first: {first})", self.short.len())?;
        }
        if !self.unminted.is_empty() {
            let n = self.unminted.len();
            write!(f, "; for {n} the right to place a member of the server group is to be had from their sites only")?;
        }
        Ok(())
    }
}

/// Whether a machine fits: the one feasibility function, for schedulers and agents.
#[must_use]
pub fn fits(capacity: &Amount, used: &Amount, wanted: &Amount) -> bool {
    used.checked_add(wanted).is_some_and(|sum| capacity.covers(&sum))
}

/// Chooses a host. `is_up` says whether a host was heard of lately; hosts of sites that are out of reach count as up
/// (they are unknown, not down). `random` decides among the best few.
///
/// # Errors
/// [`NoValidHost`] says how many hosts failed which filter, and whose rights would help.
pub fn choose(
    view: &View,
    me: ReplicaId,
    home: &str,
    request: &Request,
    is_up: &dyn Fn(HostId) -> bool,
    random: u64,
) -> Result<Choice, NoValidHost> {
    let mut none = NoValidHost::default();
    let search = Search::new(view, me, request)?;
    let mut ready: Vec<Candidate> = Vec::new();
    for (id, host) in view.all::<Host>() {
        let id = HostId(id);
        let in_zone = request.zone.as_ref().is_none_or(|zone| *zone == host.site);
        if !in_zone || request.host.is_some_and(|wanted| wanted != id) {
            continue;
        }
        none.in_zone += 1;
        let at_home = host.site == home;
        match search.judge(id, host, is_up) {
            Verdict::Ready(choice, weight) => {
                let soft = search.group.as_ref().map_or(0, |group| group.soft_weight(id));
                ready.push(Candidate { rank: (soft, at_home), weight, choice });
            }
            Verdict::Disabled => none.disabled += 1,
            Verdict::Down => none.down += 1,
            Verdict::Image => none.image += 1,
            Verdict::Aggregates => none.aggregates += 1,
            Verdict::Hints => none.hints += 1,
            Verdict::Group => none.group += 1,
            Verdict::Full => none.full += 1,
            Verdict::Short(short) => none.short.push(*short),
            Verdict::Unminted(unminted) if at_home => none.unminted.insert(0, unminted),
            Verdict::Unminted(unminted) => none.unminted.push(unminted),
        }
    }
    none.short.sort_by_key(|short| Reverse(weight(&short.capacity.saturating_sub(&short.claimed))));
    pick(ready, random).ok_or(none)
}

impl Choice {
    /// Spends the rights that the choice rests on: the host's, and the one to place a member of the group there.
    ///
    /// # Errors
    /// [`Refusal`], if the transaction has changed them since it chose.
    pub fn claim(&self, tx: &mut Tx<'_>, need: &Amount, record: RecordId, epoch: u64) -> Result<ClaimId, Refusal> {
        if let Some(right) = self.member {
            let pool = match right {
                MemberRight::Held(pool) => pool,
                MemberRight::New { group, limit } => {
                    tx.mint(Subject::Group { group, host: Some(self.host) }, members(limit))?
                }
            };
            tx.claim(&[pool], &members(1), record, 0)?;
        }
        tx.claim(&[self.pool], need, record, epoch)
    }
}

/// Hands the right to place one member of a group on a host to `to`, who asked; it is made if this is the first. Gives
/// what was handed over: nothing, if there is none here.
///
/// # Errors
/// [`Refusal::Invalid`] if `to` is no member.
pub fn hand_over(tx: &mut Tx<'_>, group: Uuid, host: HostId, to: ReplicaId) -> Result<Amount, Refusal> {
    let Some(state) = GroupState::new(tx.view(), group).filter(|state| state.policy == GroupPolicy::AntiAffinity)
    else {
        return Ok(Amount::default());
    };
    let pool = match state.right(tx.view(), tx.me(), host) {
        Right::Here(MemberRight::Held(pool)) => pool,
        Right::Here(MemberRight::New { group, limit }) => {
            tx.mint(Subject::Group { group, host: Some(host) }, members(limit))?
        }
        Right::Elsewhere(_) | Right::Unminted(_) | Right::Nowhere => return Ok(Amount::default()),
    };
    tx.grant(pool, to, members(1))?;
    Ok(members(1))
}

/// Makes what a new group's policy needs to be kept: for affinity, the one right to place its members. Call it in the
/// transaction that creates the group.
///
/// # Errors
/// [`Refusal::Invalid`] if the group had one before.
pub fn mint_group(tx: &mut Tx<'_>, group: Uuid, policy: GroupPolicy) -> Result<(), Refusal> {
    if policy == GroupPolicy::Affinity {
        tx.mint(Subject::Group { group, host: None }, members(1))?;
    }
    Ok(())
}

/// Rights to place so many members.
fn members(n: u64) -> Amount {
    [(Dimension::Instances, n)].into_iter().collect()
}

/// A host that will do.
struct Candidate {
    /// What comes before the weight: the group's soft policy, then being at home.
    rank: (u64, bool),
    weight: u64,
    choice: Choice,
}

/// One of the best few: of those that the rank leaves equal.
fn pick(mut ready: Vec<Candidate>, random: u64) -> Option<Choice> {
    ready.sort_by_key(|candidate| (Reverse((candidate.rank, candidate.weight)), candidate.choice.host));
    let best = ready.first()?.rank;
    ready.retain(|candidate| candidate.rank == best);
    ready.truncate(BEST);
    let count = u64::try_from(ready.len()).unwrap_or(1).max(1);
    let index = usize::try_from(random % count).unwrap_or(0);
    ready.get(index).map(|candidate| candidate.choice)
}

/// What is said of one host.
enum Verdict {
    Ready(Choice, u64),
    Disabled,
    Down,
    Image,
    Aggregates,
    Hints,
    Group,
    Full,
    Short(Box<Shortage>),
    Unminted(Unminted),
}

/// A request, with what is looked up once.
struct Search<'a> {
    view: &'a View,
    me: ReplicaId,
    request: &'a Request,
    aggregates: AggregateWish<'a>,
    avoid: BTreeSet<HostId>,
    beside: BTreeSet<HostId>,
    group: Option<GroupState>,
}

impl<'a> Search<'a> {
    fn new(view: &'a View, me: ReplicaId, request: &'a Request) -> Result<Self, NoValidHost> {
        let group = request.group.and_then(|group| GroupState::new(view, group));
        if let Some(short) = group.as_ref().and_then(|group| group.missing_token(view, me)) {
            return Err(NoValidHost { short: vec![short], ..NoValidHost::default() });
        }
        let hosts = |servers: &[Uuid]| servers.iter().flat_map(|server| hosts_of(view, *server)).collect();
        let (avoid, beside) = (hosts(&request.different_host), hosts(&request.same_host));
        let aggregates = AggregateWish::new(view, &request.extra_specs);
        Ok(Self { view, me, request, aggregates, avoid, beside, group })
    }

    fn judge(&self, id: HostId, host: &Host, is_up: &dyn Fn(HostId) -> bool) -> Verdict {
        if host.disabled {
            return Verdict::Disabled;
        }
        if host.forced_down || self.view.death(id).is_some() || !is_up(id) {
            return Verdict::Down;
        }
        if !image_fits(&self.request.image, host) {
            return Verdict::Image;
        }
        if !self.aggregates.is_met(id) {
            return Verdict::Aggregates;
        }
        if self.avoid.contains(&id) || (!self.request.same_host.is_empty() && !self.beside.contains(&id)) {
            return Verdict::Hints;
        }
        let right = self.group.as_ref().map(|group| group.right_of_policy(self.view, self.me, id));
        if matches!(right, Some(Some(Right::Nowhere))) {
            return Verdict::Group;
        }
        self.judge_rights(id, right.flatten())
    }

    /// The host's own rights first: no use in asking for a member's right where there is no room.
    fn judge_rights(&self, id: HostId, right: Option<Right>) -> Verdict {
        // Only the pool that its agent serves: a claim on another would be refused (S3).
        let pools: Vec<PoolId> = self.view.host_pool(id).map(|(pool, _)| pool).into_iter().collect();
        let held = |pool: &PoolId| self.view.ledger().pool(*pool).map(|pool| pool.free(self.me)).unwrap_or_default();
        let covers = |pool: &PoolId| held(pool).covers(&self.request.amount) || on(SiteMutant::HostOverbooked);
        let Some(pool) = pools.iter().copied().find(covers) else {
            let short = shortage(self.view, self.me, &pools, &self.request.amount);
            return if short.suffices_elsewhere() { Verdict::Short(Box::new(short)) } else { Verdict::Full };
        };
        let choice = |member| Verdict::Ready(Choice { host: id, pool, member }, weight(&held(&pool)));
        match right {
            None => choice(None),
            Some(Right::Here(member)) => choice(Some(member)),
            Some(Right::Elsewhere(short)) => Verdict::Short(short),
            Some(Right::Unminted(unminted)) => Verdict::Unminted(unminted),
            Some(Right::Nowhere) => Verdict::Group,
        }
    }
}

/// The right to place a member of a group on one host.
enum Right {
    Here(MemberRight),
    Elsewhere(Box<Shortage>),
    Unminted(Unminted),
    /// The host has as many members as it may have.
    Nowhere,
}

/// A server group, and where its members are.
struct GroupState {
    id: Uuid,
    policy: GroupPolicy,
    limit: u64,
    /// Members that hold a claim on a host, those being deleted too: they may still run.
    on: BTreeMap<HostId, u64>,
}

impl GroupState {
    fn new(view: &View, id: Uuid) -> Option<Self> {
        let group: &ServerGroup = view.get(id)?;
        let mut on = BTreeMap::new();
        let hosts = view.children(Kind::Server, id).flat_map(|server| hosts_of(view, server));
        for host in hosts.filter(|host| view.death(*host).is_none()) {
            *on.entry(host).or_default() += 1;
        }
        Some(Self { id, policy: group.policy, limit: group.max_per_host.max(1), on })
    }

    /// For affinity, the shortage of the right to place members, if it is not here. Who has it has seen all members:
    /// it came with the past of everybody who had it before.
    fn missing_token(&self, view: &View, me: ReplicaId) -> Option<Shortage> {
        if self.policy != GroupPolicy::Affinity {
            return None;
        }
        let pools: Vec<PoolId> = view.group_token(self.id).into_iter().collect();
        let short = shortage(view, me, &pools, &members(1));
        (!short.free_here.covers(&short.wanted)).then_some(short)
    }

    /// What the policy needs of a host, if anything.
    fn right_of_policy(&self, view: &View, me: ReplicaId, host: HostId) -> Option<Right> {
        match self.policy {
            GroupPolicy::SoftAffinity | GroupPolicy::SoftAntiAffinity => None,
            GroupPolicy::Affinity if self.on.is_empty() || self.on.contains_key(&host) => None,
            GroupPolicy::Affinity => Some(Right::Nowhere),
            GroupPolicy::AntiAffinity => Some(self.right(view, me, host)),
        }
    }

    /// The right to place a member on a host (anti-affinity).
    fn right(&self, view: &View, me: ReplicaId, host: HostId) -> Right {
        let ledger = view.ledger();
        let pools: Vec<PoolId> = ledger.group_pools(self.id, Some(host)).map(|(id, _)| id).collect();
        if pools.is_empty() {
            // A host met by two replicas apart has two pools: the root of the one that its agent serves makes the right.
            let Some((pool, _)) = view.host_pool(host) else { return Right::Nowhere };
            let author = pool.entry.author;
            let root = view.retired().heir(author).unwrap_or(author);
            return match root == me {
                true => Right::Here(MemberRight::New { group: self.id, limit: self.limit }),
                false => Right::Unminted(Unminted { group: self.id, host, root }),
            };
        }
        let short = shortage(view, me, &pools, &members(1));
        if short.claimed.get(Dimension::Instances) >= self.limit {
            return Right::Nowhere;
        }
        let free = |pool: &&PoolId| ledger.pool(**pool).is_some_and(|pool| pool.free(me).covers(&members(1)));
        match pools.iter().find(free) {
            Some(pool) => Right::Here(MemberRight::Held(*pool)),
            None if short.suffices_elsewhere() => Right::Elsewhere(Box::new(short)),
            None => Right::Nowhere,
        }
    }

    /// How well a host suits a soft policy; more is better.
    fn soft_weight(&self, host: HostId) -> u64 {
        let on = self.on.get(&host).copied().unwrap_or(0);
        match self.policy {
            GroupPolicy::SoftAffinity => on,
            GroupPolicy::SoftAntiAffinity => u64::MAX - on,
            GroupPolicy::Affinity | GroupPolicy::AntiAffinity => 0,
        }
    }
}

/// The hosts that a server may run on: one, or two while it moves.
fn hosts_of(view: &View, server: Uuid) -> BTreeSet<HostId> {
    let claims = view.ledger().claims_of(RecordId { kind: Kind::Server, id: server });
    claims.filter(|(_, claim)| claim.gone.is_empty()).filter_map(|(_, claim)| view.ledger().host_of(claim)).collect()
}

/// Nova's default weigher spreads by free memory.
fn weight(free: &Amount) -> u64 {
    free.get(Dimension::MemoryMib)
}
