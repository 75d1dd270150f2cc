//! Histories as EDN, in Jepsen's own form: one operation a line, so that its checkers can read them.
//!
//! `{:index 0 :time 12000 :type :invoke :process 3 :f :create :value {:name "a"} :site "paris"}`. Faults are done by
//! `:nemesis`. Keys of objects that EDN can write as keywords are keywords; the others, and all text, are strings, so
//! what was written is read back alike. Grammar: <https://github.com/edn-format/edn>.

use serde_json::{Map, Number, Value};
use thiserror::Error;

use crate::history::{History, Kind, Op, Process};

/// Why a text is not a history in EDN.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadEdn {
    /// The text is not EDN, or a part of EDN that no history needs.
    #[error("{what} at byte {at}")]
    Syntax {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// A form is not an operation.
    #[error("form {form} is no operation: {what}")]
    Form {
        /// Which form, from 0.
        form: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// How deep values may nest: a text must not exhaust the stack.
const DEEPEST: usize = 64;

/// Writes a history.
#[must_use]
pub fn write(history: &History) -> String {
    let mut text = String::new();
    for op in &history.0 {
        write_op(&mut text, op);
        text.push('\n');
    }
    text
}

/// Reads a history: operations one after the other, or in one vector.
///
/// # Errors
/// [`BadEdn`] says where.
pub fn read(text: &str) -> Result<History, BadEdn> {
    let mut reader = Reader { text, at: 0 };
    let mut forms = Vec::new();
    while let Some(form) = reader.form(0)? {
        forms.push(form);
    }
    if let [Edn::Sequence(inner)] = forms.as_slice() {
        forms = inner.clone();
    }
    forms.into_iter().enumerate().map(|(at, form)| op(at, form)).collect::<Result<_, _>>().map(History)
}

fn write_op(text: &mut String, op: &Op) {
    text.push_str(&format!("{{:index {}, :time {}, :type {}, :process ", op.index, op.time, kind_word(op.kind)));
    match op.process {
        Process::Nemesis => text.push_str(":nemesis"),
        Process::Client(number) => text.push_str(&number.to_string()),
    }
    text.push_str(", :f ");
    write_key(text, &op.f);
    text.push_str(", :value ");
    write_value(text, &op.value);
    for (key, value) in [("site", &op.site), ("workload", &op.workload), ("error", &op.error)] {
        if let Some(value) = value {
            text.push_str(&format!(", :{key} "));
            write_string(text, value);
        }
    }
    text.push('}');
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Invoke => ":invoke",
        Kind::Ok => ":ok",
        Kind::Fail => ":fail",
        Kind::Info => ":info",
    }
}

fn write_value(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("nil"),
        Value::Bool(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => {
            text.push_str(&number.to_string());
            // Beyond 64 signed bits EDN wants it said that precision matters.
            if number.is_u64() && number.as_i64().is_none() {
                text.push('N');
            }
        }
        Value::String(string) => write_string(text, string),
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                text.push_str(if at > 0 { " " } else { "" });
                write_value(text, item);
            }
            text.push(']');
        }
        Value::Object(map) => {
            text.push('{');
            for (at, (key, value)) in map.iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                write_key(text, key);
                text.push(' ');
                write_value(text, value);
            }
            text.push('}');
        }
    }
}

fn write_key(text: &mut String, key: &str) {
    if is_keyword(key) {
        text.push(':');
        text.push_str(key);
    } else {
        write_string(text, key);
    }
}

/// What every reader takes for a keyword: letters first, and nothing that some readers split at. A UUID that begins with a
/// digit is a string.
fn is_keyword(key: &str) -> bool {
    key.starts_with(|first: char| first.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '?' | '!' | '*' | '+'))
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c.is_control() && u32::from(c) < 0x100 => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// What is read.
#[derive(Clone, Debug, PartialEq)]
enum Edn {
    Nil,
    Bool(bool),
    Number(Number),
    Text(String),
    Keyword(String),
    Sequence(Vec<Edn>),
    Map(Vec<(Edn, Edn)>),
}

impl Edn {
    /// As JSON: keywords become text.
    fn json(self) -> Value {
        match self {
            Self::Nil => Value::Null,
            Self::Bool(flag) => Value::Bool(flag),
            Self::Number(number) => Value::Number(number),
            Self::Text(text) | Self::Keyword(text) => Value::String(text),
            Self::Sequence(items) => items.into_iter().map(Self::json).collect(),
            Self::Map(pairs) => {
                let pair = |(key, value): (Self, Self)| match key.json() {
                    Value::String(key) => (key, value.json()),
                    other => (other.to_string(), value.json()),
                };
                Value::Object(pairs.into_iter().map(pair).collect())
            }
        }
    }
}

fn op(form: usize, edn: Edn) -> Result<Op, BadEdn> {
    let bad = |what| BadEdn::Form { form, what };
    let Value::Object(mut map) = edn.json() else { return Err(bad("it is not a map")) };
    let number = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_u64);
    let text = |map: &mut Map<String, Value>, key: &str| match map.remove(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let process = match map.remove("process") {
        Some(Value::String(name)) if name == "nemesis" => Process::Nemesis,
        Some(Value::Number(number)) => {
            let number = number.as_u64().and_then(|number| u32::try_from(number).ok());
            Process::Client(number.ok_or_else(|| bad(":process is out of range"))?)
        }
        _ => return Err(bad("it has no :process")),
    };
    let kind = match text(&mut map, "type").as_deref() {
        Some("invoke") => Kind::Invoke,
        Some("ok") => Kind::Ok,
        Some("fail") => Kind::Fail,
        Some("info") => Kind::Info,
        _ => return Err(bad("its :type is none of :invoke, :ok, :fail, :info")),
    };
    Ok(Op {
        index: number(&map, "index").ok_or_else(|| bad("it has no :index"))?,
        time: number(&map, "time").ok_or_else(|| bad("it has no :time"))?,
        kind,
        process,
        f: text(&mut map, "f").ok_or_else(|| bad("it has no :f"))?,
        value: map.remove("value").unwrap_or_default(),
        site: text(&mut map, "site"),
        workload: text(&mut map, "workload"),
        error: text(&mut map, "error"),
    })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn bad<T>(&self, what: &'static str) -> Result<T, BadEdn> {
        Err(BadEdn::Syntax { what, at: self.at })
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Blanks, commas and comments.
    fn skip(&mut self) {
        while let Some(c) = self.peek() {
            if c == ';' {
                while self.next().is_some_and(|c| c != '\n') {}
            } else if c.is_whitespace() || c == ',' {
                self.next();
            } else {
                return;
            }
        }
    }

    /// The next form; none at the end of the text or of a collection.
    fn form(&mut self, depth: usize) -> Result<Option<Edn>, BadEdn> {
        if depth > DEEPEST {
            return self.bad("too deep a value");
        }
        self.skip();
        let Some(c) = self.peek() else { return Ok(None) };
        match c {
            ')' | ']' | '}' => Ok(None),
            '(' => self.sequence(')', depth).map(|items| Some(Edn::Sequence(items))),
            '[' => self.sequence(']', depth).map(|items| Some(Edn::Sequence(items))),
            '{' => self.map(depth).map(Some),
            '"' => self.string().map(Some),
            '#' => self.dispatch(depth),
            ':' => {
                self.next();
                let word = self.word();
                if word.is_empty() { self.bad("a keyword without a name") } else { Ok(Some(Edn::Keyword(word))) }
            }
            _ => self.atom().map(Some),
        }
    }

    fn sequence(&mut self, end: char, depth: usize) -> Result<Vec<Edn>, BadEdn> {
        self.next();
        let mut items = Vec::new();
        while let Some(item) = self.form(depth + 1)? {
            items.push(item);
        }
        if self.next() == Some(end) { Ok(items) } else { self.bad("a collection that does not end") }
    }

    fn map(&mut self, depth: usize) -> Result<Edn, BadEdn> {
        let mut items = self.sequence('}', depth)?.into_iter();
        let mut pairs = Vec::new();
        while let Some(key) = items.next() {
            match items.next() {
                Some(value) => pairs.push((key, value)),
                None => return self.bad("a key without a value"),
            }
        }
        Ok(Edn::Map(pairs))
    }

    /// Sets, what is discarded, and tags, which are dropped: `#jepsen.history.Op{…}` is the map.
    fn dispatch(&mut self, depth: usize) -> Result<Option<Edn>, BadEdn> {
        self.next();
        match self.peek() {
            Some('{') => self.sequence('}', depth).map(|items| Some(Edn::Sequence(items))),
            Some('_') => {
                self.next();
                match self.form(depth + 1)? {
                    Some(_) => self.form(depth + 1),
                    None => self.bad("nothing to discard"),
                }
            }
            Some(c) if c.is_alphabetic() => {
                self.word();
                match self.form(depth + 1)? {
                    Some(form) => Ok(Some(form)),
                    None => self.bad("a tag without a form"),
                }
            }
            _ => self.bad("an unknown dispatch"),
        }
    }

    fn string(&mut self) -> Result<Edn, BadEdn> {
        self.next();
        let mut string = String::new();
        loop {
            match self.next() {
                None => return self.bad("a string that does not end"),
                Some('"') => return Ok(Edn::Text(string)),
                Some('\\') => string.push(self.escape()?),
                Some(c) => string.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, BadEdn> {
        match self.next() {
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some('b') => Ok('\u{8}'),
            Some('f') => Ok('\u{c}'),
            Some(c @ ('"' | '\\')) => Ok(c),
            Some('u') => {
                let digits = self.text.get(self.at..self.at + 4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let Some(c) = digits.and_then(char::from_u32) else { return self.bad("a wrong \\u escape") };
                self.at += 4;
                Ok(c)
            }
            _ => self.bad("an unknown escape"),
        }
    }

    fn word(&mut self) -> String {
        let from = self.at;
        while self.peek().is_some_and(|c| !c.is_whitespace() && !"()[]{}\",;".contains(c)) {
            self.next();
        }
        self.text.get(from..self.at).unwrap_or_default().to_owned()
    }

    fn atom(&mut self) -> Result<Edn, BadEdn> {
        let word = self.word();
        match word.as_str() {
            "nil" => return Ok(Edn::Nil),
            "true" => return Ok(Edn::Bool(true)),
            "false" => return Ok(Edn::Bool(false)),
            _ => {}
        }
        let plain = word.strip_suffix(['N', 'M']).unwrap_or(&word);
        let plain = plain.strip_prefix('+').unwrap_or(plain);
        let whole = plain.parse::<u64>().map(Number::from).or_else(|_| plain.parse::<i64>().map(Number::from));
        let number = whole.ok().or_else(|| plain.parse::<f64>().ok().and_then(Number::from_f64));
        number.map_or_else(|| self.bad("neither a number nor a known symbol"), |number| Ok(Edn::Number(number)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn one(value: Value) -> Op {
        let (site, workload) = (Some("paris".to_owned()), Some("set".to_owned()));
        let process = Process::Client(3);
        Op {
            index: 0,
            time: 12_000,
            kind: Kind::Invoke,
            process,
            f: "create".into(),
            value,
            site,
            workload,
            error: None,
        }
    }

    #[test]
    fn an_operation_has_jepsens_own_form() {
        let mut nemesis = one(Value::Null);
        (nemesis.process, nemesis.f, nemesis.kind) = (Process::Nemesis, "start-partition".into(), Kind::Info);
        (nemesis.site, nemesis.workload, nemesis.error) = (None, None, Some("a \"b\"\n".into()));
        let text = write(&History(vec![one(json!({"name": "a", "4711": [1, -2, 1.5, null, true]})), nemesis]));
        let expected = concat!(
            "{:index 0, :time 12000, :type :invoke, :process 3, :f :create, ",
            ":value {\"4711\" [1 -2 1.5 nil true], :name \"a\"}, :site \"paris\", :workload \"set\"}\n",
            "{:index 0, :time 12000, :type :info, :process :nemesis, :f :start-partition, :value nil, :error \"a \\\"b\\\"\\n\"}\n",
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_jepsen_writes_is_read() {
        let text = "; a comment\n[#jepsen.history.Op{:index 0, :time 5, :type :invoke, :process 0, :f :txn, :value [[:r 3 nil] [:append 3 1]]}\n\
                    #_ {:gone true} {:process :nemesis :type :info :f :kill :value #{\"n1\"} :index 1 :time 9N :more (1 2)}]";
        let history = read(text).unwrap();
        assert_eq!(history.0.len(), 2);
        assert_eq!(history.0[0].value, json!([["r", 3, null], ["append", 3, 1]]));
        assert_eq!(
            (history.0[1].process, history.0[1].time, &history.0[1].value),
            (Process::Nemesis, 9, &json!(["n1"]))
        );
    }

    #[test]
    fn what_is_wrong_is_named_and_never_panics() {
        for text in ["{", "{:a}", "\"", "\"\\u12", "\"\\q\"", "#", "#_", "#tag", ":", "1a", "[1 2)", "é{"] {
            assert!(matches!(read(text), Err(BadEdn::Syntax { .. })), "{text}");
        }
        assert!(matches!(read(&"[".repeat(100_000)), Err(BadEdn::Syntax { .. })));
        for text in ["1", "{}", "{:process 0}", "{:process 4294967296, :type :ok}", "{:process 0 :type :maybe}"] {
            assert!(matches!(read(text), Err(BadEdn::Form { .. })), "{text}");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            // Quarters: JSON's reader is exact for these only.
            any::<i32>().prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(prop_oneof!["[a-z-]{1,6}", ".{0,6}"], inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_was_written_is_read_back(value in values(), f in ".{1,8}", error in proptest::option::of(".*"), nemesis: bool) {
            let mut op = one(value);
            (op.f, op.error) = (f, error);
            if nemesis {
                op.process = Process::Nemesis;
            }
            let history = History(vec![op.clone(), op]);
            prop_assert_eq!(read(&write(&history)), Ok(history.clone()));
            prop_assert_eq!(History::from_json(&history.to_json().unwrap()).unwrap(), history);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = read(&text);
        }
    }
}
