//! One user name, given at several sites at once: a part of the workload `auth`.
//!
//! Either one site alone says that it has made the user, or each has made one of its own. Then the name is, everywhere, that
//! of the same one, with its password and no other's, and all of them are found by their ids (`PROTOCOL.md`, R3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::stage::{Anomaly, Excused, INSIST, Rule, Stage, Worth, ended, indices, lock, result, site_of, text};
use super::story::Story;
use super::{Invocation, Seeded, Session, Verdict};
use crate::client::Trouble;
use crate::history::{History, Kind, Pair};

/// The workload of which this is a part.
const NAME: &str = "auth";
/// Gives a name.
pub(super) const GIVE: &str = "twin";
/// Asks in the end whose each name is.
pub(super) const LAST: &str = "final-users";
/// So many names are given so in a run: each costs the hashing of passwords.
const MOST: usize = 6;
/// So many sessions give one. Fewer than the wrong passwords that a site takes without making one wait.
const PARENTS: usize = 3;
/// How long a session that begins one waits for others to join.
const TOGETHER: Duration = Duration::from_millis(300);

const ONE: Rule = Rule {
    workload: NAME,
    checker: "one-user",
    rule: "A user name that several sites gave at once is, in the end, that of the same one of them everywhere, and none is lost.",
};

/// A user name that several sessions give at once.
struct Twin {
    name: String,
    /// Who gives it.
    by: BTreeSet<u32>,
    /// When they all do.
    at: Instant,
}

/// All that are given in a run.
#[derive(Default)]
pub(super) struct Twins(Mutex<Vec<Twin>>);

impl Twins {
    /// The name that this session gives next, if it does: with others who have begun, or as the first.
    pub(super) fn next(&self, stage: &Stage, session: &Session, begins: bool) -> Option<Invocation> {
        let mut twins = lock(&self.0);
        let (count, now) = (twins.len(), Instant::now());
        let last = twins.last_mut().filter(|last| now < last.at && last.by.len() < PARENTS);
        let name = match last {
            Some(last) => last.by.insert(session.process).then(|| last.name.clone())?,
            None if begins && count < MOST => {
                let name = format!("twin-{}", stage.fresh());
                twins.push(Twin { name: name.clone(), by: [session.process].into(), at: now + TOGETHER });
                name
            }
            None => return None,
        };
        Some(Invocation { f: GIVE, value: json!({"name": name, "by": session.process}) })
    }

    /// Makes the user, together with the others.
    pub(super) fn give(&self, stage: &Stage, session: &Session, value: &Value) -> Result<Value, Trouble> {
        let name = text(value, "name");
        let at = lock(&self.0).iter().find(|twin| twin.name == name).map(|twin| twin.at);
        std::thread::sleep(at.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default());
        let user = json!({"user": {"name": user(stage, name)?, "password": password(name, &value["by"])}});
        let made = session.client.post("/identity/v3/users", &user)?;
        Ok(json!({"name": name, "by": value["by"], "user": made["user"]["id"]}))
    }

    /// What is asked in the end, if any was given.
    pub(super) fn last(&self) -> Option<Invocation> {
        let twins = lock(&self.0);
        let of: BTreeMap<&str, &BTreeSet<u32>> = twins.iter().map(|twin| (twin.name.as_str(), &twin.by)).collect();
        (!of.is_empty()).then(|| Invocation { f: LAST, value: json!({"names": of}) })
    }

    /// Whose passwords fit each name here, and the ids of all users of that name.
    pub(super) fn ask(&self, stage: &Stage, session: &Session, value: &Value) -> Result<Value, Trouble> {
        let mut all = serde_json::Map::new();
        for (name, by) in value["names"].as_object().into_iter().flatten() {
            let called = user(stage, name)?;
            let fits = |by: &Value| -> Result<Option<Value>, Trouble> {
                let client = session.client.as_user(&called, &password(name, by), "");
                let works = client.insist(INSIST, |client| match client.login() {
                    Ok(_) => Ok(true),
                    Err(trouble) if trouble.status() == 401 => Ok(false),
                    Err(trouble) => Err(trouble),
                })?;
                Ok(works.then(|| by.clone()))
            };
            let fits: Result<Vec<_>, _> = by.as_array().into_iter().flatten().map(fits).collect();
            let fits: Vec<Value> = fits?.into_iter().flatten().collect();
            let path = format!("/identity/v3/users?name={called}");
            let users = session.client.insist(INSIST, |client| client.get(&path))?;
            let users = users["users"].as_array().into_iter().flatten().map(|user| user["id"].clone());
            all.insert(name.clone(), json!({"fits": fits, "users": users.collect::<Vec<_>>()}));
        }
        Ok(json!({"names": all}))
    }
}

fn user(stage: &Stage, name: &str) -> Result<String, Trouble> {
    Ok(format!("{}-{name}", stage.ground()?.name))
}

fn password(name: &str, by: &Value) -> String {
    format!("secret-{name}-{by}")
}

/// What the checker says.
pub(super) fn check(history: &History, excused: &Excused) -> Verdict {
    let pairs = history.pairs();
    let mut given: BTreeMap<&str, Vec<&Pair<'_>>> = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| pair.invoke.f == GIVE) {
        given.entry(text(&pair.invoke.value, "name")).or_default().push(pair);
    }
    let finals: Vec<&Pair<'_>> = pairs.iter().filter(|pair| pair.invoke.f == LAST && pair.is_ok()).collect();
    let twice = given.values().any(|all| all.iter().filter(|pair| pair.is_ok()).count() > 1);
    let worth = Worth::of(history, 0, |_| false)
        .needs(twice, "no two sites have given one name")
        .needs(!finals.is_empty(), "nobody asked in the end whose names they are");
    let anomalies = given.iter().flat_map(|(name, given)| of_name(name, given, &finals, excused));
    ONE.verdict(&worth, anomalies.collect())
}

fn of_name(name: &str, given: &[&Pair<'_>], finals: &[&Pair<'_>], excused: &Excused) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    let lost = given.iter().any(|pair| excused.loses(pair));
    let unknown = given.iter().any(|pair| pair.kind() == Kind::Info);
    let made: Vec<_> = given.iter().filter(|pair| pair.is_ok()).collect();
    let mut first: Option<(&Pair<'_>, Vec<String>)> = None;
    for read in finals {
        let shown = &result(read)["names"][name];
        let fits: Vec<String> = shown["fits"].as_array().into_iter().flatten().map(Value::to_string).collect();
        let (site, mut by): (_, Vec<u64>) = (site_of(read), given.iter().flat_map(|pair| indices(pair)).collect());
        by.push(ended(read));
        if fits.len() > 1 || (fits.is_empty() && !made.is_empty() && !lost && !unknown) {
            let what = format!("the passwords of {fits:?} fit user {name} at {site}: there must be one");
            anomalies.push(Anomaly::new(what, by.clone()));
        }
        let refused = |pair: &&&Pair<'_>| pair.kind() == Kind::Fail && fits == [pair.invoke.value["by"].to_string()];
        if let Some(pair) = given.iter().find(refused) {
            let what = format!("user {name} was refused at {}, and is that of {site}", site_of(pair));
            anomalies.push(Anomaly::new(what, by.clone()));
        }
        let users: Vec<&str> = shown["users"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for pair in made.iter().filter(|pair| !excused.loses(pair)) {
            let id = text(result(pair), "user");
            if !users.contains(&id) {
                let what =
                    format!("{} has made user {name} with the id {id}, and {site} does not know it", site_of(pair));
                anomalies.push(Anomaly::new(what, indices(pair).into_iter().chain([ended(read)])));
            }
        }
        match &first {
            Some((other, before)) if *before != fits => {
                let what =
                    format!("user {name} is that of {before:?} at {}, and that of {fits:?} at {site}", site_of(other));
                anomalies.push(Anomaly::new(what, by.into_iter().chain([ended(other)])));
            }
            Some(_) => {}
            None => first = Some((read, fits)),
        }
    }
    anomalies
}

/// Faults for the proof of the checker.
pub(super) fn seeded() -> Vec<Seeded> {
    let give = |story: Story, process: u32| {
        let value = json!({"name": "t", "by": process});
        story.ok(process, GIVE, value, json!({"name": "t", "by": process, "user": format!("u{process}")}))
    };
    let ask = |story: Story, process, fits: &[u32], users: &[&str]| {
        story.ok(process, LAST, json!({}), json!({"names": {"t": {"fits": fits, "users": users}}}))
    };
    let two = give(give(Story::new(NAME), 0), 1);
    let (both, first) = (["u0", "u1"], |story: Story, process| ask(story, process, &[0], &["u0", "u1"]));
    let good = first(first(two.clone(), 0), 1);
    let seeded = |bug, bad| Seeded::new(NAME, "one-user", bug, good.clone(), bad);
    let refused = two.clone().fail(2, GIVE, json!({"name": "t", "by": 2}), "409 taken");
    vec![
        seeded("a name is two users at two sites", ask(first(two.clone(), 0), 1, &[1], &both)),
        seeded("both passwords work", ask(first(two.clone(), 0), 1, &[0, 1], &both)),
        seeded("neither password works", ask(first(two.clone(), 0), 1, &[], &both)),
        seeded("of two users of one name one is lost", ask(first(two, 0), 1, &[0], &["u0"])),
        seeded("a name is that of a user that was refused", ask(refused, 1, &[2], &both)),
    ]
}
