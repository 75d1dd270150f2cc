//! What operations say of things, whatever the workload: made, asked to be gone, listed, shown.
//!
//! Workloads have their own words. By convention an operation that makes a thing is called `create…` or `add`, one that
//! deletes it `delete…` or `remove`, one that tells all of the workload's things at a site `list…`, `read` or `final`, and one
//! that tells a single thing `show…`. A thing is named by `id` in the value, or is the value, if that is text; of a list the
//! things are `servers` or `ids`, those that could not be built `failed`, and those on their way out `deleting`, or the value
//! itself is the list; in it, things are ids, objects with an `id`, or arrays whose first is the id. What does not follow this
//! says nothing here, and is judged by its workload alone.

use serde_json::Value;

use crate::history::{Kind, Pair, Process};
use crate::run::Run;

/// What an operation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// It was acknowledged that this was made.
    Made(String),
    /// It was asked that this be gone, whatever came of it.
    Unmade(String),
    /// These are there, and no others; and of those, so many at the end are on their way out.
    Listed(Vec<String>, usize),
    /// This is there, or is not.
    Shown(String, bool),
}

/// One operation with what it says.
pub(super) struct Fact<'a> {
    pub(super) pair: Pair<'a>,
    pub(super) says: Says,
}

impl Fact<'_> {
    pub(super) fn workload(&self) -> &str {
        self.pair.invoke.workload.as_deref().unwrap_or_default()
    }

    pub(super) fn site(&self) -> &str {
        self.pair.invoke.site.as_deref().unwrap_or_default()
    }

    /// Which of the replicas was asked: two of one site are two places.
    pub(super) fn replica(&self, run: &Run) -> u32 {
        match self.pair.invoke.process {
            Process::Client(number) => number.checked_rem(run.endpoints).unwrap_or(0),
            Process::Nemesis => 0,
        }
    }

    /// When it was over; what never was is over at no time.
    pub(super) fn done(&self) -> u64 {
        self.pair.complete.map_or(u64::MAX, |op| op.time)
    }
}

/// All that a run's operations say, by invocation.
pub(super) fn facts(run: &Run) -> Vec<Fact<'_>> {
    let pairs = super::clients(&run.history).into_iter();
    pairs.filter_map(|pair| says(&pair).map(|says| Fact { pair, says })).collect()
}

fn is(f: &str, words: &[&str]) -> bool {
    words.iter().any(|word| f == *word || f.strip_prefix(word).is_some_and(|rest| rest.starts_with(['-', '_'])))
}

/// Whether an operation only looks.
pub(super) fn is_read(f: &str) -> bool {
    is(
        f,
        &["list", "read", "show", "get", "status", "login", "token", "validate", "final", "download", "check", "look"],
    )
}

/// What one operation says; none if that is nothing.
pub(super) fn says(pair: &Pair<'_>) -> Option<Says> {
    let f = pair.invoke.f.as_str();
    let result = pair.complete.filter(|op| op.kind == Kind::Ok).map(|op| &op.value);
    if is(f, &["create", "add"]) {
        return Some(Says::Made(id(result?).or_else(|| id(&pair.invoke.value))?));
    }
    if is(f, &["delete", "remove"]) {
        return Some(Says::Unmade(id(&pair.invoke.value).or_else(|| id(result?))?));
    }
    if is(f, &["list", "read", "final"]) {
        let value = result?;
        let list = if value.is_array() { Some(value) } else { value.get("servers").or_else(|| value.get("ids")) };
        let (mut all, leaving) = (ids(list?)?, value.get("deleting").and_then(ids).unwrap_or_default());
        let count = leaving.len();
        all.extend(value.get("failed").and_then(ids).unwrap_or_default());
        all.extend(leaving);
        return Some(Says::Listed(all, count));
    }
    if is(f, &["show"]) {
        let gone = pair.complete.and_then(|op| op.error.as_deref()).is_some_and(|error| error.starts_with("404"));
        let id = id(&pair.invoke.value)?;
        return (gone || result.is_some()).then_some(Says::Shown(id, !gone));
    }
    None
}

fn id(value: &Value) -> Option<String> {
    let id = value.as_str().or_else(|| value["id"].as_str()).or_else(|| value[0].as_str());
    id.map(str::to_owned)
}

fn ids(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::tests::Story;

    #[test]
    fn lists_have_several_forms() {
        let said = |value: Value| {
            let mut story = Story::new(&["paris"]);
            story.ok(0, "paris", "final", json!({}), value);
            facts(&story.run).into_iter().map(|fact| fact.says).next()
        };
        let listed =
            |ids: &[&str], leaving| Some(Says::Listed(ids.iter().map(|id| (*id).to_owned()).collect(), leaving));
        assert_eq!(said(json!(["a", "b"])), listed(&["a", "b"], 0));
        assert_eq!(said(json!({"servers": [["a", "name"]], "deleting": [["b", "name"]]})), listed(&["a", "b"], 1));
        assert_eq!(said(json!({"servers": [{"id": "a"}], "failed": ["b"]})), listed(&["a", "b"], 0));
        assert_eq!(said(json!({"read": {"x": 1}})), None);
    }
}
