//! What people say to a running switch: one line, answered by one line of JSON. Pure.
//!
//! ```text
//! set   A B delay=25ms jitter=2ms loss=1% duplicate=0.1% reorder=1% rate=100mbit queue=50ms [oneway]
//! cut   A B [oneway]            flap A B up=2s down=1s [oneway]
//! isolate A                     heal [A B]
//! show
//! ```
//!
//! A and B are a site, several with commas between, or `*` for all. What is set stays until it is set otherwise; cutting
//! and healing leave it alone. `oneway` is from A to B only.

use serde_json::{Value, json};

use super::line::{MILLI, MILLION, Nanos, Quality, SECOND, State};
use super::switch::Switch;

/// Why a command was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such command.
    #[error("no command is called {0:?}: there are set, cut, flap, isolate, heal and show")]
    Command(String),
    /// Too few words.
    #[error("{0} needs {1}")]
    Missing(&'static str, &'static str),
    /// No such site.
    #[error("no site is called {0:?}")]
    Site(String),
    /// A word that means nothing there.
    #[error("{0:?} means nothing there")]
    Word(String),
    /// A number that cannot be read.
    #[error("{0:?} is not {1}")]
    Number(String, &'static str),
}

/// Obeys a command.
///
/// # Errors
/// [`Refused`]; then nothing is changed.
pub fn obey(switch: &mut Switch, line: &str, now: Nanos) -> Result<Value, Refused> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (command, rest) = words.split_first().ok_or_else(|| Refused::Command(String::new()))?;
    match *command {
        "set" => {
            let (pairs, words) = pairs(switch, "set", rest)?;
            let words = words.iter().map(|word| setting(word)).collect::<Result<Vec<_>, _>>()?;
            for (from, to) in pairs {
                let line = switch.line_mut(from, to);
                line.into_iter().for_each(|line| words.iter().for_each(|word| word.apply(&mut line.quality)));
            }
        }
        "cut" => change(switch, "cut", rest, |words| nothing(words).map(|()| State::Cut))?,
        "flap" => change(switch, "flap", rest, |words| flapping(words, now))?,
        "heal" if rest.is_empty() => change(switch, "heal", &["*", "*"], |_| Ok(State::Up))?,
        "heal" => change(switch, "heal", rest, |words| nothing(words).map(|()| State::Up))?,
        "isolate" => {
            let site = rest.first().ok_or(Refused::Missing("isolate", "a site"))?;
            nothing(rest.get(1..).unwrap_or_default())?;
            change(switch, "isolate", &[site, "*"], |_| Ok(State::Cut))?;
        }
        "show" => nothing(rest)?,
        other => return Err(Refused::Command(other.to_owned())),
    }
    Ok(show(switch, now))
}

/// Every line, with what has happened on it.
#[must_use]
pub fn show(switch: &Switch, now: Nanos) -> Value {
    let sites = switch.sites();
    let mut lines = Vec::new();
    for (from, from_name) in sites.iter().enumerate() {
        for (to, to_name) in sites.iter().enumerate().filter(|(to, _)| *to != from) {
            let Some(line) = switch.line(from, to) else { continue };
            let (quality, counts) = (&line.quality, line.counts);
            let state = match line.state {
                State::Up => "up",
                State::Cut => "cut",
                State::Flapping { .. } if line.state.is_up(now) => "flapping (up)",
                State::Flapping { .. } => "flapping (cut)",
            };
            lines.push(json!({
                "from": from_name, "to": to_name, "state": state,
                "delay_us": quality.delay / 1_000, "jitter_us": quality.jitter / 1_000,
                "loss_ppm": quality.loss, "duplicate_ppm": quality.duplicate, "reorder_ppm": quality.reorder,
                "rate_bits": quality.rate, "queue_us": quality.queue / 1_000,
                "passed": counts.passed, "bytes": counts.bytes, "cut": counts.cut, "lost": counts.lost,
                "full": counts.full, "doubled": counts.doubled, "held_back": counts.held_back,
            }));
        }
    }
    json!({"sites": sites, "lines": lines})
}

/// One `key=value`.
#[derive(Clone, Copy)]
enum Setting {
    Delay(Nanos),
    Jitter(Nanos),
    Loss(u64),
    Duplicate(u64),
    Reorder(u64),
    Rate(Option<u64>),
    Queue(Nanos),
}

impl Setting {
    fn apply(self, quality: &mut Quality) {
        match self {
            Self::Delay(value) => quality.delay = value,
            Self::Jitter(value) => quality.jitter = value,
            Self::Loss(value) => quality.loss = value,
            Self::Duplicate(value) => quality.duplicate = value,
            Self::Reorder(value) => quality.reorder = value,
            Self::Rate(value) => quality.rate = value,
            Self::Queue(value) => quality.queue = value,
        }
    }
}

fn setting(word: &str) -> Result<Setting, Refused> {
    let (key, value) = word.split_once('=').ok_or_else(|| Refused::Word(word.to_owned()))?;
    Ok(match key {
        "delay" => Setting::Delay(time(value)?),
        "jitter" => Setting::Jitter(time(value)?),
        "loss" => Setting::Loss(chance(value)?),
        "duplicate" => Setting::Duplicate(chance(value)?),
        "reorder" => Setting::Reorder(chance(value)?),
        "rate" => Setting::Rate(rate(value)?),
        "queue" => Setting::Queue(time(value)?),
        _ => return Err(Refused::Word(word.to_owned())),
    })
}

fn change(
    switch: &mut Switch,
    command: &'static str,
    words: &[&str],
    state: impl Fn(&[&str]) -> Result<State, Refused>,
) -> Result<(), Refused> {
    let (pairs, rest) = pairs(switch, command, words)?;
    let state = state(&rest)?;
    for (from, to) in pairs {
        switch.line_mut(from, to).into_iter().for_each(|line| line.state = state);
    }
    Ok(())
}

fn flapping(words: &[&str], now: Nanos) -> Result<State, Refused> {
    let (mut up, mut down) = (None, None);
    for word in words {
        match word.split_once('=') {
            Some(("up", value)) => up = Some(time(value)?),
            Some(("down", value)) => down = Some(time(value)?),
            _ => return Err(Refused::Word((*word).to_owned())),
        }
    }
    match (up, down) {
        (Some(up), Some(down)) => Ok(State::Flapping { up, down, since: now }),
        _ => Err(Refused::Missing("flap", "up= and down=")),
    }
}

fn nothing(words: &[&str]) -> Result<(), Refused> {
    words.first().map_or(Ok(()), |word| Err(Refused::Word((*word).to_owned())))
}

type Pairs = Vec<(usize, usize)>;

/// The lines that the first two words name, and the other words but for `oneway`.
fn pairs<'a>(switch: &Switch, command: &'static str, words: &[&'a str]) -> Result<(Pairs, Vec<&'a str>), Refused> {
    let [from, to, rest @ ..] = words else { return Err(Refused::Missing(command, "two sites")) };
    let (from, to) = (sites(switch, from)?, sites(switch, to)?);
    let one_way = rest.contains(&"oneway");
    let mut pairs = Pairs::new();
    for (a, b) in from.iter().flat_map(|a| to.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b) {
        pairs.push((a, b));
        if !one_way {
            pairs.push((b, a));
        }
    }
    Ok((pairs, rest.iter().copied().filter(|word| *word != "oneway").collect()))
}

fn sites(switch: &Switch, words: &str) -> Result<Vec<usize>, Refused> {
    let all = switch.sites();
    if words == "*" {
        return Ok((0..all.len()).collect());
    }
    let find = |name: &str| all.iter().position(|site| site == name).ok_or_else(|| Refused::Site(name.to_owned()));
    words.split(',').map(find).collect()
}

/// `25ms`, `100us`, `1.5s`.
fn time(text: &str) -> Result<Nanos, Refused> {
    let units = [("ms", MILLI), ("us", 1_000), ("µs", 1_000), ("s", SECOND)];
    let found = units.iter().find_map(|(unit, size)| scaled(text.strip_suffix(unit)?, *size));
    found.or_else(|| (text == "0").then_some(0)).ok_or_else(|| Refused::Number(text.to_owned(), "a time like 25ms"))
}

/// `1%`, `0.01%`.
fn chance(text: &str) -> Result<u64, Refused> {
    let found = text.strip_suffix('%').and_then(|number| scaled(number, MILLION / 100));
    let found = found.or_else(|| (text == "0").then_some(0)).filter(|n| *n <= MILLION);
    found.ok_or_else(|| Refused::Number(text.to_owned(), "a chance like 0.5%"))
}

/// `100mbit`, `2gbit`, `none`.
fn rate(text: &str) -> Result<Option<u64>, Refused> {
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("bit", 1)];
    let found = units.iter().find_map(|(unit, size)| scaled(text.strip_suffix(unit)?, *size)).filter(|n| *n > 0);
    match found {
        None if text == "none" => Ok(None),
        Some(bits) => Ok(Some(bits)),
        None => Err(Refused::Number(text.to_owned(), "a rate like 100mbit, or none")),
    }
}

/// A decimal number times a unit, rounded down; none if it is no number or too large.
fn scaled(text: &str, unit: u64) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let part_of = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let rest = if part.is_empty() { 0 } else { u128::from(part.parse::<u64>().ok()?) };
    let sum = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit) + rest * u128::from(unit) / u128::from(part_of);
    u64::try_from(sum).ok().filter(|n| *n < u64::MAX / 16)
}
