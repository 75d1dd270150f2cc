//! Where servers go: the filters in a table, the weighers, and hard policies of server groups under partition.
//!
//! Broken once each, and these tests failed: a right to place a member that anybody may mint, or that its root mints
//! twice; one that is released while its host's agent has said nothing; affinity without its token; a filter that lets
//! everything through.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Cloud, Rogue, cloud, key, member};
use luc_engine::agent::Statement;
use luc_engine::entry::{HostIdentity, LedgerOp, MemberOp, Subject};
use luc_engine::filters::{image_fits, spec_matches};
use luc_engine::id::{ClaimId, HostId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Aggregate, GroupPolicy, Host, Kind, RecordId, Server, ServerGroup};
use luc_engine::replica::Received;
use luc_engine::retire::Retiree;
use luc_engine::schedule::{Choice, MemberRight, NoValidHost, Request, choose, hand_over, mint_group};
use luc_engine::tx::{Refusal, Tx};
use luc_engine::view::View;
use proptest::prelude::*;
use uuid::Uuid;

const PROJECT: Uuid = Uuid::from_u128(1);
/// Anti-affinity, one a host.
const APART: Uuid = Uuid::from_u128(2);
/// Anti-affinity, two a host.
const TWO: Uuid = Uuid::from_u128(3);
const TOGETHER: Uuid = Uuid::from_u128(4);
const SOFT_APART: Uuid = Uuid::from_u128(5);
const SOFT_TOGETHER: Uuid = Uuid::from_u128(6);
const HARD: [(Uuid, GroupPolicy, u64); 3] =
    [(APART, GroupPolicy::AntiAffinity, 1), (TWO, GroupPolicy::AntiAffinity, 2), (TOGETHER, GroupPolicy::Affinity, 0)];
const SOFT: [(Uuid, GroupPolicy, u64); 2] =
    [(SOFT_APART, GroupPolicy::SoftAntiAffinity, 0), (SOFT_TOGETHER, GroupPolicy::SoftAffinity, 0)];

fn amount(n: u64) -> Amount {
    [(Dimension::Vcpus, n), (Dimension::MemoryMib, n)].into_iter().collect()
}

fn host_key(n: u8) -> ed25519_dalek::SigningKey {
    key(50 + n)
}

/// Host `n`; three of each of the sites.
fn identity(n: u8) -> HostIdentity {
    HostIdentity::sign(cloud(), &member(n / 3).site, &host_key(n))
}

fn host(n: u8) -> HostId {
    identity(n).host
}

/// Three sites of a host each three, whose rights are spread over all; and the groups.
fn world(hosts: u8) -> Cloud {
    let mut cloud = Cloud::new(2);
    cloud.exchange_all();
    for n in 0..hosts {
        let site = n / 3;
        let others: Vec<ReplicaId> = (0..3).filter(|other| *other != site).map(|n| member(n).replica).collect();
        let made = cloud.replicas[usize::from(site)].transact::<_, Refusal>(2, |tx| {
            let pool = tx.mint(Subject::Host(identity(n)), amount(30))?;
            others.into_iter().try_for_each(|to| tx.grant(pool, to, amount(8)))?;
            let record = Host {
                name: format!("host-{n}"),
                site: member(site).site.to_string(),
                hypervisor_type: "KVM".into(),
                hypervisor_version: 7_002_000,
                architecture: "x86_64".into(),
                pool: pool.to_string(),
                ..Host::default()
            };
            tx.create(host(n).0, record, &[])
        });
        made.unwrap();
    }
    let made = cloud.replicas[0].transact::<_, Refusal>(3, |tx| {
        for (id, policy, max_per_host) in HARD.into_iter().chain(SOFT) {
            let group = ServerGroup { project: PROJECT, policy, max_per_host, ..ServerGroup::default() };
            tx.create(id, group, &[])?;
            mint_group(tx, id, policy)?;
        }
        Ok(())
    });
    made.unwrap();
    cloud.exchange_all();
    cloud
}

fn place(tx: &mut Tx<'_>, id: Uuid, request: &Request, random: u64) -> Result<Choice, Result<NoValidHost, Refusal>> {
    let home = tx.site().to_string();
    let record = RecordId { kind: Kind::Server, id };
    let choice = choose(tx.view(), tx.me(), &home, request, &|_| true, random).map_err(Ok)?;
    choice.claim(tx, &request.amount, record, 1).map_err(Err)?;
    let server = Server { project: PROJECT, group: request.group, ..Server::default() };
    tx.create(id, server, &[]).map_err(Err)?;
    Ok(choice)
}

/// Why a server was not placed.
#[derive(Debug)]
enum Unplaced {
    None(NoValidHost),
    Refused(Refusal),
}
impl From<Refusal> for Unplaced {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn create(cloud: &mut Cloud, at: usize, id: u128, request: &Request, random: u64) -> Result<Choice, NoValidHost> {
    let now = cloud.tick();
    let placed = cloud.replicas[at].transact::<_, Unplaced>(now, |tx| {
        place(tx, Uuid::from_u128(id), request, random).map_err(|error| match error {
            Ok(none) => Unplaced::None(none),
            Err(refusal) => Unplaced::Refused(refusal),
        })
    });
    match placed {
        Ok((choice, _)) => Ok(choice),
        Err(Unplaced::None(none)) => Err(none),
        Err(Unplaced::Refused(refusal)) => panic!("{refusal}"),
    }
}

fn of_group(group: Uuid) -> Request {
    Request { amount: amount(1), group: Some(group), ..Request::default() }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

// ---- filters

#[test]
fn extra_specs_are_read_as_nova_reads_them() {
    for (value, wish, matches) in [
        ("ssd", "ssd", true),
        ("ssd", "hdd", false),
        ("8", "= 4", true),
        ("8", ">= 8", true),
        ("8", "<= 4", false),
        ("8", "== 8.0", true),
        ("8", "!= 8", false),
        ("many", ">= 8", false),
        ("8", ">=", false),
        ("b", "s== b", true),
        ("b", "s!= b", false),
        ("b", "s< c", true),
        ("b", "s<= b", true),
        ("b", "s> c", false),
        ("b", "s>= a", true),
        ("fast-ssd", "<in> ssd", true),
        ("fast-ssd", "<all-in> ssd fast", true),
        ("fast-ssd", "<all-in> ssd slow", false),
        ("fast-ssd", "<all-in>", false),
        ("b", "<or> a <or> b", true),
        ("c", "<or> a <or> b", false),
        ("<or>", "<or> a <or> b", false),
        ("", "", true),
    ] {
        assert_eq!(spec_matches(value, wish), matches, "{value:?} {wish:?}");
    }
}

#[test]
fn images_run_where_their_properties_say() {
    let kvm = Host {
        hypervisor_type: "KVM".into(),
        hypervisor_version: 7_002_000,
        architecture: "x86_64".into(),
        ..Host::default()
    };
    let qemu = Host { hypervisor_type: "QEMU".into(), ..kvm.clone() };
    let silent = Host { architecture: String::new(), ..kvm.clone() };
    for (host, key, value, fits) in [
        (&kvm, "anything", "else", true),
        (&kvm, "hw_architecture", "x86_64", true),
        (&kvm, "architecture", "amd64", true),
        (&kvm, "architecture", "aarch64", false),
        (&silent, "architecture", "x86_64", false),
        (&kvm, "img_hv_type", "kvm", true),
        (&kvm, "hypervisor_type", "qemu", true),
        (&qemu, "hypervisor_type", "kvm", false),
        (&qemu, "hypervisor_type", "xen", false),
        (&kvm, "hw_vm_mode", "hvm", true),
        (&kvm, "vm_mode", "exe", false),
        (&kvm, "img_hv_requested_version", ">=7.2,<8", true),
        (&kvm, "hypervisor_version_requires", ">7.2.0", false),
        (&kvm, "hypervisor_version_requires", "!=7.2", false),
        (&kvm, "hypervisor_version_requires", "new", false),
        (&kvm, "hypervisor_version_requires", ">=1.2.3.4", false),
    ] {
        assert_eq!(image_fits(&map(&[(key, value)]), host), fits, "{key} {value}");
    }
}

/// Each filter, with the hosts that it leaves, and the count under which the refusal tells the others.
#[test]
fn every_filter_leaves_the_hosts_that_it_should() {
    type Count = fn(&NoValidHost) -> usize;
    type Row<'a> = (&'a str, Request, &'a dyn Fn(HostId) -> bool, Vec<u8>, Count);
    let mut cloud = world(9);
    let (fast, named) = (Uuid::from_u128(50), Uuid::from_u128(51));
    let there = |n: u8| host(n).0.to_string();
    let aggregate = |hosts: &[u8], metadata: &[(&str, &str)]| Aggregate {
        metadata: map(metadata),
        hosts: hosts.iter().map(|n| (there(*n), String::new())).collect(),
        ..Aggregate::default()
    };
    let made = cloud.replicas[0].transact::<_, Refusal>(4, |tx| {
        tx.create(fast, aggregate(&[0, 4], &[("disk", "ssd, nvme"), ("cores", "8")]), &[])?;
        tx.create(named, aggregate(&[0, 7], &[("disk", "hdd")]), &[])?;
        tx.update::<Host, Refusal>(host(2).0, |host| {
            host.disabled = true;
            Ok(())
        })
    });
    made.unwrap();
    let base = Request { amount: amount(1), ..Request::default() };
    let on_one = Request { host: Some(host(1)), ..base.clone() };
    create(&mut cloud, 0, 100, &on_one, 0).unwrap();
    let view = cloud.replicas[0].view().clone();
    let me = member(0).replica;
    let spec = |key: &str, value: &str| Request {
        extra_specs: map(&[(&format!("aggregate_instance_extra_specs:{key}"), value)]),
        ..base.clone()
    };
    let up: &dyn Fn(HostId) -> bool = &|_| true;
    let down: &dyn Fn(HostId) -> bool = &|id| id != host(3);
    let server = Uuid::from_u128(100);
    let table: Vec<Row<'_>> = vec![
        ("nothing", base.clone(), up, vec![0, 1, 3, 4, 5, 6, 7, 8], |n| n.disabled),
        ("zone", Request { zone: Some("site-0".into()), ..base.clone() }, up, vec![0, 1], |n| n.disabled),
        ("host", Request { host: Some(host(5)), ..base.clone() }, up, vec![5], |n| n.disabled),
        ("down", base.clone(), down, vec![0, 1, 4, 5, 6, 7, 8], |n| n.down),
        ("capacity", Request { amount: amount(10), ..base.clone() }, up, vec![0, 1], |n| n.short.len()),
        ("size", Request { amount: amount(31), ..base.clone() }, up, vec![], |n| n.full),
        ("equal", spec("disk", "ssd"), up, vec![0, 4], |n| n.aggregates),
        ("two aggregates", spec("disk", "hdd"), up, vec![0, 7], |n| n.aggregates),
        ("number", spec("cores", ">= 4"), up, vec![0, 4], |n| n.aggregates),
        ("unknown key", spec("colour", "red"), up, vec![], |n| n.aggregates),
        (
            "no scope",
            Request { extra_specs: map(&[("disk", "ssd"), ("hw:x", "y")]), ..base.clone() },
            up,
            vec![0, 1, 3, 4, 5, 6, 7, 8],
            |n| n.disabled,
        ),
        ("image", Request { image: map(&[("architecture", "arm64")]), ..base.clone() }, up, vec![], |n| n.image),
        (
            "different_host",
            Request { different_host: vec![server], ..base.clone() },
            up,
            vec![0, 3, 4, 5, 6, 7, 8],
            |n| n.hints,
        ),
        ("same_host", Request { same_host: vec![server], ..base.clone() }, up, vec![1], |n| n.hints),
        ("same_host, nobody", Request { same_host: vec![Uuid::nil()], ..base }, up, vec![], |n| n.hints),
    ];
    for (what, request, is_up, wanted, count) in table {
        let mut found = BTreeSet::new();
        // The random choice is among the best few only: each host by itself is asked about.
        let candidates = (0..9).filter(|n| request.host.is_none_or(|wanted| wanted == host(*n)));
        for n in candidates {
            let request = Request { host: Some(host(n)), ..request.clone() };
            match choose(&view, me, "site-0", &request, is_up, 0) {
                Ok(choice) => {
                    assert_eq!(choice.host, host(n), "{what}");
                    found.insert(n);
                }
                Err(none) if none.in_zone == 0 || n == 2 => {}
                Err(none) => assert_eq!(count(&none), 1, "{what}, host {n}: {none}"),
            }
        }
        assert_eq!(found.into_iter().collect::<Vec<_>>(), wanted, "{what}");
    }
}

#[test]
fn soft_policies_weigh_before_home_and_memory_and_never_refuse() {
    let mut cloud = world(9);
    let placed: Vec<HostId> =
        (0..9).map(|n| create(&mut cloud, 0, 100 + n, &of_group(SOFT_APART), u64::MAX / 7).unwrap().host).collect();
    assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), 9, "each on a host of its own, while there is one");
    assert!(placed[..3].iter().all(|host_id| (0..3).any(|n| host(n) == *host_id)), "at home first");
    create(&mut cloud, 0, 120, &of_group(SOFT_APART), 5).unwrap();
    let first = create(&mut cloud, 0, 200, &of_group(SOFT_TOGETHER), 1).unwrap().host;
    for n in 1..12 {
        assert_eq!(
            create(&mut cloud, 0, 200 + n, &of_group(SOFT_TOGETHER), n.try_into().unwrap()).unwrap().host,
            first
        );
    }
    // Where there is no more room, another host will do.
    let rest = Request { amount: amount(10), ..of_group(SOFT_TOGETHER) };
    assert_ne!(create(&mut cloud, 0, 300, &rest, 0).unwrap().host, first);
}

// ---- hard policies

#[test]
fn two_halves_place_members_apart_without_a_message() {
    let mut cloud = world(9);
    for (at, base) in [(0, 0), (1, 3), (2, 6)] {
        let mut found = BTreeSet::new();
        for n in 0..3 {
            let choice = create(&mut cloud, at, 100 + 10 * at as u128 + n, &of_group(APART), 0).unwrap();
            found.insert(choice.host);
        }
        let own: BTreeSet<HostId> = (0..3).map(|n| host(base + n)).collect();
        assert_eq!(found, own, "each site has the rights on its own hosts");
        let none = create(&mut cloud, at, 190 + at as u128, &of_group(APART), 0).unwrap_err();
        assert_eq!(
            (none.group, none.unminted.len()),
            (3, 6),
            "its hosts are used up, the others' it must ask for: {none}"
        );
    }
    cloud.exchange_all();
    let none = create(&mut cloud, 0, 200, &of_group(APART), 0).unwrap_err();
    assert_eq!((none.group, none.unminted.len(), none.short.len()), (9, 0, 0), "{none}");
}

#[test]
fn a_right_to_place_a_member_is_made_once_and_by_the_root_of_the_hosts_pool() {
    let mint =
        |group, host| LedgerOp::Mint { subject: Subject::Group { group, host }, amount: amount(1), confirmed: false };
    // A site that is no root of that host; then the root itself, twice.
    let mut cloud = world(3);
    cloud.admit(9);
    cloud.exchange_all();
    let rogue = Rogue::new(9);
    for op in [mint(APART, Some(host(0))), mint(APART, Some(host(200))), mint(TOGETHER, None)] {
        let mut header = rogue.header(cloud.replicas[1].view().frontier());
        header.ledger = vec![op];
        let entry = rogue.sign(header, vec![]);
        let mut fresh = world(3);
        fresh.admit(9);
        fresh.exchange_all();
        let received = fresh.replicas[1].receive(entry.bytes());
        assert!(matches!(received, Received::Refused(_)), "{received:?}");
    }
    let subject = Subject::Group { group: APART, host: Some(host(0)) };
    let once = cloud.replicas[0].transact::<_, Refusal>(5, |tx| tx.mint(subject.clone(), amount(1)));
    once.unwrap();
    let twice = cloud.replicas[0].transact::<_, Refusal>(6, |tx| tx.mint(subject, amount(1)));
    assert!(matches!(twice, Err(Refusal::Invalid(_))), "{twice:?}");
    // One that calls itself the right of a whole group, and was not made with it, counts for nothing.
    let late = Uuid::from_u128(77);
    let token = |view: &View| view.group_token(late);
    cloud.replicas[1]
        .transact::<_, Refusal>(7, |tx| tx.mint(Subject::Group { group: late, host: None }, amount(1)))
        .unwrap();
    cloud.exchange_all();
    let group = ServerGroup { policy: GroupPolicy::Affinity, ..ServerGroup::default() };
    cloud.replicas[0].transact::<_, Refusal>(8, |tx| tx.create(late, group, &[])).unwrap();
    assert_eq!(token(cloud.replicas[0].view()), None);
}

#[test]
fn a_members_right_comes_back_with_its_hosts_claim_only() {
    let mut cloud = world(3);
    let choice = create(&mut cloud, 0, 100, &of_group(APART), 0).unwrap();
    let server = RecordId { kind: Kind::Server, id: Uuid::from_u128(100) };
    let claims = |view: &View| view.ledger().claims_of(server).map(|(id, claim)| (id, claim.pool)).collect::<Vec<_>>();
    let claims = claims(cloud.replicas[0].view());
    let right = claims.iter().find(|(_, pool)| *pool != choice.pool).unwrap().0;
    cloud.replicas[0].transact::<_, Refusal>(5, |tx| tx.delete(server)).unwrap();
    let early = cloud.replicas[0].transact::<_, Refusal>(6, |tx| tx.release(right));
    assert!(matches!(early, Err(Refusal::Invalid(_))), "{early:?}");
    let none = create(&mut cloud, 0, 101, &Request { host: Some(choice.host), ..of_group(APART) }, 0).unwrap_err();
    assert_eq!(none.group, 1, "its domain may still run there");
    state_gone(&mut cloud);
    cloud.replicas[0].release_settled(8, None).unwrap();
    create(&mut cloud, 0, 102, &Request { host: Some(choice.host), ..of_group(APART) }, 0).unwrap();
}

#[test]
fn affinity_is_placed_by_the_holder_of_its_right_alone() {
    let mut cloud = world(9);
    let none = create(&mut cloud, 1, 100, &of_group(TOGETHER), 0).unwrap_err();
    let short = none.short.first().unwrap();
    assert_eq!(short.elsewhere.first().map(|(holder, ..)| *holder), Some(member(0).replica), "{none}");
    let first = create(&mut cloud, 0, 101, &of_group(TOGETHER), 7).unwrap().host;
    assert_eq!(create(&mut cloud, 0, 102, &of_group(TOGETHER), 1).unwrap().host, first);
    // The right goes to the other site, with all that its holder had seen.
    ask(&mut cloud, 1, TOGETHER);
    let there = create(&mut cloud, 1, 103, &of_group(TOGETHER), 2).unwrap().host;
    assert_eq!(there, first);
    let none = create(&mut cloud, 0, 104, &of_group(TOGETHER), 0).unwrap_err();
    assert!(none.to_string().contains("the right to place members"), "{none}");
}

#[test]
fn the_heir_of_a_retired_site_places_members_in_its_stead() {
    let mut cloud = world(9);
    ask(&mut cloud, 2, TOGETHER);
    let there = create(&mut cloud, 2, 100, &of_group(TOGETHER), 0).unwrap().host;
    let taken = create(&mut cloud, 2, 101, &of_group(APART), 0).unwrap().host;
    send(&mut cloud, 2, 0);
    let (dead, heir) = (member(2).replica, member(0).replica);
    let request =
        MemberOp::Retire(luc_engine::retire::Request { set: vec![Retiree { replica: dead, heir }], force: true });
    cloud.replicas[0].transact::<_, Refusal>(5, |tx| tx.membership(request)).unwrap();
    for _ in 0..3 {
        for at in 0..2 {
            while cloud.replicas[at].tend(6, None).unwrap() {}
        }
        send(&mut cloud, 0, 1);
        send(&mut cloud, 1, 0);
    }
    assert!(cloud.replicas[0].view().retired().contains(dead));
    assert_eq!(create(&mut cloud, 0, 102, &of_group(TOGETHER), 0).unwrap().host, there);
    let none = create(&mut cloud, 0, 103, &Request { host: Some(taken), ..of_group(APART) }, 0).unwrap_err();
    assert_eq!(none.group, 1, "{none}");
    let other = (6..9).map(host).find(|host| *host != taken);
    let placed = create(&mut cloud, 0, 104, &Request { host: other, ..of_group(APART) }, 0).unwrap();
    assert!(matches!(placed.member, Some(MemberRight::New { .. })), "{placed:?}");
}

/// What a replica does before it answers a user: it asks for what is short, wherever it is.
fn ask(cloud: &mut Cloud, at: usize, group: Uuid) {
    let now = cloud.tick();
    let me = member(u8::try_from(at).unwrap()).replica;
    let home = member(u8::try_from(at).unwrap()).site.to_string();
    let Err(none) = choose(cloud.replicas[at].view(), me, &home, &of_group(group), &|_| true, 0) else { return };
    let index = |id: ReplicaId| (0..3).find(|n| member(*n).replica == id).map(usize::from).unwrap();
    let from = if let Some(unminted) = none.unminted.first() {
        let from = index(unminted.root);
        let (group, host) = (unminted.group, unminted.host);
        send(cloud, at, from);
        cloud.replicas[from].transact::<_, Refusal>(now, |tx| hand_over(tx, group, host, me)).unwrap();
        from
    } else if let Some((holder, pool, _)) = none.short.first().and_then(|short| short.elsewhere.first()) {
        let (from, pool): (usize, PoolId) = (index(*holder), *pool);
        let wanted = none.short[0].wanted.clone();
        let granted = cloud.replicas[from].transact::<_, Refusal>(now, |tx| tx.grant(pool, me, wanted));
        assert!(matches!(granted, Ok(_) | Err(Refusal::Invalid(_))), "{granted:?}");
        from
    } else {
        return;
    };
    send(cloud, from, at);
}

/// One replica gets everything that another holds.
fn send(cloud: &mut Cloud, from: usize, to: usize) {
    cloud.replicas[from].flush().unwrap();
    let mut rest: Vec<Vec<u8>> = cloud.log(from).into_values().collect();
    while !rest.is_empty() {
        let before = rest.len();
        rest.retain(|bytes| match cloud.replicas[to].receive(bytes) {
            Received::Applied | Received::Known => false,
            Received::Waiting(_) => true,
            Received::Refused(rejection) => panic!("refused: {rejection}"),
        });
        assert!(rest.len() < before, "entries wait for ever");
    }
}

/// The agents of all hosts promise what their own site's replica knows to be deleted.
fn state_gone(cloud: &mut Cloud) {
    let now = cloud.tick();
    for site in 0..3_u8 {
        let replica = &mut cloud.replicas[usize::from(site)];
        let view = replica.view().clone();
        let mut stated = Vec::new();
        for n in 3 * site..3 * site + 3 {
            for (claim, row) in view.ledger().claims_on(host(n)).filter(|(_, row)| row.gone.is_empty()) {
                if view.held(row.record).is_none_or(|held| held.deleted) {
                    stated.push(Statement::sign(view.cloud(), host(n), row.record.id, claim, 1, &host_key(n)));
                }
            }
        }
        let said = replica.transact::<_, Refusal>(now, |tx| {
            stated.into_iter().for_each(|one| assert!(tx.state(one)));
            Ok(())
        });
        said.unwrap();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create { at: usize, group: usize, random: u64 },
    Ask { at: usize, group: usize },
    Delete { at: usize, pick: usize },
    Agents,
    Release { at: usize },
    Send { from: usize, to: usize },
    Restart { at: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (at, group) = (0_usize..3, 0_usize..3);
    prop_oneof![
        8 => (at.clone(), group.clone(), any::<u64>()).prop_map(|(at, group, random)| Step::Create { at, group, random }),
        4 => (at.clone(), group).prop_map(|(at, group)| Step::Ask { at, group }),
        3 => (at.clone(), any::<usize>()).prop_map(|(at, pick)| Step::Delete { at, pick }),
        2 => Just(Step::Agents),
        2 => at.clone().prop_map(|at| Step::Release { at }),
        3 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Send { from, to }),
        1 => at.prop_map(|at| Step::Restart { at }),
    ]
}

/// In the union of all states, at every moment: on no host more members than its group allows, and of a group with
/// affinity all on one host.
fn invariants(cloud: &Cloud, server_groups: &BTreeMap<Uuid, Uuid>) {
    let mut live: BTreeMap<ClaimId, (Uuid, HostId)> = BTreeMap::new();
    let views: Vec<View> = cloud.replicas.iter().map(|replica| replica.view().clone()).collect();
    for view in &views {
        assert!(view.ledger().is_conserved());
        for (id, claim) in view.ledger().claims() {
            let Some(host) = view.ledger().host_of(claim) else { continue };
            let settled = |view: &View| match view.ledger().claim(id.to_owned()) {
                Some(claim) => !claim.gone.is_empty(),
                None => view.frontier().holds(id.entry),
            };
            if !views.iter().any(settled) {
                live.insert(*id, (claim.record.id, host));
            }
        }
    }
    for (group, policy, limit) in HARD {
        let mut on: BTreeMap<HostId, u64> = BTreeMap::new();
        for (_, host) in live.values().filter(|(server, _)| server_groups.get(server) == Some(&group)) {
            *on.entry(*host).or_default() += 1;
        }
        match policy {
            GroupPolicy::Affinity => assert!(on.len() <= 1, "affinity: {on:?}"),
            _ => assert!(on.values().all(|n| *n <= limit), "anti-affinity of {limit}: {on:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn hard_policies_hold_in_every_half_of_a_split_cloud(steps in proptest::collection::vec(step(), 1..60)) {
        let mut cloud = world(9);
        let mut groups: BTreeMap<Uuid, Uuid> = BTreeMap::new();
        for (n, step) in steps.into_iter().enumerate() {
            let now = cloud.tick();
            match step {
                Step::Create { at, group, random } => {
                    let (id, group) = (1_000 + n as u128, HARD[group].0);
                    if create(&mut cloud, at, id, &of_group(group), random).is_ok() {
                        groups.insert(Uuid::from_u128(id), group);
                        // What is not flushed would be lost with a restart; here every answer is durable.
                        cloud.replicas[at].flush().unwrap();
                    }
                }
                Step::Ask { at, group } => ask(&mut cloud, at, HARD[group].0),
                Step::Delete { at, pick } => {
                    let servers: Vec<Uuid> = cloud.replicas[at].view().all::<Server>().map(|(id, _)| id).collect();
                    if let Some(id) = pick.checked_rem(servers.len()).map(|at| servers[at]) {
                        let record = RecordId { kind: Kind::Server, id };
                        cloud.replicas[at].transact::<_, Refusal>(now, |tx| tx.delete(record)).unwrap();
                    }
                }
                Step::Agents => state_gone(&mut cloud),
                Step::Release { at } => drop(cloud.replicas[at].release_settled(now, None).unwrap()),
                Step::Send { from, to } if from != to => send(&mut cloud, from, to),
                Step::Send { .. } => {}
                Step::Restart { at } => {
                    cloud.replicas[at].flush().unwrap();
                    cloud.restart(at);
                }
            }
            invariants(&cloud, &groups);
        }
        cloud.exchange_all();
        invariants(&cloud, &groups);
        let first = cloud.replicas[0].view().clone();
        for at in 0..3 {
            prop_assert_eq!(cloud.replicas[at].view().digest(), first.digest());
            cloud.restart(at);
            prop_assert_eq!(cloud.replicas[at].view().digest(), first.digest());
        }
        // Every member's right comes back in the end, once.
        let now = cloud.tick();
        let servers: Vec<Uuid> = first.all::<Server>().map(|(id, _)| id).collect();
        cloud.replicas[0].transact::<_, Refusal>(now, |tx| {
            servers.iter().try_for_each(|id| tx.delete(RecordId { kind: Kind::Server, id: *id }))
        }).unwrap();
        cloud.exchange_all();
        state_gone(&mut cloud);
        cloud.exchange_all();
        for replica in &mut cloud.replicas {
            replica.release_settled(now, None).unwrap();
        }
        cloud.exchange_all();
        prop_assert_eq!(cloud.replicas[1].view().ledger().claims().count(), 0);
    }
}
