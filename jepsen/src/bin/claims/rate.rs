//! What a claim costs in the engine: one replica, one core, a store in memory. A flush gathers many transactions, as
//! `sync/src/node.rs` does it, and counts in the rate; the times of single claims are those of the transactions. All of it
//! is processor time of this thread: what others run on the same machine does not count.

use std::time::Duration;

use ed25519_dalek::Signer;
use jepsen::parts::{Fallible, agent_key, key, make_host, member, quota, room, scattered, server};
use luc_engine::agent::Statement;
use luc_engine::entry::MemberOp;
use luc_engine::id::{ClaimId, CloudId, HostId, Millis, PoolId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, Project, RecordId, Server};
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::schedule::{Request, choose};
use luc_engine::store::MemoryStore;
use luc_engine::tx::{Refusal, Tx};
use luc_sync::join::mint_quota;
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

/// Members of the cloud: an entry names none of them that is silent, but accounts and pools do.
const MEMBERS: u32 = 8;
const HOSTS: u32 = 8;
/// Claims that are measured at a time.
const CLAIMS: usize = 20_000;
/// Servers that are measured at a time.
const SERVERS: usize = 4_000;
/// Transactions in one flush.
const FLUSH: usize = 64;
/// After so many settled claims it is measured again.
const SETTLED: [u64; 3] = [0, 10_000, 100_000];
const PROJECT: Uuid = Uuid::from_u128(1);

/// Measures and prints.
pub(crate) fn measure() -> Fallible<()> {
    println!("Claims in the engine, one core, store in memory");
    println!("{:<58} {:>12} {:>12}", "", "measured", "target");
    line("signing an entry of 600 bytes (in every figure below)", micros(signature()), "");
    let mut site = Site::new()?;
    for settled in SETTLED {
        while site.settled < settled {
            site.settle(settled)?;
        }
        println!("after {settled} settled claims");
        let claims = site.claims(CLAIMS)?;
        line("  claims of a quota, a second", claims.rate(), "≥ 20000");
        line("    p50", micros(claims.at(50.0)), "");
        line("    p99", micros(claims.at(99.0)), "≤ 100 µs");
        for (what, with_record) in
            [("claims of a quota and a chosen host", false), ("the same, with the server's record", true)]
        {
            let servers = site.servers(SERVERS, with_record)?;
            line(&format!("  {what}, a second"), servers.rate(), "");
            line("    p50", micros(servers.at(50.0)), "");
            line("    p99", micros(servers.at(99.0)), "");
        }
    }
    println!();
    Ok(())
}

fn line(what: &str, measured: String, target: &str) {
    println!("{what:<58} {measured:>12} {target:>12}");
}

fn micros(time: Duration) -> String {
    format!("{}.{} µs", time.as_micros(), time.as_nanos() % 1_000 / 100)
}

/// What this thread has used so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn signature() -> Duration {
    let (key, bytes) = (key(1), [7; 600]);
    let mut times = Times::default();
    for _ in 0..2_000 {
        let started = processor_time();
        std::hint::black_box(key.sign(&bytes));
        times.single.push(processor_time() - started);
    }
    times.sorted().at(50.0)
}

/// Times of single transactions, and of all with their flushes.
#[derive(Default)]
struct Times {
    single: Vec<Duration>,
    all: Duration,
}

impl Times {
    fn sorted(mut self) -> Self {
        self.single.sort();
        self
    }

    /// The time that `percent` of the transactions stay under. They must be sorted.
    fn at(&self, percent: f64) -> Duration {
        let rank = self.single.len() as f64 * percent / 100.0;
        self.single.iter().copied().take(rank.ceil().max(1.0) as usize).next_back().unwrap_or_default()
    }

    fn rate(&self) -> String {
        format!("{:.0}", self.single.len() as f64 / self.all.as_secs_f64())
    }
}

/// A site whose replica holds all it needs.
struct Site {
    replica: Replica,
    cloud: CloudId,
    pool: PoolId,
    now: Millis,
    next: u128,
    /// Claims made and released.
    settled: u64,
    server: Server,
}

fn instances(n: u64) -> Amount {
    [(Dimension::Instances, n)].into_iter().collect()
}

impl Site {
    fn new() -> Fallible<Self> {
        let founder = member(1)?;
        let cloud = founded_by(&founder.public_key);
        let site = founder.site.clone();
        let identity = Identity { cloud, key: key(1) };
        let mut replica = Replica::found(identity, Box::new(MemoryStore::default()), founder, 1)?;
        let others = (2..=MEMBERS).map(member).collect::<Fallible<Vec<_>>>()?;
        replica.transact::<_, Refusal>(1, |tx| {
            others.into_iter().try_for_each(|member| tx.membership(MemberOp::Join(member)))?;
            tx.create(PROJECT, Project { name: "bench".into(), ..Project::default() }, &[])?;
            mint_quota(tx, PROJECT, &quota(u64::from(MEMBERS) * 1_000_000))?;
            (0..HOSTS).try_for_each(|n| make_host(tx, cloud, &site, n).map(|_| ()))
        })?;
        replica.flush()?;
        let pool = replica.view().ledger().quota_pools(PROJECT).next().ok_or("there is no quota")?.0;
        Ok(Self { replica, cloud, pool, now: 2, next: 1_000, settled: 0, server: server(PROJECT) })
    }

    fn id(&mut self) -> RecordId {
        self.next += 1;
        RecordId { kind: Kind::Server, id: scattered(self.next) }
    }

    fn timed<T>(
        &mut self,
        count: usize,
        mut f: impl FnMut(&mut Tx<'_>, RecordId) -> Result<T, Refusal>,
    ) -> Fallible<(Times, Vec<T>)> {
        let (mut times, mut values) = (Times::default(), Vec::with_capacity(count));
        for n in 1..=count {
            let id = self.id();
            self.now += 1;
            let started = processor_time();
            let (value, _) = self.replica.transact(self.now, |tx| f(tx, id))?;
            times.single.push(processor_time() - started);
            if n % FLUSH == 0 || n == count {
                self.replica.flush()?;
            }
            times.all += processor_time() - started;
            values.push(value);
        }
        Ok((times.sorted(), values))
    }

    /// Bare claims of a quota; they are settled afterwards.
    fn claims(&mut self, count: usize) -> Fallible<Times> {
        let pool = self.pool;
        let (times, claims) = self.timed(count, |tx, record| tx.claim(&[pool], &instances(1), record, 0))?;
        self.timed_release(claims)?;
        Ok(times)
    }

    /// Makes and releases claims, towards `wanted`: each by an entry of its own.
    fn settle(&mut self, wanted: u64) -> Fallible<()> {
        let pool = self.pool;
        let count = usize::try_from(wanted - self.settled)?.min(1_000);
        let (_, claims) = self.timed(count, |tx, record| tx.claim(&[pool], &instances(1), record, 0))?;
        self.timed_release(claims)
    }

    fn timed_release(&mut self, claims: Vec<ClaimId>) -> Fallible<()> {
        self.settled += u64::try_from(claims.len())?;
        let mut claims = claims.into_iter();
        self.timed(claims.len(), |tx, _| claims.next().map_or(Ok(()), |claim| tx.release(claim)))?;
        Ok(())
    }

    /// Servers, as `api/src/compute/create.rs` makes them: a host is chosen, quota and host are claimed, the record is
    /// created, by one entry. They are deleted and settled afterwards, on the word of their hosts' agents.
    fn servers(&mut self, count: usize, with_record: bool) -> Fallible<Times> {
        let (server, mut random) = (self.server.clone(), 0_u64);
        let request = Request { amount: room(1), ..Request::default() };
        let owner = RecordId { kind: Kind::Project, id: PROJECT };
        let (times, made) = self.timed(count, |tx, record| {
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let pools: Vec<PoolId> = tx.view().ledger().quota_pools(PROJECT).map(|(id, _)| id).collect();
            let home = tx.site().to_string();
            let choice = choose(tx.view(), tx.me(), &home, &request, &|_| true, random);
            let choice = choice.map_err(|_| Refusal::NotFound(record))?;
            let quota = tx.claim(&pools, &quota(1), record, 0)?;
            let on_host = choice.claim(tx, &request.amount, record, 1)?;
            if with_record {
                tx.create(record.id, server.clone(), &[owner])?;
            }
            Ok((record, choice.host, quota, on_host))
        })?;
        for (record, host, quota, on_host) in made {
            let key = agent_key(self.key_of(host)?);
            let statement = Statement::sign(self.cloud, host, record.id, on_host, 1, &key);
            self.replica.transact::<_, Refusal>(self.now, |tx| {
                if with_record {
                    tx.delete(record)?;
                }
                tx.state(statement);
                tx.release(quota)?;
                Ok(())
            })?;
            self.replica.transact::<_, Refusal>(self.now, |tx| tx.release(on_host))?;
        }
        self.replica.flush()?;
        Ok(times)
    }

    fn key_of(&self, host: HostId) -> Fallible<u32> {
        let own = |n: &u32| HostId::of_key(&agent_key(*n).verifying_key().to_bytes()) == host;
        Ok((0..HOSTS).find(own).ok_or("an unknown host")?)
    }
}
