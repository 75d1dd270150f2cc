//! Users, roles and tokens, changed at one site and used at all, also while sites are cut off from each other.
//!
//! LUC checks a token without asking anybody, against what the site knows: what ends it (its revocation, a changed
//! password, a user disabled or deleted, the last role taken away) holds at once where it was done, and everywhere else as
//! soon as that has heard. The bound: once no fault has been at work for [`BOUND`], every site has heard. What is not ended
//! goes on working, and what a site refused once it does not take again. Names given at several sites at once are
//! [`twins`]; of replicas' certificates see [`certificates`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use anyhow::Result;
use serde_json::{Value, json};

use super::stage::{
    Anomaly, Excused, INSIST, Rule, Stage, Worth, client_of, ended, indices, lock, one_of, result, site_of, text,
};
use super::story::Story;
use super::twins::{self, Twins};
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload, certificates};
use crate::client::{Client, Trouble};
use crate::history::{History, Kind, Outcome, Pair};
use crate::run::{Fault, faults};

const NAME: &str = "auth";
/// Within so many nanoseconds without any fault, what ends a token is known everywhere.
pub(super) const BOUND: u64 = 15_000_000_000;
/// So long a token surely lives by itself, nanoseconds: an hour, but for a margin.
const LIFETIME: u64 = 3_000_000_000_000;
/// So many tokens are in use at a time.
const TOKENS: usize = 12;

const REFUSED: Rule = Rule {
    workload: NAME,
    checker: "revoked-works",
    rule: "What ends a token holds at once where it was done, and everywhere after 15 seconds without faults.",
};
const BACK: Rule = Rule {
    workload: NAME,
    checker: "works-again",
    rule: "A token that a site has refused because it ended stays refused.",
};
const WORKS: Rule =
    Rule { workload: NAME, checker: "valid-refused", rule: "In the end what nobody has ended works everywhere." };

/// A token that is in use.
#[derive(Clone)]
struct Known {
    token: String,
    user: String,
    user_id: String,
    secret: String,
}

/// The workload.
#[derive(Default)]
pub(super) struct Auth {
    stage: Stage,
    tokens: Mutex<Vec<Known>>,
    /// Those that somebody has tried to end: used on for a while.
    ended: Mutex<Vec<Known>>,
    twins: Twins,
}

impl Workload for Auth {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        self.stage.prepare(cloud, clients, NAME, (1, 64), &json!({"instances": 10}))
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        let (tokens, ended) = (lock(&self.tokens).clone(), lock(&self.ended).clone());
        let dice = session.rng.below(1000);
        if let Some(invocation) = self.twins.next(&self.stage, session, dice >= 940) {
            return Some(invocation);
        }
        if tokens.len() < TOKENS && (dice < 300 || tokens.is_empty()) {
            let number = self.stage.fresh();
            return Some(Invocation {
                f: "login",
                value: json!({"user": format!("user-{number}"), "token": number.to_string()}),
            });
        }
        if dice < 120 && !tokens.is_empty() {
            let known = one_of(&tokens, session.rng.bits())?;
            let how = one_of(&["revoke", "disable", "password", "ungrant", "remove"], session.rng.bits())?;
            return Some(Invocation { f: "end", value: json!({"token": known.token, "user": known.user, "how": how}) });
        }
        let from = if session.rng.chance(500) && !ended.is_empty() { &ended } else { &tokens };
        let known = one_of(from, session.rng.bits())?;
        Some(Invocation { f: "use", value: json!({"token": known.token, "user": known.user}) })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        let token = text(&invocation.value, "token");
        let done = match invocation.f {
            "login" => self.login(session, text(&invocation.value, "user"), token),
            "end" => self.end(session, token, text(&invocation.value, "how")),
            "final" => self.last(session),
            twins::GIVE => self.twins.give(&self.stage, session, &invocation.value),
            twins::LAST => self.twins.ask(&self.stage, session, &invocation.value),
            _ => {
                self.known(token).and_then(|known| works(&session.client, &known)).map(|works| json!({"works": works}))
            }
        };
        done.map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, _: &mut Session) -> Vec<Invocation> {
        std::iter::once(Invocation { f: "final", value: json!({}) }).chain(self.twins.last()).collect()
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let seen = Seen::of(history);
        let (excused, faults) = (Excused::of(all), faults(all));
        let worth = Worth::of(history, 20, |_| false)
            .needs(seen.ends.values().flatten().any(Pair::is_ok), "no token was ended")
            .needs(seen.uses.iter().any(|one| !one.works), "no ended token was tried");
        let last =
            Worth::of(history, 0, |_| false).needs(seen.uses.iter().any(|one| one.last), "nobody tried in the end");
        vec![
            REFUSED.verdict(&worth, seen.revoked(&excused, &faults)),
            BACK.verdict(&worth, seen.back(&excused)),
            WORKS.verdict(&last, seen.refused(&excused)),
            twins::check(history, &excused),
            certificates::check(all),
        ]
    }
}

impl Auth {
    fn known(&self, token: &str) -> Result<Known, Trouble> {
        let (tokens, ended) = (lock(&self.tokens), lock(&self.ended));
        let found = tokens.iter().chain(ended.iter()).find(|known| known.token == token).cloned();
        found.ok_or_else(|| Trouble::Unsent("this token is not known any more".into()))
    }

    /// Makes a user of the project, and a token for it. If the last step fails, there was no token.
    fn login(&self, session: &Session, user: &str, token: &str) -> Result<Value, Trouble> {
        let (admin, ground) = (&session.client, self.stage.ground()?);
        let name = format!("{}-{user}", ground.name);
        let body = json!({"user": {"name": name, "password": "secret"}});
        let made = admin.post("/identity/v3/users", &body)?;
        let user_id = text(&made["user"], "id").to_owned();
        admin.grant(&ground.project, &user_id, "member")?;
        let secret = admin.as_user(&name, "secret", &ground.name).login()?;
        lock(&self.tokens).push(Known { token: token.into(), user: user.into(), user_id, secret });
        Ok(json!({"token": token, "user": user}))
    }

    fn end(&self, session: &Session, token: &str, how: &str) -> Result<Value, Trouble> {
        let (admin, ground, known) = (&session.client, self.stage.ground()?, self.known(token)?);
        let user = format!("/identity/v3/users/{}", known.user_id);
        let done = match how {
            "revoke" => {
                let headers = [("x-subject-token", known.secret.as_str())];
                admin.request("DELETE", "/identity/v3/auth/tokens", &headers, &[]).map(|_| ())
            }
            "disable" => admin.call("PATCH", &user, Some(&json!({"user": {"enabled": false}}))).map(|_| ()),
            "password" => admin.call("PATCH", &user, Some(&json!({"user": {"password": "changed"}}))).map(|_| ()),
            "ungrant" => admin.ungrant(&ground.project, &known.user_id, "member"),
            _ => admin.call("DELETE", &user, None).map(|_| ()),
        };
        if !matches!(done, Err(Trouble::Refused { .. } | Trouble::Unsent(_))) {
            lock(&self.tokens).retain(|other| other.token != token);
            let mut ended = lock(&self.ended);
            ended.push(known);
            if ended.len() > TOKENS {
                ended.remove(0);
            }
        }
        done.map(|()| json!({"token": token}))
    }

    /// Tries all that are left.
    fn last(&self, session: &Session) -> Result<Value, Trouble> {
        let all: Vec<Known> = lock(&self.tokens).iter().chain(lock(&self.ended).iter()).cloned().collect();
        let tried = all.iter().map(|known| {
            let works = session.client.insist(INSIST, |client| works(client, known))?;
            Ok(json!({"token": known.token, "works": works}))
        });
        Ok(json!({"tokens": tried.collect::<Result<Vec<_>, Trouble>>()?}))
    }
}

/// Whether a token works: it may list servers. Only 401 says that it does not.
fn works(client: &Client, known: &Known) -> Result<bool, Trouble> {
    match client.with_token(&known.secret).get("/compute/v2.1/servers") {
        Ok(_) => Ok(true),
        Err(trouble) if matches!(trouble.status(), 401 | 403) => Ok(false),
        Err(trouble) => Err(trouble),
    }
}

/// One try of a token.
struct Use<'a> {
    token: &'a str,
    pair: Pair<'a>,
    works: bool,
    last: bool,
}

/// A history, looked up.
struct Seen<'a> {
    logins: HashMap<&'a str, Pair<'a>>,
    /// What may have ended each token.
    ends: HashMap<&'a str, Vec<Pair<'a>>>,
    uses: Vec<Use<'a>>,
}

impl<'a> Seen<'a> {
    fn of(history: &'a History) -> Self {
        let pairs = history.pairs();
        let of = |f: &'static str| pairs.iter().filter(move |pair| pair.invoke.f == f).copied();
        let name = |pair: &Pair<'a>| text(&pair.invoke.value, "token");
        let logins = of("login").filter(Pair::is_ok).map(|pair| (name(&pair), pair)).collect();
        // What is refused may have been half done: deleting a user takes roles first.
        let ends = super::stage::group(of("end").map(|pair| (name(&pair), pair)));
        let mut uses = Vec::new();
        for pair in pairs.iter().filter(|pair| pair.is_ok()).copied() {
            let told = result(&pair);
            match pair.invoke.f.as_str() {
                "use" => uses.push(Use { token: name(&pair), pair, works: told["works"] == true, last: false }),
                "final" => {
                    let tokens = told["tokens"].as_array().into_iter().flatten();
                    let one = |tried: &'a Value| Use {
                        token: text(tried, "token"),
                        pair,
                        works: tried["works"] == true,
                        last: true,
                    };
                    uses.extend(tokens.map(one));
                }
                _ => {}
            }
        }
        Self { logins, ends, uses }
    }

    fn ends(&self, token: &str) -> impl Iterator<Item = &Pair<'a>> {
        self.ends.get(token).into_iter().flatten()
    }

    fn revoked(&self, excused: &Excused, faults: &[Fault]) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        for used in self.uses.iter().filter(|used| used.works) {
            let (asked, site) = (used.pair.invoke, site_of(&used.pair));
            let calm = |end: &Pair<'_>| {
                let done = end.complete.map_or(u64::MAX, |op| op.time);
                let from = asked.time.saturating_sub(BOUND);
                let at_work = |fault: &Fault| fault.from < asked.time && fault.until.is_none_or(|until| until > from);
                // The final reads come when all sites agree.
                done <= from && (used.last || !faults.iter().any(at_work))
            };
            let here = |end: &Pair<'_>| {
                end.invoke.process == asked.process && !excused.touched(site, end.invoke.time, asked.time)
            };
            let ended =
                self.ends(used.token).filter(|end| end.is_ok() && ended(end) < asked.index && !excused.loses(end));
            if let Some(end) = ended.into_iter().find(|end| here(end) || used.last || calm(end)) {
                let how = text(&end.invoke.value, "how");
                let what = format!("token {} works at {site}, after {how} at {}", used.token, site_of(end));
                anomalies.push(Anomaly::new(what, indices(end).into_iter().chain(indices(&used.pair))));
            }
        }
        anomalies
    }

    fn back(&self, excused: &Excused) -> Vec<Anomaly> {
        let mut refused: HashMap<(u32, u64, &str), u64> = HashMap::new();
        let mut anomalies = Vec::new();
        for used in &self.uses {
            let (asked, site) = (used.pair.invoke, site_of(&used.pair));
            let life = (client_of(asked.process), excused.life(site, asked.time), used.token);
            // A token may be too new for a site, whose user is not known there yet; an ended one never is again.
            let may_be = |end: &Pair<'_>| end.kind() != Kind::Fail && end.invoke.index < asked.index;
            let over = self.ends(used.token).any(may_be);
            let Some(index) = used.pair.complete.map(|op| op.index) else { continue };
            let is_off = excused.is_off(site, asked.time);
            if !used.works && over && !is_off && self.was_known(used, life) {
                refused.insert(life, index);
            } else if let Some(before) = refused.get(&life).filter(|_| used.works) {
                let what = format!("{site} refused token {}, and takes it again", used.token);
                anomalies.push(Anomaly::new(what, [*before, index]));
            }
        }
        anomalies
    }

    /// Whether this session had seen the token work before.
    fn was_known(&self, used: &Use<'_>, life: (u32, u64, &str)) -> bool {
        let mine = |other: &&Use<'a>| other.token == used.token && client_of(other.pair.invoke.process) == life.0;
        let mut before = self.uses.iter().filter(mine).filter(|other| other.pair.invoke.index < used.pair.invoke.index);
        let made = self.logins.get(used.token).is_some_and(|login| client_of(login.invoke.process) == life.0);
        made || before.any(|other| other.works)
    }

    fn refused(&self, excused: &Excused) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        let mut seen: BTreeSet<(&str, u32)> = BTreeSet::new();
        for used in self.uses.iter().filter(|used| !used.works && used.last) {
            let Some(login) = self.logins.get(used.token).filter(|login| !excused.loses(login)) else { continue };
            // A replica that is gone takes its signature with it.
            let gone = excused.touched(site_of(login), login.invoke.time, used.pair.invoke.time);
            let gone = gone || used.pair.invoke.time.saturating_sub(login.invoke.time) > LIFETIME;
            // By a clock that was slow it has expired already, and so it has where one is fast.
            let gone =
                gone || [login, &used.pair].into_iter().any(|pair| excused.is_off(site_of(pair), pair.invoke.time));
            let mine = (used.token, client_of(used.pair.invoke.process));
            if self.ends(used.token).next().is_none() && !gone && seen.insert(mine) {
                let what = format!("{} refuses token {}, which nobody has ended", site_of(&used.pair), used.token);
                anomalies.push(Anomaly::new(what, indices(login).into_iter().chain(indices(&used.pair))));
            }
        }
        anomalies
    }
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let login = |story: Story, process, token: &str| {
        story.ok(process, "login", json!({"token": token, "user": token}), json!({"token": token}))
    };
    let end = |story: Story, process, token: &str, how: &str| {
        story.ok(process, "end", json!({"token": token, "how": how}), json!({"token": token}))
    };
    let using = |story: Story, process, token: &str, works: bool| {
        story.ok(process, "use", json!({"token": token}), json!({"works": works}))
    };
    let last = |story: Story, process, tokens: &[(&str, bool)]| {
        let tokens: Vec<Value> = tokens.iter().map(|(token, works)| json!({"token": token, "works": works})).collect();
        story.ok(process, "final", json!({}), json!({"tokens": tokens}))
    };
    let two = using(login(login(Story::new(NAME), 0, "t"), 1, "u"), 2, "t", true);
    let revoked = using(end(two.clone(), 0, "t", "revoke"), 0, "t", false);
    let cut = using(end(two.clone().cut(), 0, "t", "disable"), 0, "t", false);
    let seeded = |checker, bug, good, bad| Seeded::new(NAME, checker, bug, good, bad);
    vec![
        seeded(
            "revoked-works",
            "a revoked token works where it was revoked",
            using(revoked.clone(), 0, "t", false),
            using(end(revoked.clone(), 1, "u", "revoke"), 1, "u", true),
        ),
        seeded(
            "revoked-works",
            "a disabled user's token works long after the links were healed",
            using(cut.clone().wait(60), 2, "t", true),
            using(cut.heal().wait(60), 2, "t", true),
        ),
        seeded(
            "revoked-works",
            "a revocation is lost in the end",
            last(revoked.clone(), 2, &[("t", false), ("u", true)]),
            last(revoked.clone(), 2, &[("t", true), ("u", true)]),
        ),
        seeded(
            "works-again",
            "a site forgets a revocation",
            using(using(revoked.clone(), 2, "t", true), 2, "t", false),
            using(using(revoked.clone(), 2, "t", false), 2, "t", true),
        ),
        seeded(
            "works-again",
            "a site forgets a revocation, though its clock is right",
            using(using(revoked.clone().clocks(), 2, "t", false).right(), 2, "t", true),
            using(using(revoked.clone().clocks().right(), 2, "t", false), 2, "t", true),
        ),
        seeded(
            "valid-refused",
            "a token is refused for ever, though the clock was right where it was made",
            last(login(revoked.clone().clocks(), 1, "v").right(), 2, &[("t", false), ("v", false)]),
            last(login(revoked.clone().clocks().right(), 1, "v"), 2, &[("t", false), ("v", false)]),
        ),
        seeded(
            "valid-refused",
            "a site never hears of a user",
            last(revoked.clone(), 2, &[("t", false), ("u", true)]),
            last(revoked, 2, &[("t", false), ("u", false)]),
        ),
    ]
    .into_iter()
    .chain(twins::seeded())
    .chain(certificates::seeded())
    .collect()
}
