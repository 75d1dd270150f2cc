//! Operations: what the API's handlers do with a transaction, and what is checked of their answers.

use std::collections::{BTreeMap, BTreeSet};

use luc_engine::entry::Subject;
use luc_engine::id::{EntryId, HostId, PoolId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::mutant::{self, Mutant};
use luc_engine::record::{Flavor, Host, Kind, Power, Project, RecordId, Server, ServerFlavor, User};
use luc_engine::replica::WHOLE_CLOUD;
use luc_engine::tx::{Refusal, Shortage, Tx};
use luc_sync::join::mint_quota_as;
use uuid::Uuid;

use super::addresses;
use super::node::{Job, Node};
use super::rng::pick;
use super::sometimes::State;
use super::workload::Op;
use super::world::World;

/// How often an operation is tried again after rights have come, as the API does.
const TRIES: u8 = 3;

/// An operation at a node, with the id of what it makes.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) op: Op,
    pub(super) id: Uuid,
    pub(super) tries: u8,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Done {
    /// This entry, and the record that it made.
    Wrote(EntryId, Option<Uuid>),
    /// It changed nothing.
    Nothing,
    /// Rights are short here.
    Short(Box<Shortage>),
    /// Refused.
    Refused,
}

/// What exists, as far as anybody was told: what later operations are about.
#[derive(Debug, Default)]
pub(super) struct KnownRecords {
    projects: Vec<Uuid>,
    servers: Vec<Uuid>,
    /// Servers that somebody was asked to delete.
    gone: Vec<Uuid>,
    flavors: Vec<Uuid>,
    pools: Vec<Uuid>,
    addresses: Vec<Uuid>,
    /// Who changed a record last.
    edits: BTreeMap<Uuid, EntryId>,
    names: BTreeMap<u64, EntryId>,
}

impl KnownRecords {
    /// A server that there is or was.
    pub(super) fn any_server(&self, bits: u64) -> Option<Uuid> {
        // What was deleted is the rarer question.
        if bits >> 62 == 0 { pick(&self.gone, bits) } else { pick(&self.servers, bits) }
    }
}

enum Unplaced {
    Short(Vec<PoolId>, Box<Shortage>),
    Refused,
}

impl From<Refusal> for Unplaced {
    fn from(_: Refusal) -> Self {
        Self::Refused
    }
}

/// What a server of so many vCPU needs of a host.
pub(super) fn need(size: u64) -> Amount {
    [(Dimension::Vcpus, size), (Dimension::MemoryMib, size * 512), (Dimension::DiskGib, size * 5)].into_iter().collect()
}

fn quota(size: u64) -> Amount {
    let parts = [(Dimension::Vcpus, size), (Dimension::MemoryMib, size * 512), (Dimension::Instances, 1)];
    parts.into_iter().collect()
}

impl World {
    /// A client sends a request to one of the sites whose replica runs.
    pub(super) fn ask_for(&mut self, node: u64, op: Op) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|at| self.nodes.get(*at).is_some_and(Node::serves)).collect();
        let Some(at) = pick(&up, node) else { return };
        if let Op::Look { client, server } = op {
            return self.begin_to_look(at, client, server);
        }
        let id = self.fresh();
        self.trace.note(self.now, [7, at as u64, id.as_u64_pair().0], || format!("{at} is asked: {op:?}"));
        self.job(at, Job::Op(Asked { op, id, tries: TRIES }));
    }

    /// A client asks a replica to delete this server, or to switch it, if it is known.
    pub(super) fn ask_about(&mut self, at: usize, server: Uuid, power: Option<u64>) {
        let place = self.known.servers.iter().position(|id| *id == server);
        let Some(server) = place.and_then(|place| u64::try_from(place).ok()) else { return };
        let op = power.map_or(Op::Delete { server }, |power| Op::Power { server, power });
        let id = self.fresh();
        self.job(at, Job::Op(Asked { op, id, tries: TRIES }));
    }

    pub(super) fn execute(&mut self, at: usize, asked: &Asked) -> Done {
        let clock = self.clock(at);
        let known = &self.known;
        let server = |bits: u64| pick(&known.servers, bits);
        let subject = match &asked.op {
            Op::Create { project, .. } => pick(&known.projects, *project),
            // Some stay, or nothing could be created any more.
            Op::DeleteProject { project } => pick(known.projects.get(2..).unwrap_or_default(), *project),
            Op::Delete { server: bits } | Op::Power { server: bits, .. } | Op::Rename { server: bits, .. } => {
                server(*bits)
            }
            Op::Take { pool, .. } | Op::GrowAddresses { pool, .. } | Op::BurnAddresses { pool, .. } => {
                pick(&known.pools, *pool)
            }
            Op::GiveBack { address } => pick(&known.addresses, *address),
            Op::EditFlavor { flavor, .. } | Op::DeleteFlavor { flavor } => pick(&known.flavors, *flavor),
            _ => None,
        };
        let unheard = self.unheard(at);
        let Some(process) = self.process(at) else { return Done::Refused };
        let wrote = process.wrote;
        let op = asked.op.clone();
        if mutant::on(Mutant::ClaimsSplit)
            && let Op::Create { size, .. } = op
        {
            // The seeded bug: the quota is claimed by an entry of its own.
            let record = RecordId { kind: Kind::Server, id: asked.id };
            let split = process.replica.transact::<_, Refusal>(clock, |tx| {
                let pools: Vec<PoolId> =
                    tx.view().ledger().quota_pools(subject.unwrap_or_default()).map(|(id, _)| id).collect();
                tx.claim(&pools, &quota(size), record, 0).map(|_| ())
            });
            process.wrote |= split.is_ok();
        }
        let done = process.replica.transact::<_, Unplaced>(clock, |tx| attempt(tx, &op, asked.id, subject, &unheard));
        match done {
            Ok((made, Some(entry))) => {
                process.wrote = true;
                self.note_concurrency(at, &asked.op, subject, entry);
                Done::Wrote(entry, made)
            }
            Ok((_, None)) => Done::Nothing,
            Err(Unplaced::Short(pools, short)) => {
                if !wrote && self.process(at).is_some_and(|process| process.replica.fence().is_none()) {
                    let checked = self.rules.short(at, &pools, &short.wanted);
                    self.check(checked);
                }
                Done::Short(short)
            }
            Err(Unplaced::Refused) => Done::Refused,
        }
    }

    /// Whether this change was made without knowledge of the one before it.
    fn note_concurrency(&mut self, at: usize, op: &Op, subject: Option<Uuid>, entry: EntryId) {
        let Some(frontier) = self.process(at).map(|process| process.replica.view().frontier().clone()) else { return };
        let apart = |last: Option<EntryId>| last.is_some_and(|last| !frontier.holds(last));
        match op {
            Op::User { name } if apart(self.known.names.insert(*name, entry)) => {
                self.sometimes.saw(State::NameConflict);
            }
            Op::Power { .. } | Op::Rename { .. } | Op::EditFlavor { .. }
                if apart(subject.and_then(|id| self.known.edits.insert(id, entry))) =>
            {
                self.sometimes.saw(State::ConcurrentEdit);
            }
            Op::Delete { .. } | Op::DeleteFlavor { .. }
                if apart(subject.and_then(|id| self.known.edits.get(&id).copied())) =>
            {
                self.sometimes.saw(State::DeleteBeatsUpdate);
            }
            Op::Burn { .. } => self.sometimes.saw(State::Burnt),
            Op::GrowAddresses { .. } => self.sometimes.saw(State::AddressesGrown),
            Op::BurnAddresses { .. } => self.sometimes.saw(State::AddressesBurnt),
            Op::Grow { .. } => self.sometimes.saw(State::Grown),
            _ => {}
        }
        let known = &mut self.known;
        match op {
            Op::Delete { .. } => {
                known.servers.retain(|id| Some(*id) != subject);
                known.gone.extend(subject);
            }
            Op::DeleteFlavor { .. } => known.flavors.retain(|id| Some(*id) != subject),
            Op::GiveBack { .. } => known.addresses.retain(|id| Some(*id) != subject),
            Op::DeleteProject { .. } => known.projects.retain(|id| Some(*id) != subject),
            _ => {}
        }
    }

    /// A request is answered.
    pub(super) fn answered(&mut self, at: usize, asked: Asked, done: Done) {
        let number = match &done {
            Done::Wrote(entry, _) => entry.number,
            Done::Nothing | Done::Short(_) | Done::Refused => 0,
        };
        self.trace.note(self.now, [8, at as u64, number], || format!("{at} has done {:?}: {done:?}", asked.op));
        match done {
            Done::Wrote(entry, made) => {
                let checked = self.rules.acknowledged(at, entry);
                self.check(checked);
                self.told(at, asked.id.as_u64_pair().1);
                if matches!(asked.op, Op::Create { .. }) && self.net.is_parted() {
                    self.sometimes.saw(State::LocalDuringCut);
                }
                match asked.op {
                    Op::Create { .. } => self.known.servers.extend(made),
                    Op::Project { .. } => self.known.projects.extend(made),
                    Op::Flavor { .. } => self.known.flavors.extend(made),
                    Op::Addresses { .. } => self.known.pools.extend(made),
                    Op::Take { .. } => self.known.addresses.extend(made),
                    _ => {}
                }
            }
            Done::Short(short) => {
                if asked.tries > 0 && short.suffices_elsewhere() {
                    self.ask_for_rights(at, asked, &short);
                } else if !short.suffices_elsewhere() {
                    self.sometimes.saw(State::Exhausted);
                }
            }
            Done::Nothing | Done::Refused => {}
        }
    }
}

/// The transaction. Says what it made.
fn attempt(
    tx: &mut Tx<'_>,
    op: &Op,
    id: Uuid,
    subject: Option<Uuid>,
    unheard: &BTreeSet<PoolId>,
) -> Result<Option<Uuid>, Unplaced> {
    match op {
        Op::Create { host, home, size, .. } => return create(tx, id, subject, (*host, *home), *size, unheard),
        Op::Project { size, confirmed } => return project(tx, id, *size, *confirmed).map(Some),
        Op::Addresses { size, confirmed } => return Ok(Some(addresses::make(tx, id, *size, *confirmed)?)),
        Op::Take { n, .. } => return take(tx, id, subject, *n),
        Op::Flavor { name } => {
            let (id, name) = (tx.fresh(Kind::Flavor, id), format!("f{name}"));
            let record = tx.create(id, Flavor { name: name.clone(), vcpus: 1, ..Flavor::default() }, &[])?;
            tx.bind(WHOLE_CLOUD, &name, record)?;
            return Ok(Some(id));
        }
        _ => {}
    }
    change(tx, op, id, subject).map(|()| None)
}

/// Takes some addresses, whichever are free here.
fn take(tx: &mut Tx<'_>, id: Uuid, pool: Option<Uuid>, n: u64) -> Result<Option<Uuid>, Unplaced> {
    let Some((of, pool)) = addresses::pool_of(tx, pool) else { return Ok(None) };
    let record = addresses::record(tx, id, of)?;
    claim(tx, &[pool], &addresses::any_of(n), record, 0)?;
    Ok(Some(record.id))
}

fn project(tx: &mut Tx<'_>, id: Uuid, size: u64, confirmed: bool) -> Result<Uuid, Unplaced> {
    let id = tx.fresh(Kind::Project, id);
    let name = format!("p-{id}");
    let record = tx.create(id, Project { name: name.clone(), enabled: true, ..Project::default() }, &[])?;
    tx.bind(WHOLE_CLOUD, &name, record)?;
    let amount = [(Dimension::Vcpus, 2 * size), (Dimension::MemoryMib, 1_024 * size), (Dimension::Instances, size)];
    mint_quota_as(tx, id, &amount.into_iter().collect(), confirmed)?;
    Ok(id)
}

/// What makes nothing that later operations are about.
fn change(tx: &mut Tx<'_>, op: &Op, id: Uuid, subject: Option<Uuid>) -> Result<(), Unplaced> {
    match op {
        Op::Look { .. } => Ok(()),
        Op::Create { .. } | Op::Project { .. } | Op::Flavor { .. } | Op::Addresses { .. } | Op::Take { .. } => Ok(()),
        Op::GiveBack { .. } => delete(tx, Kind::Address, subject),
        Op::GrowAddresses { from, n, .. } => Ok(addresses::grow(tx, subject, *from, *n)?),
        Op::BurnAddresses { n, .. } => Ok(addresses::burn(tx, subject, *n)?),
        Op::Delete { .. } => delete(tx, Kind::Server, subject),
        Op::Power { power, .. } => edit::<Server>(tx, subject, |server| {
            server.power = [Power::Running, Power::Stopped, Power::Paused, Power::Suspended]
                [usize::try_from(*power).unwrap_or(0) % 4];
            server.power_changes += 1;
        }),
        Op::Rename { name, .. } => edit::<Server>(tx, subject, |server| {
            server.name = format!("s{name}");
            server.metadata.insert(format!("k{}", name % 3), format!("v{name}"));
        }),
        Op::User { name } => {
            let name = format!("u{name}");
            let record = tx.create(id, User { name: name.clone(), enabled: true, ..User::default() }, &[])?;
            Ok(tx.bind(WHOLE_CLOUD, &name, record)?)
        }
        Op::DeleteUser { name } => {
            let id = tx.view().named(Kind::User, WHOLE_CLOUD, &format!("u{name}"));
            delete(tx, Kind::User, id)
        }
        Op::EditFlavor { value, .. } => edit::<Flavor>(tx, subject, |flavor| {
            flavor.description = format!("d{value}");
            flavor.extra_specs.insert(format!("k{}", value % 3), format!("v{value}"));
        }),
        Op::DeleteFlavor { .. } => delete(tx, Kind::Flavor, subject),
        Op::DeleteProject { .. } => delete(tx, Kind::Project, subject),
        Op::Grow { pool, size } => {
            let me = tx.me();
            let retired = tx.view().retired();
            let mine = tx.view().ledger().pools().filter(|(id, _)| retired.acts_for(me, id.entry.author));
            let quotas = mine.filter(|(_, pool)| matches!(pool.subject, Subject::Quota { .. }));
            let pools: Vec<PoolId> = quotas.map(|(id, _)| *id).collect();
            match pick(&pools, *pool) {
                Some(pool) => Ok(tx.grow(pool, quota(*size))?),
                None => Ok(()),
            }
        }
        Op::Burn { pool, size } => {
            let me = tx.me();
            let pools: Vec<PoolId> = tx.view().ledger().pools().map(|(id, _)| *id).collect();
            let Some(pool) = pick(&pools, *pool) else { return Ok(()) };
            let amount: Amount = std::iter::once((Dimension::Vcpus, *size)).collect();
            let free = tx.view().ledger().pool(pool).map(|pool| pool.free(me)).unwrap_or_default();
            if free.covers(&amount) { Ok(tx.burn(pool, amount)?) } else { Ok(()) }
        }
    }
}

fn create(
    tx: &mut Tx<'_>,
    id: Uuid,
    project: Option<Uuid>,
    (host, home): (u64, bool),
    size: u64,
    unheard: &BTreeSet<PoolId>,
) -> Result<Option<Uuid>, Unplaced> {
    // The bug of two entries names the record before its entry is known.
    let id = if mutant::on(Mutant::ClaimsSplit) { id } else { tx.fresh(Kind::Server, id) };
    let Some(project) = project.filter(|id| tx.view().get::<Project>(*id).is_some()) else { return Ok(None) };
    let quotas: Vec<PoolId> = tx.view().ledger().quota_pools(project).map(|(id, _)| id).collect();
    let view = tx.view();
    let site = view.member(tx.me()).map(|state| state.member.site.as_str());
    let is_home = |id: &HostId| view.get::<Host>(id.0).is_some_and(|host| Some(host.site.as_str()) == site);
    let (here, there): (Vec<HostId>, Vec<HostId>) = view.ledger().hosts().partition(is_home);
    let hosts = if home && !here.is_empty() { here } else { [here, there].concat() };
    let Some(host) = pick(&hosts, host) else { return Ok(None) };
    let pools: Vec<PoolId> = tx.view().host_pool(host).map(|(id, _)| id).into_iter().collect();
    if pools.iter().all(|pool| unheard.contains(pool)) {
        return Ok(None);
    }
    let record = RecordId { kind: Kind::Server, id };
    if !mutant::on(Mutant::ClaimsSplit) {
        claim(tx, &quotas, &quota(size), record, 0)?;
    }
    claim(tx, &pools, &need(size), record, 1)?;
    let owner = RecordId { kind: Kind::Project, id: project };
    let flavor = ServerFlavor { vcpus: size, ram_mib: size * 512, disk_gib: size * 5, ..ServerFlavor::default() };
    let server = Server { project, name: format!("s-{size}"), flavor, created_at: tx.now(), ..Server::default() };
    tx.create(id, server, &[owner])?;
    Ok(Some(id))
}

/// A project with room for all these servers, of four vCPU each, on one host.
pub(super) fn crowd(tx: &mut Tx<'_>, pool: PoolId, id: Uuid, servers: &[Uuid]) -> Result<(), Refusal> {
    let id = tx.fresh(Kind::Project, id);
    let record = tx.create(id, Project { name: format!("p-{id}"), enabled: true, ..Project::default() }, &[])?;
    let all = u64::try_from(servers.len()).unwrap_or(0);
    let quota_pool = tx.mint(Subject::Quota { project: id }, quota(4 * all))?;
    tx.grow(quota_pool, std::iter::once((Dimension::Instances, all)).collect())?;
    for server in servers {
        let server = tx.fresh(Kind::Server, *server);
        let of = RecordId { kind: Kind::Server, id: server };
        tx.claim(&[quota_pool], &quota(4), of, 0)?;
        tx.claim(&[pool], &need(4), of, 1)?;
        let flavor = ServerFlavor { vcpus: 4, ram_mib: 4 * 512, disk_gib: 4 * 5, ..ServerFlavor::default() };
        tx.create(server, Server { project: id, flavor, ..Server::default() }, &[record])?;
    }
    Ok(())
}

fn claim(tx: &mut Tx<'_>, pools: &[PoolId], amount: &Amount, record: RecordId, epoch: u64) -> Result<(), Unplaced> {
    match tx.claim(pools, amount, record, epoch) {
        Ok(_) => Ok(()),
        Err(Refusal::Shortage(short)) => Err(Unplaced::Short(pools.to_vec(), short)),
        Err(_) => Err(Unplaced::Refused),
    }
}

fn delete(tx: &mut Tx<'_>, kind: Kind, id: Option<Uuid>) -> Result<(), Unplaced> {
    match id {
        Some(id) => Ok(tx.delete(RecordId { kind, id })?),
        None => Ok(()),
    }
}

fn edit<T: luc_engine::view::RecordType>(
    tx: &mut Tx<'_>,
    id: Option<Uuid>,
    change: impl FnOnce(&mut T),
) -> Result<(), Unplaced> {
    let Some(id) = id else { return Ok(()) };
    let edited = tx.update::<T, Refusal>(id, |record| {
        change(record);
        Ok(())
    });
    Ok(edited?)
}
