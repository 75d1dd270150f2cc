//! The reservation protocol, enumerated: three to five replicas that do all they may, in every order (`docs/reservations.md`).
//!
//! Each scenario runs twice: every schedule, the shortest first, up to a number of states (small scenarios to their end); then
//! long schedules at random. Every rule has a broken form, and must be caught by the property that it is there for.
//! `LUC_MODEL_STATES=400000 cargo test -p jepsen --test model -- --nocapture` looks further, and prints how far; 0 is no bound.
#![allow(clippy::unwrap_used, missing_docs)]

mod cloud;
mod migrate;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use cloud::Scenario;
use rules::{Request, Rules, SOUND, Set};
use stateright::{Checker, HasDiscoveries, Model, UniformChooser};

const fn request(set: Set, heir: u8) -> Request {
    Request { set, heir, force: false }
}

/// Most states of one model, unless `LUC_MODEL_STATES` says otherwise: all schedules up to some length. 0 is no bound.
const STATES: usize = 40_000;

fn bound() -> usize {
    std::env::var("LUC_MODEL_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(STATES)
}

const EFFECT: &str = "a retirement takes effect";

#[derive(Clone, Copy)]
enum Search {
    /// Every schedule, the shortest first.
    All,
    /// Long schedules at random.
    Random,
}

/// Runs a model to its end or bound, or until a rule is broken. Names what was broken, with its schedule.
fn explore(name: &str, search: Search, until: HasDiscoveries, scenario: Scenario) -> Found {
    let started = std::time::Instant::now();
    let mut options = scenario.checker().threads(2).finish_when(until);
    let states = match search {
        Search::All => bound(),
        Search::Random => bound().max(1) / 4,
    };
    if states > 0 {
        options = options.target_state_count(states);
    }
    let (states, depth, discoveries) = match search {
        Search::All => summary(options.spawn_bfs().join()),
        Search::Random => summary(options.spawn_simulation(1, UniformChooser).join()),
    };
    let broken: Vec<&str> = discoveries.keys().copied().filter(|property| *property != EFFECT).collect();
    let took = started.elapsed().as_millis();
    println!("{name}: {states} states to depth {depth}, {took} ms, broken: {broken:?}");
    discoveries
}

type Found = BTreeMap<&'static str, String>;

fn summary(checker: impl Checker<Scenario>) -> (usize, usize, Found) {
    let story = |path: stateright::Path<_, _>| {
        path.into_actions().iter().map(|action| format!("  {action:?}")).collect::<Vec<_>>().join("\n")
    };
    let found = checker.discoveries().into_iter().map(|(property, path)| (property, story(path))).collect();
    (checker.unique_state_count(), checker.max_depth(), found)
}

fn assert_sound(name: &str, scenario: Scenario) {
    let mut met = false;
    for search in [Search::All, Search::Random] {
        let mut found = explore(name, search, HasDiscoveries::AnyFailures, scenario.clone());
        met |= found.remove(EFFECT).is_some();
        if let Some((property, story)) = found.pop_first() {
            panic!("{name} breaks {property:?}:\n{story}");
        }
    }
    assert!(met, "{name}: nothing was ever retired");
}

fn assert_caught(name: &str, by: &'static str, scenario: Scenario) {
    let caught = [Search::All, Search::Random].into_iter().any(|search| {
        let found = explore(name, search, HasDiscoveries::AnyOf(BTreeSet::from([by])), scenario.clone());
        found.contains_key(by) != (by == EFFECT)
    });
    assert!(caught, "{name} was not caught by {by:?}");
}

/// Rights move, are spent and come back.
fn transfers(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[2, 0, 0]);
    it.claims = [1, 1, 1, 0, 0, 0];
    it.grants = vec![(0, 1), (1, 2), (0, 2)];
    it.decides = false;
    it.releases = 0b011;
    it.deaths = 0b010;
    it
}

/// 0 and 1 stay, 2 is retired; it has granted and claimed.
fn one_is_retired(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[0, 0, 2]);
    it.claims = [1, 1, 1, 0, 0, 0];
    it.grants = vec![(2, 1)];
    it.requests = vec![(0, request(0b100, 0))];
    it.deaths = 0b100;
    it
}

/// Two ask for the same, with different heirs; the one that is retired was owed a right.
fn two_ask(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[1, 1, 0]);
    it.claims = [1, 1, 0, 0, 0, 0];
    it.grants = vec![(1, 2)];
    it.requests = vec![(0, request(0b100, 0)), (1, request(0b100, 1))];
    it.deaths = 0b100;
    it
}

/// 0 retires 3; 1 retires 2, whose seal may be awaited. 0 has two votes, so that 0 and 1 are a majority.
fn overlapping(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 4, &[0, 0, 1, 1]);
    it.votes[0] = 24;
    it.grants = vec![(3, 2)];
    it.claims = [1, 0, 1, 0, 0, 0];
    it.requests = vec![(0, request(0b1000, 0)), (1, request(0b0100, 0))];
    it.deaths = 0b1100;
    it
}

/// Two halves of a split that retire each other.
fn halves(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 4, &[1, 0, 1, 0]);
    it.claims = [1, 0, 1, 0, 0, 0];
    it.requests = vec![(0, request(0b1100, 0)), (2, request(0b0011, 2))];
    it.decides = false;
    it
}

/// The same, each of one member only.
fn halves_one_by_one(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 4, &[0, 0, 0, 0]);
    it.requests = vec![(0, request(0b0100, 0)), (1, request(0b1000, 1)), (2, request(0b0001, 2))];
    it.decides = false;
    it
}

/// Two that retire each other, and a third.
fn mutual(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[1, 1, 0]);
    it.claims = [2, 2, 1, 0, 0, 0];
    it.requests = vec![(0, request(0b010, 0)), (1, request(0b001, 1))];
    it
}

/// Newcomers while 2 is being retired; one of them may never come up.
fn newcomers(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[0, 0, 1]);
    it.claims = [1, 0, 1, 0, 0, 0];
    it.requests = vec![(0, request(0b100, 0))];
    it.joins = vec![(0, 4), (0, 3)];
    it
}

/// 2, cut off, admits two and retires those that have retired it.
fn inflated(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[0, 0, 0]);
    it.requests = vec![(0, request(0b100, 0)), (2, request(0b011, 2))];
    it.joins = vec![(2, 3), (2, 4)];
    it
}

/// The same, when they have.
fn inflated_then(rules: Rules) -> Scenario {
    use cloud::Action::{Take, Write};
    use rules::Op::{Assent, Retire, Seal};
    let mut it = inflated(rules);
    it.after = vec![
        Write(0, Retire(request(0b100, 0))),
        Write(0, Seal(0b100)),
        Take(1, 0),
        Take(1, 0),
        Write(1, Seal(0b100)),
        Take(0, 1),
        Write(0, Assent(0b100)),
        Write(1, Assent(0b100)),
        Take(0, 1),
    ];
    it
}

/// 2 and 3 are gone; first without force.
fn forced_later(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 4, &[0, 0, 1, 0]);
    it.claims = [1, 0, 1, 0, 0, 0];
    it.requests = vec![(0, request(0b1100, 0)), (0, Request { set: 0b1100, heir: 0, force: true })];
    it.deaths = 0b1100;
    it
}

/// 2 writes two branches: it spends its right twice, or grants it to both others.
fn forked(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[0, 0, 1]);
    it.claims = [1, 1, 1, 1, 0, 0];
    it.grants = vec![(2, 0), (3, 1)];
    it.fork = Some((2, 3));
    it.slack = 1;
    it
}

/// The disk of 2 is replaced by an older copy.
fn restored(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 3, &[0, 0, 1]);
    it.claims = [1, 0, 1, 1, 0, 0];
    it.requests = vec![(0, request(0b1100, 0))];
    it.restore = Some((2, 3));
    it
}

/// 1 seals, and goes on to take of 3 what it has promised not to.
fn lying(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 4, &[0, 1, 0, 2]);
    it.claims = [0, 1, 0, 1, 0, 0];
    it.requests = vec![(0, request(0b1000, 0))];
    it.liar = 0b0010;
    it
}

/// The same, when all have sealed and 0 has assented.
fn lying_then(rules: Rules) -> Scenario {
    use cloud::Action::{Take, Write};
    use rules::Op::{Assent, Retire, Seal};
    let mut it = lying(rules);
    it.after = vec![Write(0, Retire(request(0b1000, 0))), Write(0, Seal(0b1000))];
    for at in [1, 2] {
        it.after.extend([Take(at, 0), Take(at, 0), Write(at, Seal(0b1000)), Take(0, at)]);
    }
    it.after.push(Write(0, Assent(0b1000)));
    it
}

/// 3 is being retired, and has claimed; 2 forks. It seals 3 in each branch, and one has seen that claim.
fn sealed_twice(rules: Rules) -> Scenario {
    let mut it = Scenario::of(rules, 4, &[0, 0, 0, 1]);
    // 0 and 1 are a majority without them.
    it.votes[3] = 6;
    it.claims = [1, 0, 0, 1, 0, 0];
    it.requests = vec![(0, request(0b1000, 0))];
    it.fork = Some((2, 4));
    it.liar = 0b1_0100;
    it
}

/// The same, when 0 and 1 have each other's seals: from there on everything.
fn sealed_twice_then(rules: Rules) -> Scenario {
    use cloud::Action::{Fork, Take, Write};
    use rules::Op::{Claim, Retire, Seal};
    let mut it = sealed_twice(rules);
    it.claims[0] = 0;
    it.after = vec![
        Write(0, Retire(request(0b1000, 0))),
        Write(0, Seal(0b1000)),
        Take(1, 0),
        Take(1, 0),
        Write(1, Seal(0b1000)),
        Take(0, 1),
        Write(3, Claim),
        Fork,
    ];
    it
}

/// One branch shows 1 that claim, and has not sealed; the other has sealed without it, and shows that to 0.
fn shown_beside_its_seal(rules: Rules) -> Scenario {
    use cloud::Action::{Take, TakeWith, Write};
    use rules::Op::{Note, Seal};
    let mut it = sealed_twice_then(rules);
    it.after.extend([
        Take(4, 3),
        Write(4, Note),
        TakeWith(1, 4),
        Take(2, 0),
        Take(2, 0),
        Write(2, Seal(0b1000)),
        Take(0, 2),
    ]);
    it
}

macro_rules! sound {
    ($($name:ident),*) => { $(mod $name { #[test] fn is_sound() { super::assert_sound(stringify!($name), super::$name(super::SOUND)); } })* };
}
sound!(
    transfers,
    one_is_retired,
    two_ask,
    overlapping,
    halves,
    halves_one_by_one,
    mutual,
    newcomers,
    inflated,
    inflated_then,
    forced_later,
    forked,
    restored,
    lying,
    lying_then,
    sealed_twice,
    sealed_twice_then,
    shown_beside_its_seal
);

const BOOKED: &str = "no-double-booking";
const CONSERVED: &str = "conservation";
const BEYOND: &str = "nothing beyond the cut";
const HEALS: &str = "nobody is refused for ever, and majorities decide";
const AGREES: &str = "agreement";

macro_rules! mutant {
    ($($name:ident: $scenario:ident { $($field:ident),+ } caught by $rule:expr;)*) => {
        $(#[test] fn $name() {
            let rules = Rules { $($field: false,)+ ..SOUND };
            assert_caught(stringify!($name), $rule, $scenario(rules));
        })*
    };
}
mutant! {
    own_seal_only: one_is_retired { all_seals } caught by AGREES;
    heir_spends_before_the_seals: one_is_retired { seals } caught by BOOKED;
    lowest_seal: one_is_retired { highest } caught by BEYOND;
    no_majority: halves { majority, sparing_seals } caught by AGREES;
    members_are_counted: inflated_then { conserved_votes } caught by AGREES;
    larger_seals_count: mutual { equal_sets, sparing_seals } caught by AGREES;
    any_seal_demands: newcomers { least_closure } caught by AGREES;
    any_seal_cuts: inflated { needed_cut } caught by AGREES;
    seals_alone: sealed_twice_then { assents } caught by AGREES;
    whatever_rests_on_it_assents: sealed_twice_then { said_once } caught by AGREES;
    assents_below_what_it_holds: shown_beside_its_seal { holds_no_more } caught by BEYOND;
    sealed_for_nothing: mutual { sparing_seals } caught by HEALS;
    taken_beyond_the_seal: one_is_retired { stop_at_seal } caught by BEYOND;
    only_seals_show: overlapping { shown_is_enough } caught by HEALS;
    taken_apart: overlapping { together } caught by HEALS;
    broken_promises_show: lying_then { before_its_seal } caught by BEYOND;
    strangers_show: inflated { known_only } caught by HEALS;
    taken_with_the_sealed_only: inflated { with_all } caught by HEALS;
    never_forced_later: forced_later { force_later } caught by EFFECT;
    judged_by_the_receiver: two_ask { own_past } caught by HEALS;
    restored_writes_as_itself: restored { witness } caught by BOOKED;
    released_twice: transfers { release_once } caught by CONSERVED;
}

fn migrate(rules: migrate::Rules) -> BTreeSet<&'static str> {
    let checker = migrate::Migration { rules, epochs: 4, boots: 1 }
        .checker()
        .threads(2)
        .target_state_count(2_000_000)
        .spawn_bfs()
        .join();
    println!("migration: {} states to depth {}", checker.unique_state_count(), checker.max_depth());
    checker.discoveries().into_keys().collect()
}

#[test]
fn a_migration_runs_the_server_once() {
    assert_eq!(migrate(migrate::SOUND), BTreeSet::from(["it moves"]));
}

#[test]
fn migrations_that_run_it_twice() {
    let sound = migrate::SOUND;
    for (name, rules) in [
        ("started while it moves", migrate::Rules { no_start_while_moving: false, ..sound }),
        ("released without the agent's word", migrate::Rules { with_its_word: false, ..sound }),
        ("epoch ignored", migrate::Rules { epochs: false, ..sound }),
        ("an order from before the boot", migrate::Rules { after_boot: false, ..sound }),
        ("a word that is forgotten", migrate::Rules { word_binds: false, ..sound }),
    ] {
        let found = migrate(rules);
        assert!(found.contains("host-truth"), "{name} was not caught: {found:?}");
    }
}
