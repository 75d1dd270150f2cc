//! Three replicas that make and unmake things, on stores on disk, with folding on: what is left of each thing that is
//! over, in memory and on disk. What they need for what lives, and for the newest entries of their logs, is there from
//! the first tenth on; so what grows after that grows with history.

use jepsen::parts::{Fallible, agent_key, key, make_host, member, quota, room, scattered, server};
use luc_engine::agent::Statement;
use luc_engine::entry::MemberOp;
use luc_engine::id::{CloudId, HostId, Millis};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Address, AddressPool, GroupPolicy, Keypair, Kind, Power, Project, RecordId, ServerGroup};
use luc_engine::replica::{Identity, Replica, WHOLE_CLOUD, founded_by};
use luc_engine::schedule::{Request, choose, hand_over, mint_group};
use luc_engine::store::{Batch, RedbStore, Store, Table};
use luc_engine::tx::{Refusal, Tx};
use luc_sync::join::{admit_replica, mint_quota};
use luc_sync::rpc;
use tempfile::TempDir;
use uuid::Uuid;

use crate::{in_use, more};

const SITES: u32 = 3;
const PROJECT: Uuid = Uuid::from_u128(1);
/// Things that are made before the replicas flush and exchange.
const BATCH: usize = 32;
/// Points at which is measured, after the first.
const POINTS: usize = 9;

type Step = fn(&mut Cloud, u128) -> Fallible<()>;

/// What is made and unmade; and how many of it, as a part of the servers.
const STEPS: [(&str, usize, Step); 9] = [
    ("a server: created, stated gone, deleted, released", 1, Cloud::one_server),
    ("a keypair with a name", 10, Cloud::one_keypair),
    ("a project with a name and quotas at all sites", 10, Cloud::one_project),
    ("a server group (anti-affinity) with a member at each site", 10, Cloud::one_group),
    ("an address pool with an address taken", 10, Cloud::one_address_pool),
    ("rights that go from site to site and back", 10, Cloud::one_transfer),
    ("rights that come and are never used", 10, Cloud::one_unused_grant),
    ("a project renamed", 10, Cloud::one_rename),
    ("a server stopped and started", 10, Cloud::one_wish),
];

/// Measures and prints.
pub(crate) fn measure(servers: usize, only: &str) -> Fallible<()> {
    println!("What is left of each thing that is over, in bytes at each of {SITES} replicas");
    println!("{:<58} {:>8} {:>10} {:>10} {:>10}", "", "how many", "memory", "rows", "file");
    for (what, part, step) in STEPS.into_iter().filter(|(what, ..)| what.contains(only)) {
        let each = (servers / part / (POINTS + 1)).max(BATCH);
        let mut cloud = Cloud::new()?;
        let mut sizes = Vec::new();
        for _ in 0..=POINTS {
            cloud.repeat(each, step)?;
            sizes.push(cloud.size()?);
        }
        let slope = |of: fn(&Size) -> f64| slope(&sizes, of) / (each as f64 * f64::from(SITES));
        let many = each * (POINTS + 1);
        println!(
            "{what:<58} {many:>8} {:>10.2} {:>10.2} {:>10.2}",
            slope(|s| s.memory),
            slope(|s| s.rows),
            slope(|s| s.file)
        );
    }
    Ok(())
}

struct Size {
    memory: f64,
    rows: f64,
    file: f64,
}

/// Of the line that fits the points best, by least squares.
fn slope(sizes: &[Size], of: fn(&Size) -> f64) -> f64 {
    let n = sizes.len() as f64;
    let points = || sizes.iter().enumerate().map(|(x, size)| (x as f64, of(size)));
    let (x, y) = points().fold((0.0, 0.0), |(x, y), (a, b)| (x + a / n, y + b / n));
    let (above, below) = points().fold((0.0, 0.0), |(s, t), (a, b)| (s + (a - x) * (b - y), t + (a - x) * (a - x)));
    above / below
}

struct Cloud {
    sites: Vec<Replica>,
    hosts: Vec<HostId>,
    id: CloudId,
    now: Millis,
    next: u128,
    /// A server that lives on.
    lasting: Uuid,
    dir: TempDir,
}

impl Cloud {
    fn new() -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        let founder = member(1)?;
        let id = founded_by(&founder.public_key);
        let store = Box::new(RedbStore::open(&dir.path().join("1"))?);
        let sites = vec![Replica::found(Identity { cloud: id, key: key(1) }, store, founder, 1)?];
        let mut cloud = Self { sites, hosts: Vec::new(), id, now: 1, next: 0, lasting: Uuid::from_u128(9), dir };
        for n in 2..=SITES {
            cloud.join(n)?;
        }
        for at in 0..cloud.sites.len() {
            let n = u32::try_from(at)? + 1;
            let site = member(n)?.site;
            cloud.run(at, |tx| make_host(tx, id, &site, n))?;
            cloud.hosts.push(HostId::of_key(&agent_key(n).verifying_key().to_bytes()));
        }
        let lasting = cloud.lasting;
        cloud.run(0, |tx| {
            tx.create(PROJECT, Project { name: "bench".into(), ..Project::default() }, &[])?;
            mint_quota(tx, PROJECT, &quota(3_000_000))?;
            tx.create(lasting, server(PROJECT), &[RecordId { kind: Kind::Project, id: PROJECT }])
        })?;
        cloud.exchange()?;
        Ok(cloud)
    }

    fn join(&mut self, n: u32) -> Fallible<()> {
        let newcomer = member(n)?;
        self.run(0, |tx| admit_replica(tx, newcomer))?;
        self.exchange()?;
        let mut store = RedbStore::open(&self.dir.path().join(n.to_string()))?;
        Replica::prepare(&mut store)?;
        let (reader, mut batch) = (self.sites[0].reader()?, Batch::default());
        for table in Table::in_snapshot() {
            reader.scan(table, &[], &mut |key, value| {
                batch.put(table, key.to_vec(), value.to_vec());
                true
            })?;
        }
        store.commit(&batch)?;
        self.sites.push(Replica::open(Identity { cloud: self.id, key: key(n) }, Box::new(store))?);
        Ok(())
    }

    fn run<T>(&mut self, at: usize, f: impl FnOnce(&mut Tx<'_>) -> Result<T, Refusal>) -> Fallible<T> {
        self.now += 1;
        Ok(self.sites[at].transact(self.now, f)?.0)
    }

    /// Everybody flushes, does what it owes, and gets what the others have written, until nothing is left to do.
    fn exchange(&mut self) -> Fallible<()> {
        loop {
            let mut any = false;
            for at in 0..self.sites.len() {
                let flushed = self.sites[at].flush()?;
                let me = self.sites[at].identity().replica();
                for (to, site) in self.sites.iter_mut().enumerate().filter(|(to, _)| *to != at) {
                    for entry in flushed.entries.iter().filter(|entry| entry.header.author == me) {
                        let received = site.receive(entry.bytes());
                        if !matches!(received, luc_engine::replica::Received::Applied) {
                            return Err(format!("{to} did not take an entry of {at}: {received:?}").into());
                        }
                        any = true;
                    }
                }
                any |= !flushed.entries.is_empty();
                self.now += 1;
                any |= self.sites[at].tend(self.now, Some(&flushed))?;
            }
            if !any {
                return Ok(());
            }
        }
    }

    fn repeat(&mut self, count: usize, step: Step) -> Fallible<()> {
        for n in 1..=count {
            self.next += 1;
            step(self, self.next)?;
            if n % BATCH == 0 || n == count {
                self.exchange()?;
            }
        }
        Ok(())
    }

    /// After all have said what they hold and folded what they can.
    fn size(&mut self) -> Fallible<Size> {
        for _ in 0..2 {
            for at in 0..self.sites.len() {
                self.run(at, |tx| tx.membership(MemberOp::Held))?;
                self.exchange()?;
            }
            for site in &mut self.sites {
                while site.fold()? > 0 {}
            }
        }
        let (mut rows, mut file) = (0, 0);
        for (site, n) in self.sites.iter().zip(1..=SITES) {
            let reader = site.reader()?;
            for table in Table::ALL {
                reader.scan(table, &[], &mut |key, value| {
                    rows += key.len() + value.len();
                    true
                })?;
            }
            file += usize::try_from(std::fs::metadata(self.dir.path().join(n.to_string()))?.len())?;
        }
        Ok(Size { memory: more(in_use(), 0), rows: more(rows, 0), file: more(file, 0) })
    }
}

/// What is made and unmade. What one site has made, the next one deletes, so that nobody is alone with anything.
impl Cloud {
    fn one_server(&mut self, n: u128) -> Fallible<()> {
        let at = usize::try_from(n % u128::from(SITES))?;
        self.servers(at, n, None)
    }

    fn servers(&mut self, at: usize, n: u128, group: Option<Uuid>) -> Fallible<()> {
        let (random, host) = (scattered(n), self.hosts[at]);
        let request = Request { amount: room(1), host: Some(host), group, ..Request::default() };
        let (record, claim) = self.run(at, |tx| {
            let record = RecordId { kind: Kind::Server, id: tx.fresh(Kind::Server, random) };
            let pools: Vec<_> = tx.view().ledger().quota_pools(PROJECT).map(|(id, _)| id).collect();
            let choice = choose(tx.view(), tx.me(), tx.site().as_str(), &request, &|_| true, 0);
            let choice = choice.map_err(|_| Refusal::NotFound(record))?;
            tx.claim(&pools, &quota(1), record, 0)?;
            let claim = choice.claim(tx, &request.amount, record, 1)?;
            let mut references = vec![RecordId { kind: Kind::Project, id: PROJECT }];
            references.extend(group.map(|id| RecordId { kind: Kind::ServerGroup, id }));
            tx.create(record.id, luc_engine::record::Server { group, ..server(PROJECT) }, &references)?;
            Ok((record, claim))
        })?;
        let statement = Statement::sign(self.id, host, record.id, claim, 1, &agent_key(u32::try_from(at)? + 1));
        self.run(at, |tx| {
            tx.delete(record)?;
            tx.state(statement);
            Ok(())
        })
    }

    fn one_keypair(&mut self, n: u128) -> Fallible<()> {
        let (random, name, user) = (scattered(n), format!("keypair-{n}"), Uuid::from_u128(3));
        let record = self.run(0, |tx| {
            let keypair = Keypair { user, name: name.clone(), ..Keypair::default() };
            let record = tx.create(tx.fresh(Kind::Keypair, random), keypair, &[])?;
            tx.bind(user, &name, record)?;
            Ok(record)
        })?;
        self.exchange()?;
        self.run(1, |tx| tx.delete(record))
    }

    fn one_project(&mut self, n: u128) -> Fallible<()> {
        let (random, name) = (scattered(n), format!("project-{n}"));
        let record = self.run(0, |tx| {
            let project = Project { name: name.clone(), ..Project::default() };
            let record = tx.create(tx.fresh(Kind::Project, random), project, &[])?;
            tx.bind(WHOLE_CLOUD, &name, record)?;
            mint_quota(tx, record.id, &quota(30))?;
            Ok(record)
        })?;
        self.exchange()?;
        self.run(1, |tx| tx.delete(record))
    }

    fn one_group(&mut self, n: u128) -> Fallible<()> {
        let random = scattered(n);
        let record = self.run(0, |tx| {
            let group = ServerGroup {
                project: PROJECT,
                policy: GroupPolicy::AntiAffinity,
                max_per_host: 2,
                ..ServerGroup::default()
            };
            let record = tx.create(tx.fresh(Kind::ServerGroup, random), group, &[])?;
            mint_group(tx, record.id, GroupPolicy::AntiAffinity)?;
            Ok(record)
        })?;
        self.exchange()?;
        let (host, to) = (self.hosts[1], self.sites[2].identity().replica());
        self.run(1, |tx| hand_over(tx, record.id, host, to))?;
        for at in 0..self.sites.len() {
            self.servers(at, n << 8 | u128::try_from(at)?, Some(record.id))?;
        }
        self.exchange()?;
        self.run(1, |tx| tx.delete(record))
    }

    fn one_address_pool(&mut self, n: u128) -> Fallible<()> {
        let (random, name) = (scattered(n), format!("pool-{n}"));
        let block: luc_engine::interval::Interval = "10.0.0.0/24".parse()?;
        let all: luc_engine::interval::Intervals = [block].into_iter().collect();
        let (of, pool) = self.run(0, |tx| {
            let pool = AddressPool { name: name.clone(), ..AddressPool::default() };
            let record = tx.create(tx.fresh(Kind::AddressPool, random), pool, &[])?;
            tx.bind(WHOLE_CLOUD, &name, record)?;
            let pool = tx.mint(luc_engine::entry::Subject::Addresses { of: record }, all.into())?;
            Ok((record, pool))
        })?;
        let taken = self.run(0, |tx| {
            let record = RecordId { kind: Kind::Address, id: tx.fresh(Kind::Address, random) };
            let one: Amount = [(Dimension::Addresses, 1)].into_iter().collect();
            tx.claim(&[pool], &one, record, 0)?;
            tx.create(record.id, Address { pool: of.id, ..Address::default() }, &[of])
        })?;
        self.exchange()?;
        self.run(1, |tx| tx.delete(taken))?;
        self.exchange()?;
        self.run(1, |tx| tx.delete(of))
    }

    /// The second site takes, uses what it got, and gives it back to the first.
    fn one_transfer(&mut self, n: u128) -> Fallible<()> {
        let ids: Vec<_> = self.sites.iter().map(|site| site.identity().replica()).collect();
        let pool = self.quota_pool()?;
        let one: Amount = [(Dimension::Instances, 1)].into_iter().collect();
        let (from, to) = if n.is_multiple_of(2) { (0, 1) } else { (1, 0) };
        self.run(from, |tx| rpc::grant(tx, ids[to], pool, &one))?;
        self.exchange()?;
        let record = RecordId { kind: Kind::Server, id: scattered(n) };
        let claim = self.run(to, |tx| tx.claim(&[pool], &one, record, 0))?;
        self.run(to, |tx| tx.release(claim))
    }

    fn one_unused_grant(&mut self, _: u128) -> Fallible<()> {
        let (pool, to) = (self.quota_pool()?, self.sites[2].identity().replica());
        let one: Amount = [(Dimension::Instances, 1)].into_iter().collect();
        self.run(0, |tx| tx.grant(pool, to, one))?;
        self.exchange()
    }

    fn quota_pool(&self) -> Fallible<luc_engine::id::PoolId> {
        let mut pools = self.sites[0].view().ledger().quota_pools(PROJECT);
        Ok(pools.next().ok_or("there is no quota")?.0)
    }

    fn one_rename(&mut self, n: u128) -> Fallible<()> {
        let at = usize::try_from(n % u128::from(SITES))?;
        let record = RecordId { kind: Kind::Project, id: PROJECT };
        self.exchange()?;
        self.run(at, |tx| {
            tx.rename(WHOLE_CLOUD, &format!("bench-{}", n - 1), &format!("bench-{n}"), record)?;
            tx.update::<Project, Refusal>(PROJECT, |project| {
                project.name = format!("bench-{n}");
                Ok(())
            })
        })
    }

    fn one_wish(&mut self, n: u128) -> Fallible<()> {
        let at = usize::try_from(n % u128::from(SITES))?;
        let server = self.lasting;
        self.exchange()?;
        self.run(at, |tx| {
            tx.update::<luc_engine::record::Server, Refusal>(server, |server| {
                server.power = if n.is_multiple_of(2) { Power::Running } else { Power::Stopped };
                server.power_changes += 1;
                server.updated_at += 1;
                Ok(())
            })
        })
    }
}
