//! One replica that knows a large cloud: what each part of it costs, in memory (as it is after a start) and on disk.

use jepsen::parts::{Fallible, key, make_host, member, quota, room, scattered, server};
use luc_engine::entry::{Content, Entry, Hash, Header, MemberOp, Scope};
use luc_engine::id::Millis;
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, Project, RecordId};
use luc_engine::replica::{Identity, Received, Replica, founded_by};
use luc_engine::schedule::{Request, choose};
use luc_engine::store::{Batch, MemoryStore, RedbStore, Store, Table};
use luc_engine::tx::Refusal;
use luc_sync::join::{admit_replica, mint_quota};
use uuid::Uuid;

use crate::{in_use, more};

/// Servers that are made, and deleted again.
const SERVERS: u32 = 2_000;
const NOW: Millis = 1;

/// Measures and prints.
pub(crate) fn measure(members: u32, projects: u32) -> Fallible<()> {
    println!("What one replica knows, in bytes: as it is in memory after a start, and in the file");
    println!("{:<66} {:>12} {:>12} {:>12}", "", "memory", "rows", "file");
    let mut known = Known::new()?;
    let mut last = known.size()?;
    line("alone", last, 1);
    let mut step = |known: &mut Known, what: &str, each: u32| -> Fallible<()> {
        let now = known.size()?;
        line(&format!("{what}: for each"), now.less(last), each);
        last = now;
        Ok(())
    };
    known.admit(members)?;
    step(&mut known, &format!("{members} members, silent"), members - 1)?;
    known.let_speak(members)?;
    step(&mut known, "… when each has said something, having seen all others", members - 1)?;
    known.make_projects(projects)?;
    step(&mut known, &format!("{projects} projects with quotas of {} dimensions", dimensions()), projects)?;
    let accounts: usize = known.replica.view().ledger().pools().map(|(_, pool)| pool.accounts().count()).sum();
    println!("  (accounts in all pools: {accounts}, of {members} × {projects} that there could be)");
    let spoken = known.replica.view().frontier().0.len();
    let what = format!("{spoken} members that have written, {projects} projects of {} dimensions", dimensions());
    line(&format!("in one: {what}"), known.size()?, 1);
    known.make_servers(SERVERS)?;
    step(&mut known, &format!("{SERVERS} servers, each with claims on quota and host"), SERVERS)?;
    line(&format!("all of it: {members} members, {projects} projects, {SERVERS} servers"), known.size()?, 1);
    println!();
    Ok(())
}

#[derive(Clone, Copy)]
struct Size {
    memory: f64,
    rows: f64,
    file: f64,
}

impl Size {
    fn less(self, other: Self) -> Self {
        Self { memory: self.memory - other.memory, rows: self.rows - other.rows, file: self.file - other.file }
    }
}

fn line(what: &str, size: Size, each: u32) {
    let each = f64::from(each.max(1));
    println!("{what:<66} {:>12.0} {:>12.0} {:>12.0}", size.memory / each, size.rows / each, size.file / each);
}

/// Every dimension that the engine counts, of Nova, Neutron and Cinder.
fn every_dimension() -> Amount {
    let counted = Dimension::ALL.iter().filter(|one| !matches!(one, Dimension::Votes | Dimension::Addresses));
    counted.map(|one| (*one, if *one == Dimension::MemoryMib { 409_600 } else { 200 })).collect()
}

fn dimensions() -> usize {
    every_dimension().iter().count()
}

struct Known {
    replica: Replica,
    disk: MemoryStore,
    pools: Vec<Uuid>,
}

impl Known {
    fn new() -> Fallible<Self> {
        let founder = member(1)?;
        let cloud = founded_by(&founder.public_key);
        let site = founder.site.clone();
        let disk = MemoryStore::default();
        let mut replica = Replica::found(Identity { cloud, key: key(1) }, Box::new(disk.clone()), founder, NOW)?;
        replica.transact::<_, Refusal>(NOW, |tx| make_host(tx, cloud, &site, 1))?;
        replica.flush()?;
        Ok(Self { replica, disk, pools: Vec::new() })
    }

    fn admit(&mut self, members: u32) -> Fallible<()> {
        for n in 2..=members {
            let member = member(n)?;
            self.replica.transact::<_, Refusal>(NOW, |tx| admit_replica(tx, member))?;
        }
        self.replica.flush()?;
        Ok(())
    }

    /// Each member writes one entry, which names everybody's.
    fn let_speak(&mut self, members: u32) -> Fallible<()> {
        for n in 2..=members {
            let seen = self.replica.view().frontier().0.iter().map(|(id, tip)| (*id, *tip)).collect();
            let header = Header {
                cloud: self.replica.identity().cloud,
                author: member(n)?.replica,
                number: 1,
                previous: Hash::default(),
                seen,
                time: NOW,
                scope: Scope::Everywhere,
                created: Vec::new(),
                deleted: Vec::new(),
                ledger: Vec::new(),
                members: vec![MemberOp::Held],
                statements: Vec::new(),
                content: Hash::default(),
            };
            let entry = Entry::sign(header, Content::default(), &key(n));
            let received = self.replica.receive(entry.bytes());
            if !matches!(received, Received::Applied) {
                return Err(format!("an entry was not taken: {received:?}").into());
            }
        }
        self.replica.flush()?;
        Ok(())
    }

    fn make_projects(&mut self, projects: u32) -> Fallible<()> {
        for n in 0..projects {
            let random = scattered(u128::from(n));
            let (project, _) = self.replica.transact::<_, Refusal>(NOW, |tx| {
                let id = tx.fresh(Kind::Project, random);
                let record = tx.create(id, Project { name: format!("project-{n}"), ..Project::default() }, &[])?;
                tx.bind(Uuid::nil(), &format!("project-{n}"), record)?;
                mint_quota(tx, id, &every_dimension())?;
                Ok(id)
            })?;
            self.pools.push(project);
        }
        self.replica.flush()?;
        Ok(())
    }

    fn make_servers(&mut self, servers: u32) -> Fallible<()> {
        for n in 0..servers {
            let project = self.pools[usize::try_from(n)? % self.pools.len()];
            let random = scattered(1 << 64 | u128::from(n));
            self.replica.transact::<_, Refusal>(NOW, |tx| {
                let id = RecordId { kind: Kind::Server, id: tx.fresh(Kind::Server, random) };
                let pools: Vec<_> = tx.view().ledger().quota_pools(project).map(|(id, _)| id).collect();
                let request = Request { amount: room(1), ..Request::default() };
                let choice = choose(tx.view(), tx.me(), tx.site().as_str(), &request, &|_| true, 0);
                let choice = choice.map_err(|_| Refusal::NotFound(id))?;
                tx.claim(&pools, &quota(1), id, 0)?;
                choice.claim(tx, &request.amount, id, 1)?;
                let owner = RecordId { kind: Kind::Project, id: project };
                tx.create(id.id, server(project), &[owner])
            })?;
        }
        self.replica.flush()?;
        Ok(())
    }

    /// What a start of it would need, with nothing else in the process growing; without the log, which has a bound of
    /// its own.
    fn size(&mut self) -> Fallible<Size> {
        let before = in_use();
        let started = Replica::open(self.replica.identity().clone(), Box::new(self.disk.clone()))?;
        let memory = more(in_use(), before);
        drop(started);
        let reader = self.disk.reader()?;
        let (mut batch, mut rows) = (Batch::default(), 0);
        for table in Table::ALL.into_iter().filter(|table| *table != Table::Log) {
            reader.scan(table, &[], &mut |key, value| {
                rows += key.len() + value.len();
                batch.put(table, key.to_vec(), value.to_vec());
                true
            })?;
        }
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("store");
        RedbStore::open(&path)?.commit(&batch)?;
        let file = usize::try_from(std::fs::metadata(&path)?.len())?;
        Ok(Size { memory, rows: more(rows, 0), file: more(file, 0) })
    }
}
